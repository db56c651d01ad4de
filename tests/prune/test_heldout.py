"""What a prune lost, on held-out data: against plain forward passes of the dense and the pruned model."""

import copy
import itertools
import logging
import statistics

import pytest
import torch
from tiny import (
    HEADS,
    batches_of,
    encoder_of,
    pad,
    ragged_samples,
    same_state,
    samples_for,
    texts_of,
    tiny_model,
    tiny_tokenizer,
)
from torch.nn import functional

from optimum_kprune import KPruneConfig, KPruner, order
from optimum_kprune.algorithm.divergence import Prediction, agreement
from optimum_kprune.calibration.prepare import CalibrationBatches
from optimum_kprune.encoder.config_field import adapter_of
from optimum_kprune.encoder.sublayers import Encoder
from optimum_kprune.encoder.tasks import RANKING, task_of
from optimum_kprune.prune import heldout as module
from optimum_kprune.prune import sweep
from optimum_kprune.prune.heldout import Comparison, Heldout, heldout_quality

pytestmark = pytest.mark.slow


def pair(head, family="bert"):
    """A model and another that is somewhat like it."""
    one = tiny_model(family, head).eval()
    other = copy.deepcopy(one)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter += 0.03 * torch.randn_like(parameter)
    return one, other


def quality_of(one, other, batches):
    return heldout_quality(encoder_of(one), encoder_of(other), CalibrationBatches([], [0], batches), task_of(one))


@pytest.mark.parametrize("head", HEADS)
def test_nothing_is_lost_by_the_model_itself(head):
    model = tiny_model(head=head).eval()
    quality = quality_of(model, model, batches_of(samples_for(model)))
    assert quality.closeness == pytest.approx(1) and quality.divergence == pytest.approx(0, abs=1e-6)
    assert quality.samples == len(samples_for(model))


@pytest.mark.parametrize("head", HEADS)
def test_batches_and_padding_do_not_matter(head):
    one, other = pair(head)
    samples = samples_for(one)
    first = quality_of(one, other, batches_of(samples, 5))
    second = quality_of(one, other, [pad(samples, extra=4)])
    first_figures, second_figures = (
        {name: value for name, value in vars(quality).items() if name != "measure"} for quality in (first, second)
    )
    assert second_figures == pytest.approx(first_figures, rel=1e-4) and first.measure == second.measure
    assert first.divergence > 1e-4


def test_rankings_are_alike_where_pairs_are_in_the_same_order():
    """Of queries with two and three candidates, beside which 0 is one."""
    one, other = pair("regression")
    groups = [ragged_samples(20, choices=2), ragged_samples(20, seed=1, choices=3)]
    encoders = [Encoder(model, adapter_of(model), by_rows=True) for model in (one, other)]
    batches = [pad(samples) for samples in groups]
    quality = heldout_quality(*encoders, CalibrationBatches([], [0], batches), RANKING)
    # Models alone, as an export compares them, read the rows of a sample as well.
    assert Comparison(one, batches, RANKING).quality(other) == quality
    alike, lost = [], []
    for sample in groups[0] + groups[1]:
        dense, pruned = (torch.cat([logits_of(model, sample)[:, 0], torch.zeros(1)]) for model in (one, other))
        pairs = list(itertools.combinations(range(len(dense)), 2))
        alike.append(sum(bool(dense[i] > dense[j]) == bool(pruned[i] > pruned[j]) for i, j in pairs) / len(pairs))
        lost.append((dense.softmax(0) * (dense.log_softmax(0) - pruned.log_softmax(0))).sum().item())
    assert (quality.measure, quality.samples) == ("order agreement", 40)
    assert quality.closeness == pytest.approx(statistics.mean(alike)) and quality.closeness < 1
    assert quality.closeness_error == pytest.approx(statistics.stdev(alike) / 40**0.5)
    assert quality.divergence == pytest.approx(statistics.mean(lost), rel=1e-4)


@torch.no_grad()
def logits_of(model, samples):
    return torch.cat([model(**pad([sample])).logits for sample in samples])


def test_classes_agree_where_the_likeliest_is_the_same():
    one, other = pair("single label")
    samples = samples_for(one, 60)
    quality = quality_of(one, other, batches_of(samples))
    dense, pruned = logits_of(one, samples), logits_of(other, samples)
    same = (dense.argmax(1) == pruned.argmax(1)).double()
    lost = functional.kl_div(pruned.log_softmax(1), dense.softmax(1), reduction="none").sum(1)
    assert quality.measure == "agreement" and 0.3 < quality.closeness < 1
    assert quality.closeness == pytest.approx(same.mean().item())
    assert quality.closeness_error == pytest.approx(
        (torch.cat([same, torch.tensor([0.0, 1.0])]).std() / 62**0.5).item()
    )
    assert quality.divergence == pytest.approx(lost.mean().item(), rel=1e-4)
    assert quality.divergence_error == pytest.approx((lost.std() / 60**0.5).item(), rel=1e-4)


def test_a_regression_is_told_by_its_correlation():
    one, other = pair("regression")
    samples = samples_for(one, 60)
    quality = quality_of(one, other, batches_of(samples))
    dense, pruned = logits_of(one, samples)[:, 0], logits_of(other, samples)[:, 0]
    assert quality.measure == "correlation"
    assert quality.closeness == pytest.approx(torch.corrcoef(torch.stack([dense, pruned]))[0, 1].item(), rel=1e-4)
    assert quality.divergence == pytest.approx((dense - pruned).square().mean().item(), rel=1e-4)


