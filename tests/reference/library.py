"""The model and the data of `equations` as the library takes them."""

import torch
from reference import equations
from transformers import BertConfig, BertForQuestionAnswering, BertForSequenceClassification


def dense_model(task, seed=0):
    """The transformers model with the weights of `equations.make_weights`."""
    config = BertConfig(
        vocab_size=equations.VOCABULARY,
        hidden_size=equations.HIDDEN,
        num_hidden_layers=equations.LAYERS,
        num_attention_heads=equations.HEADS,
        intermediate_size=equations.NEURONS,
        max_position_embeddings=equations.POSITIONS,
        num_labels=equations.OUTPUTS[task],
    )
    model_class = BertForQuestionAnswering if task == "question answering" else BertForSequenceClassification
    model = model_class(config)
    model.load_state_dict(equations.make_weights(task, seed))
    return model.eval()


def tensors_of(batch):
    """The tensors of a list of samples."""
    ids, real = (torch.stack(values) for values in zip(*batch, strict=True))
    return {"input_ids": ids, "attention_mask": real.long()}
