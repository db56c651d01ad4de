"""What becomes of single rows: those of padding, questions that are long, and masked tokens."""

import torch
from tiny_texts import MASK, batches_of, make_text, make_tokenizer, real_samples

from optimum_kprune.calibration.prepare import InputSpec, prepare_batches


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
