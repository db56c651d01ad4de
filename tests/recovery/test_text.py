"""The text of a recovery: budget, passes, what is held out, and the parts of processes."""

import logging

import pytest
import torch
from datasets import Dataset
from tiny_texts import make_texts, make_tokenizer

from optimum_kprune.calibration.prepare import load_calibration_dataset, prepare_batches
from optimum_kprune.calibration.spec import InputSpec, token_mask
from optimum_kprune.recovery import text as module
from optimum_kprune.recovery.text import MOST_PASSES, RecoveryText, recovery_text

TEXTS = make_texts(120)


@pytest.fixture
def spec():
    return InputSpec("text-classification", make_tokenizer(), max_positions=40)


def samples_of(batches):
    """The real ids of every sample, in order."""
    pairs = [pair for batch in batches for pair in zip(batch["input_ids"], batch["attention_mask"], strict=True)]
    return [tuple(ids[mask.bool()].tolist()) for ids, mask in pairs]


def batches_of(sizes):
    """Batches of so many samples of one token each, all different."""
    ids = torch.arange(sum(sizes)).split(sizes)
    return [{"input_ids": part[:, None], "attention_mask": torch.ones(len(part), 1).long()} for part in ids]


def test_all_texts_are_there_once_in_a_pass(spec):
    text = recovery_text(TEXTS, spec, 10**6, [])
    assert sorted(samples_of(text.batches)) == sorted(
        samples_of(prepare_batches(TEXTS, spec, num_tokens=None).batches)
    )
    assert text.tokens == sum(map(len, samples_of(text.batches)))


def test_what_is_held_out_of_the_calibration_data_is_not_learned(spec):
    calibration = prepare_batches(TEXTS, spec, num_tokens=None, heldout_share=0.3)
    heldout, learned = (
        set(samples_of(calibration.heldout)),
        set(samples_of(recovery_text(TEXTS, spec, 10**6, calibration.heldout).batches)),
    )
    assert heldout and not heldout & learned
    assert heldout | learned == set(samples_of(recovery_text(TEXTS, spec, 10**6, []).batches))


def test_padding_and_tokenized_rows_do_not_hide_what_is_held_out(spec):
    calibration = prepare_batches(TEXTS, spec, num_tokens=None, heldout_share=0.3)
    rows = Dataset.from_dict(dict(make_tokenizer()(TEXTS, padding="max_length", max_length=30, truncation=True)))
    learned = set(samples_of(recovery_text(rows, spec, 10**6, calibration.heldout).batches))
    assert learned and not set(samples_of(calibration.heldout)) & learned


def test_text_that_is_all_held_out_is_refused(spec):
    batches = prepare_batches(TEXTS, spec, num_tokens=None).batches
    with pytest.raises(ValueError, match="not held out of the calibration data"):
        recovery_text(TEXTS, spec, 10**6, batches)


@pytest.mark.parametrize("budget", [20, 200, 500])
def test_the_budget_is_reached_by_the_last_sample_of_the_draw(spec, budget):
    text = recovery_text(TEXTS, spec, budget, [])
    drawn = prepare_batches(TEXTS, spec, num_tokens=budget)
    assert sorted(samples_of(text.batches)) == sorted(samples_of(drawn.batches))
    assert text.tokens_until(len(text)) == text.tokens == drawn.tokens


def test_batches_hold_texts_of_like_length_up_to_their_tokens(spec, monkeypatch):
    monkeypatch.setattr(module, "BATCH_TOKENS", 64)
    batches = recovery_text(TEXTS, spec, 10**6, []).batches
    widths = [batch["input_ids"].shape[1] for batch in batches]
    assert widths == sorted(widths) and len(batches) > 5
    assert all(batch["input_ids"].numel() <= 64 for batch in batches)


def test_a_batch_is_no_selection_by_content(spec):
    """Texts of one length come as they were drawn, and not sorted by their words."""
    ids = samples_of(recovery_text(TEXTS, spec, 10**6, []).batches)
    alike = [sample for sample in ids if len(sample) == max(map(len, ids))]
    assert len(alike) > 3 and alike != sorted(alike)


@pytest.mark.parametrize(
    ("budget", "steps"), [(1, 1), (3, 1), (30, 10), (55, 18), (80, 27), (10**6, 10 * MOST_PASSES)]
)
def test_short_text_is_passed_over_several_times(budget, steps, caplog):
    with caplog.at_level(logging.WARNING):
        text = RecoveryText(batches_of([2, 4] * 5), token_mask, budget, seed=0)
    assert len(text) == steps
    assert ("more passes bring nothing" in caplog.text) == (budget > 30 * MOST_PASSES)
    seen = [tuple(text[step]["batch"]["input_ids"].flatten().tolist()) for step in range(steps)]
    for start in range(0, steps, 10):
        part = seen[start : start + 10]
        assert len(set(part)) == len(part)


def test_the_order_depends_on_the_seed_and_the_pass_alone():
    def order(seed):
        text = RecoveryText(batches_of([1] * 10), token_mask, 20, seed)
        return [text[step]["batch"]["input_ids"].item() for step in range(20)]

    assert order(0) == order(0) != order(1)
    assert sorted(order(0)[:10]) == sorted(order(0)[10:]) and order(0)[:10] != order(0)[10:]


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_processes_share_the_samples_of_every_batch(processes, monkeypatch):
    text = RecoveryText(batches_of([1, 2, 7]), token_mask, 10, seed=0)
    whole = [text[step]["batch"]["input_ids"].flatten().tolist() for step in range(3)]
    parts = []
    for rank in range(processes):
        monkeypatch.setattr(module, "world_size", lambda: processes)
        monkeypatch.setattr(module.dist, "get_rank", lambda rank=rank: rank)
        parts.append([text[step] for step in range(3)])
    for step in range(3):
        taken = [
            entry for part in parts if part[step]["weight"] for entry in part[step]["batch"]["input_ids"].tolist()
        ]
        assert sorted(taken) == sorted([entry] for entry in whole[step])
        # The mean over the processes of their weighted means is that over all samples.
        means = [part[step]["weight"] * part[step]["batch"]["input_ids"].float().mean() for part in parts]
        assert sum(means) / processes == pytest.approx(sum(whole[step]) / len(whole[step]))


def test_ready_batches_are_taken_as_they_are(spec):
    given = prepare_batches(TEXTS, spec, num_tokens=None, batch_size=7).batches
    text = recovery_text(given, spec, 10**6, [given[2]])
    assert [batch["input_ids"].tolist() for batch in text.batches] == [
        batch["input_ids"].tolist() for index, batch in enumerate(given) if index != 2
    ]


def test_less_text_than_the_budget_is_told(spec, caplog):
    with caplog.at_level(logging.WARNING):
        recovery_text(TEXTS, spec, 10**6, [])
    assert "The recovery data holds" in caplog.text


def test_drawn_text_is_taken_whole_and_its_shortage_was_told(spec, caplog):
    drawn = load_calibration_dataset(Dataset.from_dict({"text": TEXTS}), spec, num_tokens=500)
    with caplog.at_level(logging.WARNING):
        text = recovery_text(drawn, spec, 900, [])
    assert sorted(samples_of(text.batches)) == sorted(tuple(ids) for ids in drawn["input_ids"])
    assert not caplog.records


def test_data_without_text_is_refused(spec):
    with pytest.raises(ValueError, match="The recovery data must hold tokens"):
        recovery_text([" ", ""], spec, 100, [])
