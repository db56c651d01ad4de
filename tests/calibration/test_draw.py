"""The draw: by the seed and by what rows hold, whatever their order."""

import copy
import logging
import pickle

import pytest
import torch
from datasets import Dataset, concatenate_datasets, load_from_disk
from tiny_texts import CLS, SEP, batches_of, make_texts, real_samples, tokenized, word_id

from optimum_kprune.calibration import draw as calibration_draw
from optimum_kprune.calibration.draw import NOTE, Draw, drawn_order
from optimum_kprune.calibration.prepare import budget_of, load_calibration_dataset, prepare_batches
from optimum_kprune.calibration.spec import InputSpec

TEXTS = make_texts(60)


def forms_of(texts, tokenizer):
    """The same rows as texts, as a raw and as a tokenized data set, as pairs, and as batches of one."""
    encodings = [tokenizer([text], return_tensors="pt") for text in texts]
    raw = Dataset.from_dict({"label": range(len(texts)), "text": texts})
    return [texts, raw, tokenized(texts, tokenizer), [(text, "w1") for text in texts], encodings]


def spec_of(tokenizer, seed=0):
    return InputSpec("text-classification", tokenizer, seed=seed)


# Which rows


def test_rows_that_lie_sorted_are_mixed(tokenizer):
    """A tenth of the tokens, of rows of one length: 40 are drawn, and the chance of fewer than 8 of a kind is 1e-4."""
    kinds = ["w1 w2", "w3 w4"]
    texts = [f"{kind} w{number % 60}" for kind in kinds for number in range(200)]
    for form in forms_of(texts, tokenizer)[:3]:
        samples = real_samples(batches_of(form, spec_of(tokenizer), num_tokens=200))
        assert len(samples) == 40
        assert 8 <= sum(sample[1] == word_id("w1") for sample in samples) <= 32


def test_equal_rows_are_drawn_like_others(tokenizer):
    texts = ["w1"] * 2000 + [f"w{number}" for number in range(2, 60)] * 10
    samples = real_samples(batches_of(texts, spec_of(tokenizer), num_tokens=900))
    share = sum(sample == [CLS, word_id("w1"), SEP] for sample in samples) / len(samples)
    assert abs(share - 2000 / 2580) < 0.1


def test_the_seed_changes_the_draw_and_the_order_of_the_rows_does_not(tokenizer):
    forms, others = (forms_of(texts, tokenizer) for texts in (TEXTS, TEXTS[::-1]))
    for form, other in zip(forms, others, strict=True):
        draws = []
        for data, seed in ((form, 0), (other, 0), (form, 1), (form, 2**70)):
            draws.append(sorted(real_samples(batches_of(data, spec_of(tokenizer, seed), num_tokens=150))))
        assert draws[0] == draws[1]
        assert draws[0] != draws[2] != draws[3] != draws[0]
        batches, reordered = (
            prepare_batches(data, spec_of(tokenizer), num_tokens=300, measure_tokens=100, heldout_share=0.2)
            for data in (form, other)
        )
        if form is not forms[-1]:  # Batches that are ready stay in their order.
            for first, second in zip(
                batches.batches + batches.heldout, reordered.batches + reordered.heldout, strict=True
            ):
                assert all(torch.equal(first[name], second[name]) for name in first)


def test_every_row_is_as_likely_as_any_other():
    """In 400 draws of 5 out of 20 rows, each is expected 100 times, with a deviation of 9."""
    counts = [0] * 20
    for seed in range(400):
        for place in drawn_order(range(20), seed)[:5]:
            counts[place] += 1
    assert all(60 < count < 140 for count in counts)


@pytest.mark.parametrize("name", ["label", "idx"])
def test_columns_that_are_not_read_do_not_count(tokenizer, name):
    first, second = (Dataset.from_dict({"text": TEXTS, name: values}) for values in (range(60), [7] * 60))
    draws = [real_samples(batches_of(data, spec_of(tokenizer), num_tokens=100)) for data in (first, second)]
    assert draws[0] == draws[1]


