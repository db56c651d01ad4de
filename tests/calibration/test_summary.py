"""What is told of the calibration data: sizes, columns, the draw, a first sample."""

import logging

import pytest
from datasets import Dataset
from tiny_texts import CLS, SEP, make_texts, real_samples

from optimum_kprune.calibration.prepare import load_calibration_dataset, prepare_batches
from optimum_kprune.calibration.spec import InputSpec


def test_the_summary_tells_what_is_calibrated_on(spec, caplog):
    texts = make_texts(60)
    rows = Dataset.from_dict({"idx": range(60), "sentence": texts, "label": [0] * 60})
    with caplog.at_level(logging.INFO):
        split = prepare_batches(rows, spec, num_tokens=300, heldout_share=0.2)
    summary = split.summary
    fit, heldout = real_samples(split.batches), real_samples(split.heldout)
    assert summary.columns == ("sentence",)
    assert (summary.samples, summary.tokens) == (len(fit), sum(map(len, fit)))
    assert (summary.heldout_samples, summary.heldout_tokens) == (len(heldout), sum(map(len, heldout)))
    assert summary.mean_length == pytest.approx(sum(map(len, fit)) / len(fit))
    assert summary.draw == "drawn by seed 0 from 60 rows"
    drawn = real_samples(prepare_batches(rows, spec, num_tokens=1).batches)
    assert summary.first_sample == spec.processing_class.decode(drawn[0])
    assert summary.first_sample[6:-6] in texts
    for told in ("sentence", summary.first_sample, f"{summary.tokens:,} tokens", summary.draw, "held out"):
        assert told in caplog.text


def test_the_summary_of_what_was_drawn_names_its_columns_and_its_draw(spec):
    rows = Dataset.from_dict({"sentence": make_texts(60), "label": [0] * 60})
    drawn = load_calibration_dataset(rows, spec, num_tokens=300)
    summary = prepare_batches(drawn, InputSpec(spec.task, spec.processing_class, seed=5)).summary
    assert (summary.columns, summary.draw) == (("sentence",), "drawn by seed 0 from 60 rows")


def test_the_summary_cuts_long_samples_and_knows_no_text_without_a_tokenizer(spec):
    shown = prepare_batches([" ".join(["w1"] * 300)], spec).summary.first_sample
    assert shown == "[CLS] " + "w1 " * 64 + "w1..."
    ids = [{"input_ids": [[CLS, 5, SEP]]}]
    summary = prepare_batches(ids, InputSpec(spec.task)).summary
    assert summary.first_sample is None and "unknown without a tokenizer" in str(summary)
    assert prepare_batches(ids, spec).summary.first_sample == "[CLS] w0 [SEP]"


def test_the_summary_of_choices_counts_sequences(tokenizer):
    spec = InputSpec("multiple-choice", tokenizer)
    summary = prepare_batches([("w1", "w2", "w3 w4")], spec, num_tokens=None).summary
    assert (summary.samples, summary.tokens, summary.mean_length) == (1, 11, 5.5)
    assert summary.first_sample == "[CLS] w1 [SEP] w2 [SEP]"