def test_embeddings_are_told_by_their_cosine():
    one, other = pair("base model")
    samples = samples_for(one)
    quality = quality_of(one, other, batches_of(samples))
    with torch.no_grad():
        dense, pruned = (
            torch.cat([model(**pad([sample])).last_hidden_state.mean(dim=1) for sample in samples])
            for model in (one, other)
        )
    assert quality.measure == "cosine"
    assert quality.closeness == pytest.approx(torch.cosine_similarity(dense, pruned).mean().item(), rel=1e-4)


def test_padding_and_masked_classes_do_not_count():
    values = torch.tensor([[[0.0, 1.0], [1.0, 0.0], [1.0, 0.0]]])
    other = torch.tensor([[[0.0, 2.0], [0.0, 1.0], [0.0, 1.0]]])
    weights = torch.tensor([[0.5, 0.25, 0.0]])
    alike = agreement(Prediction(values, weights, "categorical"), Prediction(other, weights, "categorical"))
    assert alike.tolist() == pytest.approx([2 / 3])


def test_without_held_out_data_nothing_is_measured():
    model = tiny_model().eval()
    assert quality_of(model, model, []) is None


def test_few_samples_that_agree_are_no_proof_and_rounding_is_no_gain():
    model = tiny_model(head="single label").eval()
    errors = [quality_of(model, model, [pad(samples_for(model)[:count])]).closeness_error for count in (1, 3, 12)]
    # As of so many ones, and one 0 and one 1.
    assert errors == pytest.approx([((n + 1) / (n + 2) ** 2 / (n + 1)) ** 0.5 for n in (1, 3, 12)])
    assert errors == sorted(errors, reverse=True) and errors[-1] > 0.05
    assert quality_of(model, model, batches_of(samples_for(model))).divergence >= 0


def test_it_is_told_in_one_sentence():
    one, other = pair("single label")
    told = str(quality_of(one, other, batches_of(samples_for(one))))
    assert told.startswith("On 24 held-out samples: agreement with the model before ") and " ± " in told


# In a prune


def prune(data, **settings):
    one = KPruner(tiny_model(), tiny_tokenizer())
    one.prune(KPruneConfig(compression_rate=0.6, num_tokens=None, **settings), data)
    return one


TEXTS = texts_of(ragged_samples(60))


@pytest.mark.parametrize("data", [TEXTS, batches_of(ragged_samples(60), 5)])
def test_a_tenth_of_the_data_is_held_out_by_default(data, caplog):
    caplog.set_level(logging.INFO, "optimum_kprune")
    one = prune(data)
    assert str(one.result.heldout) in caplog.messages
    told = one.result.calibration
    assert told.heldout_samples == one.result.heldout.samples > 0
    share = told.heldout_tokens / (told.tokens + told.heldout_tokens)
    assert 0.05 < share < 0.15 and one.result.tokens == told.tokens
    assert str(one.result).splitlines()[-1] == str(one.result.heldout)


def test_what_is_measured_is_what_the_saved_model_predicts_on_what_was_held_out(monkeypatch):
    seen = []
    measure = sweep.heldout_quality
    monkeypatch.setattr(sweep, "heldout_quality", lambda *args: seen.append(args[2].heldout) or measure(*args))
    one = prune(TEXTS)
    (heldout,) = seen
    assert quality_of(one.teacher.eval(), one.model, heldout) == one.result.heldout


def test_what_is_held_out_takes_no_part_in_the_prune(monkeypatch):
    """Whatever it holds, the same model comes out."""
    first = prune(TEXTS)
    prepare = order.prepare_batches

    def with_other_words(*args, **options):
        calibration = prepare(*args, **options)
        for batch in calibration.heldout:
            batch["input_ids"][:, 1] = 9
        return calibration

    monkeypatch.setattr(order, "prepare_batches", with_other_words)
    second = prune(TEXTS)
    assert same_state(first.model, second.model) and first.result.heldout != second.result.heldout


@pytest.mark.parametrize(("data", "settings"), [(TEXTS, {"heldout_share": 0}), (TEXTS[:9], {})])
def test_where_nothing_is_held_out_that_is_told(data, settings):
    one = prune(data, **settings)
    assert one.result.heldout is None and "What was lost was not measured" in str(one.result)


def test_published_targets_do_not_change_what_is_measured():
    """They belong to the published search; the loss is that of the task."""
    one = KPruner(tiny_model(head="regression"), tiny_tokenizer())
    settings = {"published_targets": True, "tuning": False, "compression_rate": 0}
    one.prune(KPruneConfig(num_tokens=None, **settings), TEXTS)
    assert one.result.heldout.divergence == pytest.approx(0, abs=1e-9)


def test_a_model_of_which_nothing_is_left_is_warned_of(caplog):
    prune(TEXTS, neuron_multiple=1000)
    assert "All heads and all neurons were removed" not in caplog.text
    one = KPruner(tiny_model(), tiny_tokenizer())
    result = one.prune(KPruneConfig(compression_rate=0.999), TEXTS)
    assert result.flops_after == 0 and "All heads and all neurons were removed" in caplog.text


@pytest.mark.parametrize(("most", "runs"), [(10**6, 1), (0, 3)])
def test_the_dense_model_predicts_once_unless_that_is_too_much_to_keep(most, runs, monkeypatch):
    monkeypatch.setattr(module, "MOST_KEPT", most)
    one, other = tiny_model().eval(), tiny_model(seed=1).eval()
    heldout = Heldout(encoder_of(one), CalibrationBatches([], [0], batches_of(ragged_samples(12))), task_of(one))
    ran = []
    one.register_forward_hook(lambda *_: ran.append(1))
    assert len({heldout.quality(encoder_of(other)) for _ in range(3)}) == 1
    assert len(ran) == runs