def test_labels_go_with_their_samples_and_do_not_count(tokenizer):
    """They reach the collator; the draw does not see them."""
    seen = []

    def collate(samples):
        seen.extend((tuple(sample["input_ids"]), sample.pop("label")) for sample in samples)
        return tokenizer.pad(samples, return_tensors="pt")

    numbers = [len(text) for text in TEXTS]
    for labels in (numbers, [-number for number in numbers]):
        data = tokenized(TEXTS, tokenizer, label=labels)
        batches_of(data, spec_of(tokenizer), num_tokens=100, data_collator=collate)
    half = len(seen) // 2
    by_text = {tuple(ids): number for ids, number in zip(tokenizer(TEXTS)["input_ids"], numbers, strict=True)}
    assert [ids for ids, _ in seen[:half]] == [ids for ids, _ in seen[half:]]
    assert all(label == by_text[ids] for ids, label in seen[:half])
    assert all(label == -by_text[ids] for ids, label in seen[half:])


def test_what_fits_in_the_budget_is_used_whole(tokenizer):
    everything = sorted(tokenizer(TEXTS)["input_ids"])
    for num_tokens in (None, 10_000):
        for form in forms_of(TEXTS, tokenizer)[:3]:
            samples = real_samples(batches_of(form, spec_of(tokenizer), num_tokens=num_tokens))
            assert sorted(samples) == everything


def test_of_very_many_rows_some_are_chosen_by_their_places_first(tokenizer, monkeypatch, caplog):
    monkeypatch.setattr(calibration_draw, "MOST_ROWS", 20)
    with caplog.at_level(logging.INFO):
        draws = [
            sorted(real_samples(batches_of(TEXTS, spec_of(tokenizer, seed), num_tokens=None))) for seed in (0, 0, 1)
        ]
    assert draws[0] == draws[1] != draws[2] and len(draws[0]) == 20
    assert "Of 60 rows of calibration data, 20 are chosen by their places first" in caplog.text


def test_only_what_the_budget_asks_for_is_tokenized(tokenizer):
    seen = []

    def preprocess(rows):
        seen.extend(rows["text"])
        return tokenizer(rows["text"])

    spec = InputSpec("text-classification", preprocess_function=preprocess)
    assert len(load_calibration_dataset(Dataset.from_dict({"text": ["w1"] * 2000}), spec, num_tokens=30)) == 10
    assert len(seen) < 500


def test_batches_of_a_list_are_drawn_and_stay_in_their_order(tokenizer):
    batches = [{"input_ids": torch.full((2, 5), number)} for number in range(20)]
    drawn = {seed: batches_of(batches, spec_of(tokenizer, seed), num_tokens=60) for seed in range(5)}
    numbers = {seed: [int(batch["input_ids"][0, 0]) for batch in taken] for seed, taken in drawn.items()}
    assert all(len(taken) == 6 and taken == sorted(taken) for taken in numbers.values())
    assert len(set(map(tuple, numbers.values()))) == 5
    whole = batches_of(batches, spec_of(tokenizer, 1), num_tokens=None)
    assert [int(batch["input_ids"][0, 0]) for batch in whole] == list(range(20))


def test_batches_that_come_are_taken_as_they_come_and_the_log_says_so(tokenizer, caplog):
    batches = ({"input_ids": torch.full((2, 5), number)} for number in range(20))
    with caplog.at_level(logging.INFO):
        taken = batches_of(batches, spec_of(tokenizer, 1), num_tokens=60)
    assert [int(batch["input_ids"][0, 0]) for batch in taken] == list(range(6))
    assert "batches in the order in which they come" in caplog.text


# What was drawn


@pytest.fixture
def drawn(tokenizer):
    return load_calibration_dataset(Dataset.from_dict({"text": TEXTS}), spec_of(tokenizer), num_tokens=150)


