"""The model and the data of `plain_bert` as the library takes them."""

import plain_bert
import torch
from transformers import BertConfig, BertForQuestionAnswering, BertForSequenceClassification


def dense_model(task, seed=0):
    """The transformers model with the weights of `plain_bert.make_weights`."""
    config = BertConfig(
        vocab_size=plain_bert.VOCABULARY,
        hidden_size=plain_bert.HIDDEN,
        num_hidden_layers=plain_bert.LAYERS,
        num_attention_heads=plain_bert.HEADS,
        intermediate_size=plain_bert.NEURONS,
        max_position_embeddings=plain_bert.POSITIONS,
        num_labels=plain_bert.OUTPUTS[task],
    )
    model_class = BertForQuestionAnswering if task == "question answering" else BertForSequenceClassification
    model = model_class(config)
    model.load_state_dict(plain_bert.make_weights(task, seed))
    return model.eval()


def tensors_of(batch):
    """The tensors of a list of samples."""
    ids, real = (torch.stack(values) for values in zip(*batch, strict=True))
    return {"input_ids": ids, "attention_mask": real.long()}
