"""KPruner as an object: the same again, after another prune, after a failure, copied, shown."""

import copy
import pickle

import pytest
import torch
from prunes import interrupt_at, prune, settings
from tiny import (
    batches_of,
    outputs_of,
    pad,
    ragged_samples,
    same_state,
    samples_for,
    save_tiny,
    texts_of,
    tiny_model,
    tiny_tokenizer,
)

from optimum_kprune import KPruneConfig, KPruner

SAMPLES = ragged_samples()


# The same again


def test_the_same_seed_gives_the_same_bytes(tmp_path):
    for name in ("first", "second"):
        pruner = KPruner(tiny_model(), tiny_tokenizer())
        pruner.prune(settings(), texts_of(SAMPLES), save_directory=tmp_path / name)
    for file in ("model.safetensors", "config.json", "kprune_config.json"):
        assert (tmp_path / "first" / file).read_bytes() == (tmp_path / "second" / file).read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("head", ["single label", "question answering", "masked language model"])
def test_a_second_prune_starts_from_the_teacher(head):
    dense = tiny_model(head=head)
    batches = batches_of(samples_for(dense))
    pruner = prune(dense, batches, compression_rate=0.8)
    pruner.prune(settings(), batches)
    once = prune(dense, batches)
    assert pruner.result.kept == once.result.kept
    assert same_state(pruner.model, once.model)


def test_the_state_of_the_random_generators_does_not_matter_and_is_left_alone():
    dense = tiny_model()
    torch.manual_seed(1)
    first = prune(dense)
    state = torch.get_rng_state()
    torch.manual_seed(2)
    second = prune(dense)
    assert same_state(first.model, second.model)
    torch.manual_seed(1)
    assert torch.equal(torch.get_rng_state(), state)


# The teacher


def test_after_a_failure_the_last_success_stays():
    pruner = prune(tiny_model())
    model, result, config = pruner.model, pruner.result, pruner.config
    pruner.teacher.bert.encoder.layer[2].register_forward_hook(interrupt_at(4, KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        pruner.prune(settings(compression_rate=0.8), batches_of(SAMPLES))
    assert (pruner.model, pruner.result, pruner.config) == (model, result, config)


# Values that are not finite, and too little data


def test_a_prune_in_inference_mode_is_like_any_other():
    texts = texts_of(ragged_samples())
    config = KPruneConfig(compression_rate=0.5, num_tokens=None)
    expected = KPruner(tiny_model(), tiny_tokenizer()).prune(config, texts).kept
    model = tiny_model()
    with torch.inference_mode():
        assert KPruner(model, tiny_tokenizer()).prune(config, texts).kept == expected


@pytest.fixture(scope="module")
def pruner(tmp_path_factory):
    """A pruner that has loaded, drawn and pruned."""
    folder = tmp_path_factory.mktemp("report")
    save_tiny(folder / "model")
    (folder / "texts.txt").write_text("\n".join(texts_of(SAMPLES)))
    pruner = KPruner.from_pretrained(folder / "model")
    pruner.prune(KPruneConfig(), pruner.get_calibration_dataset(folder / "texts.txt", seed=3))
    return pruner


def test_the_repr_of_a_pruner_tells_model_task_and_state(pruner):
    dense = KPruner(tiny_model(), tiny_tokenizer())
    assert repr(dense) == "KPruner(BertForSequenceClassification, text-classification, not pruned yet)"
    removed = f"{pruner.result.flops_removed:.1%} of the FLOPs removed"
    assert repr([pruner]) == f"[KPruner(BertForSequenceClassification, text-classification, {removed})]"


@pytest.mark.parametrize("duplicate", [lambda pruner: pickle.loads(pickle.dumps(pruner)), copy.deepcopy])
def test_a_pruner_pickles_and_copies(duplicate, pruner, tmp_path):
    other = duplicate(pruner)
    assert other.model is not pruner.model and same_state(other.model, pruner.model)
    (logits,), (expected,) = (outputs_of(each.model, pad(SAMPLES)) for each in (other, pruner))
    assert (logits == expected).all()
    assert other.result == pruner.result and repr(other) == repr(pruner)
    for name, saved in (("one", pruner), ("other", other)):
        saved.save_pretrained(tmp_path / name)
    cards = [(tmp_path / name / "README.md").read_text() for name in ("one", "other")]
    assert cards[0] == cards[1] and "seed=3" in cards[0]
    config = KPruneConfig(compression_rate=0.7)
    results = [each.prune(config, texts_of(SAMPLES)) for each in (copy.copy(pruner), other)]
    assert results[0].kept == results[1].kept
