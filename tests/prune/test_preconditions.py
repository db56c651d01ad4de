"""What is refused or warned of before a prune: models, weights, settings, too little data."""

import copy

import pytest
import torch
from own_models import Around, Host, StandIn, of_peft, replaced
from prunes import prune, settings, untouchable
from tiny import HIDDEN, NEURONS, PAD, batches_of, ragged_samples, same_state, tiny_model
from torch import nn
from transformers import (
    BertLMHeadModel,
    BertModel,
    EncoderDecoderModel,
    GPT2Config,
    GPT2LMHeadModel,
    T5Config,
    T5ForConditionalGeneration,
)
from zoo import build

from optimum_kprune import KPruneCallback, KPruner

SAMPLES = ragged_samples()


# Other types of models


def test_a_rate_that_was_set_later_is_validated_too():
    config = settings()
    config.compression_rate = 1.5
    with pytest.raises(ValueError, match=r"'compression_rate'.*Got 1\.5"):
        KPruner(tiny_model()).prune(config, batches_of(SAMPLES))


# Values that are not finite, and too little data


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_named(value):
    model = tiny_model()
    model.bert.encoder.layer[1].output.dense.weight.data[3, 4] = value
    with pytest.raises(ValueError, match=r"not finite: bert\.encoder\.layer\.1\.output\.dense\.weight\."):
        KPruner(model).prune(settings(), untouchable())


@pytest.mark.parametrize(
    ("count", "said"),
    [(3, "expect a poor model"), (24, "the fit is loose"), (100, None)],
)
def test_few_tokens_warn(count, said, caplog):
    samples = ragged_samples(count)
    prune(tiny_model(), batches_of(samples))
    messages = [record.getMessage() for record in caplog.records if "tokens, but" in record.getMessage()]
    assert len(messages) == (said is not None)
    tokens = sum(map(len, samples))
    for message in messages:
        assert f"has {tokens} tokens, but the widest sublayer has {NEURONS} features" in message and said in message
        assert f"{10 * NEURONS} tokens or more" in message


def test_a_model_without_layers_is_refused_at_once():
    with pytest.raises(ValueError, match="has no layers"):
        KPruner(tiny_model(num_hidden_layers=0))


def test_a_feed_forward_in_chunks_is_refused_at_once():
    with pytest.raises(ValueError, match="chunk_size_feed_forward=0"):
        KPruner(tiny_model(chunk_size_feed_forward=1))


# Adapters, quantized weights, and other things that are no plain encoders


def test_adapters_of_peft_are_to_be_merged():
    for model in (replaced(of_peft), of_peft(tiny_model()), Host(replaced(of_peft))):
        with pytest.raises(ValueError, match=r"adapters of PEFT.*merge_and_unload\(\)"):
            KPruner(model)


def test_adapters_of_the_real_peft_are_to_be_merged():
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(target_modules=["query"], task_type="SEQ_CLS", init_lora_weights=False)
    added = tiny_model()
    added.add_adapter(config)
    wrapped = peft.get_peft_model(tiny_model(), config)
    for model in (added, wrapped, wrapped.base_model.model):
        with pytest.raises(ValueError, match="merge_and_unload"):
            KPruner(model)
    assert prune(wrapped.merge_and_unload()).result.flops_removed >= 0.5


class Int8Weight(torch.Tensor):
    """A subclass of tensors, as libraries of quantization put them in the place of weights."""


def with_weight(make):
    def replacement(linear):
        del linear.weight
        linear.weight = make()
        return linear

    return replacement


PLAIN = {
    "module of another class": (StandIn, "StandIn"),
    "subclass of Linear": (lambda linear: type("QLinear", (nn.Linear,), {})(HIDDEN, 64), "QLinear"),
    "tensor subclass": (
        with_weight(lambda: nn.Parameter(torch.zeros(64, HIDDEN).as_subclass(Int8Weight))),
        "Linear with a weight of .*Int8Weight",
    ),
    "integers": (
        with_weight(lambda: nn.Parameter(torch.zeros(64, HIDDEN, dtype=torch.int8), requires_grad=False)),
        "Parameter of torch.int8",
    ),
    "parametrized": (torch.nn.utils.parametrizations.spectral_norm, "ParametrizedLinear"),
    "no module": (lambda linear: None, "no such module"),
}


