"""Calibration data as a whole: the budget, the order, what is measured, what is held out."""

from dataclasses import replace
from itertools import accumulate, pairwise

import pytest
import torch
from datasets import Dataset
from tiny_texts import CLS, MASK, SEP, batches_of, make_text, make_texts, make_tokenizer, real_samples, real_tokens

from optimum_kprune import KPruneConfig
from optimum_kprune.calibration.prepare import NUM_TOKENS, prepare_batches
from optimum_kprune.calibration.spec import InputSpec
from optimum_kprune.defaults import BATCH_SIZE, FULL_BATCH


@pytest.mark.parametrize("num_tokens", [1, 3, 4, 50, 100])
def test_budget_stops_after_the_sample_that_reaches_it(spec, num_tokens):
    samples = real_samples(batches_of(make_texts(), spec, num_tokens=num_tokens, batch_size=3, keep_order=True))
    lengths = [len(sample) for sample in samples]
    assert sum(lengths) >= num_tokens > sum(lengths[:-1])
    assert samples == real_samples(batches_of(make_texts(), spec, num_tokens=None, keep_order=True))[: len(samples)]


def test_the_default_budget_is_that_of_the_settings():
    assert NUM_TOKENS == KPruneConfig.num_tokens


def test_budget_counts_no_padding(spec):
    padded = Dataset.from_dict(spec.processing_class(make_texts(), padding="max_length", max_length=30))
    lengths = list(map(len, real_samples(batches_of(padded, spec, num_tokens=50, keep_order=True))))
    assert sum(lengths) >= 50 > sum(lengths[:-1])


def test_budget_of_batches_takes_whole_batches_and_no_more(spec):
    def endless():
        while True:
            yield spec.processing_class(["w1 w2", "w3"], padding=True, return_tensors="pt")

    assert len(batches_of(endless(), spec, num_tokens=14)) == 2
    assert len(batches_of(endless(), spec, num_tokens=15)) == 3


def test_a_short_supply_is_used_up_and_said(spec, caplog):
    assert real_tokens(batches_of(["w1", "w2 w3"], spec, num_tokens=100)) == 7
    assert "holds 7 tokens, less than the budget of 100" in caplog.text


def test_sorting_leaves_nearly_no_padding(spec):
    texts = make_texts(200)
    sizes = {}
    for keep_order in (False, True):
        batches = batches_of(texts, spec, num_tokens=None, batch_size=8, keep_order=keep_order)
        sizes[keep_order] = sum(batch["input_ids"].numel() for batch in batches)
        assert [len(batch["input_ids"]) for batch in batches] == [8] * 25
    real = real_tokens(batches)
    assert sizes[False] < 1.1 * real < 1.4 * real < sizes[True]


def test_sorting_depends_on_the_samples_alone_and_loses_nothing(spec):
    texts = make_texts()
    in_order = real_samples(batches_of(texts, spec, num_tokens=None, keep_order=True))
    expected = sorted(in_order, key=lambda ids: (len(ids), ids))
    assert real_samples(batches_of(texts, spec, num_tokens=None, batch_size=4)) == expected
    assert real_samples(batches_of(texts[::-1], spec, num_tokens=None)) == expected


@pytest.mark.parametrize("measure_tokens", [1, 60, 10_000, None])
def test_the_measured_part_is_spread_over_the_lengths_whatever_the_batches(spec, measure_tokens):
    texts = make_texts()
    everything = batches_of(texts, spec, num_tokens=None)
    parts = []
    for given, batch_size in ((texts, 3), (texts[::-1], 16)):
        split = prepare_batches(given, spec, num_tokens=None, measure_tokens=measure_tokens, batch_size=batch_size)
        parts.append(real_samples(split.batches[: sum(split.measured)]))
        assert sorted(real_samples(split.batches)) == sorted(real_samples(everything))
    assert parts[0] == parts[1]
    if measure_tokens == 60:
        assert 0.7 * 60 < sum(map(len, parts[0])) < 1.4 * 60
        longest = max(map(len, real_samples(everything)))
        assert max(map(len, parts[0])) > longest / 2 > min(map(len, parts[0]))
    elif measure_tokens != 1:
        assert len(parts[0]) == len(texts)


