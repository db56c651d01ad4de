"""Models with heads and modules of one's own, and prunes of them."""

import torch
from tiny import batches_of, pad, ragged_samples, randomize, tiny_model, tiny_tokenizer
from torch import nn
from transformers import BertConfig, BertForSequenceClassification, BertModel, BertPreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput

from optimum_kprune import KPruneConfig, KPruner

SAMPLES = ragged_samples(30)
BATCHES = batches_of(SAMPLES)
CONFIG = KPruneConfig(compression_rate=0.5, num_tokens=None)


class Derived(BertForSequenceClassification):
    """The classifier of transformers under another name."""


class OwnConfig(BertConfig):
    """A config of one's own of a type that transformers knows."""

    width: int = 16


class Deep(BertForSequenceClassification):
    """Another classifier, and a forward that takes no more than it needs."""

    config_class = OwnConfig

    def __init__(self, config):
        super().__init__(config)
        self.classifier = nn.Sequential(nn.Linear(config.hidden_size, 16), nn.Tanh(), nn.Linear(16, 5))
        self.post_init()

    def forward(self, input_ids, attention_mask=None, labels=None):
        pooled = self.bert(input_ids, attention_mask=attention_mask).pooler_output
        return SequenceClassifierOutput(logits=self.classifier(pooled))


class TwoHeads(BertPreTrainedModel):
    """Intents of texts and slots of tokens, of one encoder."""

    def __init__(self, config):
        super().__init__(config)
        self.bert = BertModel(config)
        self.intents = nn.Linear(config.hidden_size, 7)
        self.slots = nn.Linear(config.hidden_size, 4)
        self.post_init()

    def forward(self, input_ids, **kwargs):
        encoded = self.bert(input_ids, **kwargs)
        return {
            "intent_logits": self.intents(encoded.pooler_output),
            "slot_logits": self.slots(encoded.last_hidden_state),
        }


class Host(nn.Module):
    """A module that is no transformers model, but holds one, with the classifier of BERT."""

    def __init__(self, model):
        super().__init__()
        self.encoder = model.bert
        self.classifier = model.classifier

    def forward(self, input_ids, attention_mask, labels=None):
        logits = self.classifier(self.encoder(input_ids, attention_mask=attention_mask).pooler_output)
        return {"logits": logits} if labels is None else {"loss": logits.square().mean(), "logits": logits}


class Around(nn.Module):
    """A module around a whole model, head included, that returns what it is told to."""

    def __init__(self, model, answer=lambda outputs: outputs.logits):
        super().__init__()
        self.inner = model
        self.answer = answer

    def forward(self, input_ids, attention_mask=None):
        return self.answer(self.inner(input_ids, attention_mask=attention_mask))


def own_model(model_class):
    torch.manual_seed(0)
    model = model_class(model_class.config_class(**tiny_model().config.to_dict()))
    randomize(model)
    return model


def prune(model, **options):
    pruner = KPruner(model, tiny_tokenizer(), **options)
    pruner.prune(CONFIG, BATCHES)
    return pruner


@torch.no_grad()
def answers(model):
    outputs = model.eval()(**pad(SAMPLES))
    outputs = list(outputs.values()) if isinstance(outputs, dict) else [outputs]
    return [output for output in outputs if isinstance(output, torch.Tensor)]


def assert_same_answers(first, second):
    for one, other in zip(answers(first), answers(second), strict=True):
        assert torch.equal(one, other)


class StandIn(nn.Module):
    """What PEFT puts around a projection, or a library of quantization in its place."""

    def __init__(self, base_layer):
        super().__init__()
        self.base_layer = base_layer

    def forward(self, hidden):
        return self.base_layer(hidden)


def replaced(replacement):
    model = tiny_model()
    block = model.bert.encoder.layer[1].intermediate
    block.dense = replacement(block.dense)
    return model


def of_peft(base_layer):
    return type("Linear", (StandIn,), {"__module__": "peft.tuners.lora.layer"})(base_layer)