@pytest.mark.parametrize("kind", PLAIN)
def test_projections_that_are_no_plain_matrices_are_named(kind):
    replacement, named = PLAIN[kind]
    with pytest.raises(ValueError, match=rf"'intermediate\.dense' of layer 1 must be a plain.*{named}.*Prune first"):
        KPruner(replaced(replacement))


def test_a_model_that_pytorch_quantized_is_told():
    quantize = pytest.importorskip("torch.ao.quantization").quantize_dynamic
    with pytest.raises(ValueError, match=r"must be a plain `nn\.Linear`.*quantized\.dynamic"):
        KPruner(quantize(tiny_model().eval(), {nn.Linear}, dtype=torch.qint8))


def test_a_model_without_weights_is_told():
    with pytest.raises(ValueError, match="on the meta device"):
        KPruner(tiny_model().to("meta"))


def decoders():
    sizes = dict(vocab_size=120, pad_token_id=PAD, bos_token_id=0, eos_token_id=2)
    bert = tiny_model().config
    yield GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=2, n_embd=8, **sizes))
    yield T5ForConditionalGeneration(T5Config(d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2, **sizes))
    yield EncoderDecoderModel(encoder=BertModel(bert), decoder=BertLMHeadModel(copy.deepcopy(bert)))


def test_decoders_are_refused_with_the_reason(tmp_path):
    for model in decoders():
        with pytest.raises(ValueError, match=r"decoder.*K-prune is for encoders") as caught:
            KPruner(model)
        assert "register_adapter" not in str(caught.value)
        folder = tmp_path / type(model).__name__
        model.save_pretrained(folder)
        with pytest.raises(ValueError, match=r"decoder.*K-prune is for encoders"):
            KPruner.from_pretrained(folder)


def test_a_decoder_that_stays_is_told_of(tmp_path, caplog):
    pruner = prune(build("bart"), batches_of(SAMPLES))
    assert "A BartForSequenceClassification has a decoder, which stays as it is" in caplog.text
    pruner.save_pretrained(tmp_path / "out")
    assert "Embeddings, decoder, pooler and head stay as they are" in (tmp_path / "out" / "README.md").read_text()
    assert same_state(pruner.model.base_model.decoder, build("bart").base_model.decoder)


def test_what_is_no_model_is_told_what_to_do():
    pipeline = type("SentenceTransformer", (nn.Sequential,), {"__module__": "sentence_transformers.base"})
    cases = {
        r"Got str instead.*KPruner\.from_pretrained": lambda: KPruner("bert"),
        "module that holds one. Got a Linear": lambda: KPruner(nn.Linear(2, 2)),
        r"from_sentence_transformer": lambda: KPruner(pipeline(tiny_model(head="base model"))),
        r"Pass `model\.module`": lambda: KPruner(nn.DataParallel(tiny_model())),
        "A compiled model cannot be observed": lambda: KPruner(Around(torch.compile(tiny_model(), backend="eager"))),
        "as it was before": lambda: KPruner(compiled_in_place()),
        r"must be a `transformers\.Trainer`.*KPruner\(model": lambda: KPruner.from_trainer(tiny_model()),
        "must be a KPruneConfig. Got float": lambda: KPruneCallback(0.5),
        "`prediction` must be a function": lambda: KPruner(tiny_model(), prediction="logits"),
        "must name a submodule": lambda: KPruner(tiny_model(), encoder="x"),
        "has no module 'encoder.layer'": lambda: KPruner(without_blocks()),
    }
    for message, mistake in cases.items():
        with pytest.raises(ValueError, match=message):
            mistake()


def compiled_in_place():
    model = tiny_model()
    model.compile(backend="eager")
    return model


def without_blocks():
    model = tiny_model()
    model.bert.encoder = nn.Identity()
    return model