@pytest.mark.parametrize("parts", [1, 3, 1000])
def test_the_parts_that_are_measured_are_each_spread_over_the_lengths_whatever_the_batches(parts, spec):
    texts = make_texts()
    whole = prepare_batches(texts, spec, num_tokens=None, measure_tokens=200)
    expected = real_samples(whole.batches[: whole.measured[0]])
    for given, batch_size in ((texts, 3), (texts[::-1], 16)):
        options = {"num_tokens": None, "measure_tokens": 200, "measure_parts": parts, "batch_size": batch_size}
        split = prepare_batches(given, spec, **options)
        for halved in (split, split.halved()):
            ends = list(accumulate(halved.measured, initial=0))
            found = [real_samples(halved.batches[start:end]) for start, end in pairwise(ends)]
            assert found == [expected[part::parts] for part in range(min(parts, len(expected)))]
            assert sorted(real_samples(halved.batches)) == sorted(real_samples(whole.batches))


def test_batches_have_as_many_tokens_as_the_device_has_room_for_and_those_measured_half_as_many(spec):
    texts = ["w1 w2"] * 700  # four tokens each
    sizes = {}
    for tokens in (FULL_BATCH, 1024):
        room = replace(spec, batch_tokens=tokens)
        split = prepare_batches(texts, room, num_tokens=None, measure_tokens=1000, heldout_share=0.25)
        parts = split.batches[: split.measured[0]], split.batches[split.measured[0] :], split.heldout
        sizes[tokens] = [max(batch["input_ids"].numel() for batch in part) for part in parts]
    assert sizes == {FULL_BATCH: [256, 512, 512], 1024: [512, 1024, 700]}
    kept = prepare_batches(texts, spec, num_tokens=None, keep_order=True)
    assert {len(batch["input_ids"]) for batch in kept.batches[:-1]} == {BATCH_SIZE}


def test_batches_given_ready_are_measured_in_part(spec):
    given = [{"input_ids": torch.full((1, 4), number)} for number in range(8)]
    split = prepare_batches(given, spec, num_tokens=None, measure_tokens=16)
    assert [int(batch["input_ids"][0, 0]) for batch in split.batches[: sum(split.measured)]] == [0, 2, 4, 6]
    in_parts = prepare_batches(given, spec, num_tokens=None, measure_tokens=16, measure_parts=2)
    assert [int(batch["input_ids"][0, 0]) for batch in in_parts.batches] == [0, 4, 2, 6, 1, 3, 5, 7]
    assert in_parts.measured == [2, 2]
    assert len(split.batches) == 8


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_tokens": 0}, "`num_tokens` must be a whole number, 1 or above, or None. Got 0"),
        ({"num_tokens": 1e5}, "`num_tokens` must be .* Got 100000.0"),
        ({"batch_size": 0}, "`batch_size` must be a whole number, 1 or above, or None. Got 0"),
    ],
)
def test_bad_counts(options, message, spec):
    with pytest.raises(ValueError, match=message):
        batches_of(["w1"], spec, **options)


@pytest.mark.parametrize("share", [-0.1, 1.0, 2])
def test_bad_shares(share, spec):
    with pytest.raises(ValueError, match=rf"`heldout_share` must be a share in \[0, 1\). Got {share}"):
        prepare_batches(["w1"], spec, heldout_share=share)