def test_same_seed_same_samples_and_a_prefix_for_a_smaller_budget(tokenizer):
    data = Dataset.from_dict({"text": TEXTS})
    specs = [InputSpec("fill-mask", tokenizer, seed=seed) for seed in (0, 0, 1)]
    first, again, other = (load_calibration_dataset(data, spec, num_tokens=100)["input_ids"][:] for spec in specs)
    smaller = load_calibration_dataset(data, specs[0], num_tokens=40)["input_ids"][:]
    assert first == again != other
    assert smaller == first[: len(smaller)] and len(smaller) < len(first)
    assert sum(map(len, first)) >= 100 > sum(map(len, first[:-1]))


def test_what_was_drawn_is_what_would_be_drawn(drawn, tokenizer):
    batches = batches_of(Dataset.from_dict({"text": TEXTS[::-1]}), spec_of(tokenizer), num_tokens=150)
    assert sorted(real_samples(batches)) == sorted(drawn["input_ids"])


def test_what_was_drawn_is_used_whole_whatever_the_seed_and_the_batches(drawn, tokenizer):
    for batch_size, seed in ((2, 0), (16, 3)):
        batches = batches_of(drawn, spec_of(tokenizer, seed), num_tokens=150, batch_size=batch_size)
        assert sorted(real_samples(batches)) == sorted(drawn["input_ids"])


def test_there_is_one_budget(tokenizer, caplog):
    data = Dataset.from_dict({"text": TEXTS})
    for num_tokens in (150, 100_000, None):
        drawn = load_calibration_dataset(data, spec_of(tokenizer), num_tokens=num_tokens)
        caplog.clear()
        summary = prepare_batches(drawn, spec_of(tokenizer)).summary
        warnings = [record for record in caplog.records if record.levelno >= logging.WARNING]
        assert summary.samples == len(drawn) and not warnings
        assert budget_of(drawn, 100_000) == num_tokens == budget_of(drawn, num_tokens)
        with pytest.raises(ValueError, match=rf"one budget of tokens: .* drawn with, {num_tokens}, .* Got 99 instead"):
            prepare_batches(drawn, spec_of(tokenizer), num_tokens=99)
    assert budget_of(data, 99) == 99 and budget_of(TEXTS, None) is None


def test_a_shortage_is_told_once(tokenizer, caplog):
    drawn = load_calibration_dataset(Dataset.from_dict({"text": ["w1"]}), spec_of(tokenizer), num_tokens=50)
    prepare_batches(drawn, spec_of(tokenizer))
    messages = [record.getMessage() for record in caplog.records if "budget" in record.getMessage()]
    assert messages == ["The data set holds 3 tokens, less than the budget of 50."]


def test_copies_and_saved_folders_are_known_and_parts_are_not(drawn, tmp_path):
    drawn.save_to_disk(tmp_path / "drawn")
    same = [copy.deepcopy(drawn), pickle.loads(pickle.dumps(drawn)), load_from_disk(tmp_path / "drawn")]
    same += [drawn.with_format("torch"), drawn.remove_columns("token_type_ids"), drawn.shuffle(1)]
    draw = Draw.of(drawn)
    arguments = {"dataset_name": "...", "dataset_split": "train", "seed": 0, "num_tokens": 150}
    assert draw == Draw(("text",), "drawn by seed 0 from 60 rows", arguments)
    assert all(Draw.of(data) == draw for data in same)
    others = [
        drawn.select(range(3)),
        concatenate_datasets([drawn, drawn]),
        Dataset.from_dict(drawn[:]),
        drawn[:],
        TEXTS,
    ]
    other = Dataset.from_dict({"input_ids": [[1]]})
    Draw(None, "otherwise", {"num_tokens": 7}).note(other)
    others.append(concatenate_datasets([drawn, other.cast(drawn.select_columns("input_ids").features)]))
    assert all(Draw.of(data) is None for data in others)


@pytest.mark.parametrize("note", ["null", "5", "[1, 2, 3]", '[6, 150, 5, "how"]', "[" * 100_000])
def test_a_note_that_is_no_draw_is_none(note, drawn):
    data = copy.deepcopy(drawn)
    data.info.description = NOTE + note
    assert Draw.of(data) is None