@pytest.mark.parametrize("share", [0.05, 0.1, 0.3, 0.7])
@pytest.mark.parametrize("num_tokens", [200, None])
def test_the_last_of_the_draw_are_held_out_and_never_fitted(share, num_tokens, spec):
    texts = make_texts(60)
    options = {"num_tokens": num_tokens, "keep_order": True}
    drawn = real_samples(batches_of(texts, spec, **options))
    split = prepare_batches(texts, spec, heldout_share=share, **options)
    fit, heldout = real_samples(split.batches), real_samples(split.heldout)
    assert fit + heldout == drawn
    total = sum(map(len, drawn))
    # The next sample would exceed the share; so would three, of which none are held out.
    left_out = heldout or fit[-2:]
    assert len(left_out) >= 3 or not heldout
    assert sum(map(len, heldout)) <= share * total < sum(map(len, left_out)) + len(drawn[-len(left_out) - 1])
    measured = prepare_batches(texts, spec, heldout_share=share, measure_tokens=50, num_tokens=num_tokens)
    assert sorted(real_samples(measured.batches)) == sorted(fit)
    assert sorted(real_samples(measured.heldout)) == sorted(heldout)


def test_nothing_is_held_out_of_few_samples_or_by_default(spec):
    def heldout(data, share):
        return len(real_samples(prepare_batches(data, spec, num_tokens=None, heldout_share=share).heldout))

    texts = ["w1"] * 30
    assert [heldout(texts[:count], 0.1) for count in (1, 9, 10, 19, 20, 30)] == [0, 0, 0, 0, 0, 3]
    assert [heldout(texts, share) for share in (0, 0.07, 0.14)] == [0, 0, 4]
    batches = [{"input_ids": [[CLS, 5, SEP]]}] * 30
    assert [heldout(batches[:count], 0.1) for count in (1, 9, 10, 19, 20, 30)] == [0, 0, 0, 0, 0, 3]
    assert not prepare_batches(texts, spec).heldout


@pytest.mark.parametrize(("share", "expected"), [(0.1, [9, 19]), (0.25, [3, 7, 11, 15, 19]), (0.04, [])])
def test_every_nth_of_ready_batches_is_held_out(share, expected, spec):
    given = [{"input_ids": torch.full((2, 4), number)} for number in range(20)]
    split = prepare_batches(given, spec, num_tokens=None, heldout_share=share, measure_tokens=40)
    first, fit = ([int(batch["input_ids"][0, 0]) for batch in part] for part in (split.heldout, split.batches))
    assert first == expected
    assert sorted(fit + first) == list(range(20))


def test_batches_with_heldout_ones_reach_the_model_alike(tokenizer):
    spec = InputSpec("text-classification", tokenizer, model_inputs=["input_ids"])
    split = prepare_batches(make_texts(), spec, heldout_share=0.2)
    assert split.heldout and all(set(batch) == {"input_ids"} for batch in split.batches + split.heldout)


# Single rows


def test_rows_of_padding_are_no_samples():
    ids = torch.tensor([[2, 9, 3], [0, 0, 0], [2, 8, 3]])
    batch = {"input_ids": ids, "attention_mask": (ids > 0).long()}
    calibration = prepare_batches([batch], InputSpec("text-classification", make_tokenizer()), num_tokens=None)
    assert [found["input_ids"].tolist() for found in calibration.batches] == [[[2, 9, 3], [2, 8, 3]]]
    assert calibration.summary.samples == 2


def test_a_question_stays_whole_where_its_context_is_cut():
    question, context = make_text(12), make_text(15, seed=1)
    tokenizer = make_tokenizer()
    spec = InputSpec("question-answering", tokenizer, max_length=20)
    (sample,) = real_samples(batches_of([(question, context)], spec, num_tokens=None))
    wanted = tokenizer(question, context, truncation="only_second", max_length=20)["input_ids"]
    assert sample == wanted and sample[1:13] == tokenizer(question, add_special_tokens=False)["input_ids"]


def test_samples_of_one_length_are_masked_at_different_places():
    spec = InputSpec("fill-mask", make_tokenizer())
    samples = real_samples(batches_of([make_text(15, seed) for seed in range(8)], spec, num_tokens=None))
    assert len({tuple(place for place, token in enumerate(sample) if token == MASK) for sample in samples}) > 1
