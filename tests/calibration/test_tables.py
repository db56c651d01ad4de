"""What is given to calibrate on: every form that rows come in, and what is refused in words."""

import itertools
import logging

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from datasets import Dataset, DatasetDict, IterableDataset
from tiny_texts import batches_of, make_texts, real_samples, tokenized

from optimum_kprune.calibration import tables as calibration_tables
from optimum_kprune.calibration.prepare import prepare_batches
from optimum_kprune.calibration.spec import InputSpec

TEXTS = make_texts()


class ArrowFrame:
    """A data frame of another library, known by the protocol of Arrow alone."""

    columns = ("text", "label")

    def __init__(self, table):
        self.table = table

    def __iter__(self):
        return iter(self.columns)

    def __arrow_c_stream__(self, requested_schema=None):
        return self.table.__arrow_c_stream__(requested_schema)


RAW = Dataset.from_dict({"text": TEXTS, "label": [0] * len(TEXTS)})
FORMS = {
    "list": lambda: TEXTS,
    "generator": lambda: (text for text in TEXTS),
    "array": lambda: np.array(TEXTS),
    "series": lambda: pd.Series(TEXTS, index=range(7, 47)),
    "column": lambda: RAW["text"],
    "raw": lambda: RAW,
    "transformed": lambda: RAW.with_transform(lambda rows: {"nothing": rows["label"]}),
    "data frame": lambda: pd.DataFrame({"text": TEXTS, "label": 0}, index=range(7, 47)),
    "Arrow table": lambda: pa.table({"label": [0] * len(TEXTS), "text": TEXTS}),
    "other data frame": lambda: ArrowFrame(pa.table({"text": pa.array(TEXTS, pa.string_view())})),
    "dictionary": lambda: {"text": TEXTS, "label": [0] * len(TEXTS)},
    "stream": lambda: RAW.to_iterable_dataset(num_shards=4),
    "stream of unknown columns": lambda: RAW.to_iterable_dataset().map(lambda row: row),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("num_tokens", [150, None])
def test_forms_of_texts_agree(spec, form, num_tokens):
    given = prepare_batches(FORMS[form](), spec, num_tokens=num_tokens, keep_order=True)
    expected = prepare_batches(TEXTS, spec, num_tokens=num_tokens, keep_order=True)
    assert real_samples(given.batches) == real_samples(expected.batches)
    has_columns = isinstance(FORMS[form](), Dataset | dict | pd.DataFrame | pa.Table | ArrowFrame) or "stream" in form
    assert given.summary.columns == (("text",) if has_columns else None)


def test_tokenized_rows_need_no_text_columns(spec):
    data = tokenized(TEXTS, spec.processing_class, idx=list(range(len(TEXTS))), sentence=TEXTS)
    expected = sorted(spec.processing_class(TEXTS)["input_ids"])
    for form in (data, data.with_format("torch"), data.to_iterable_dataset(), spec.processing_class(TEXTS)):
        batches = batches_of(form, spec, num_tokens=None)
        assert sorted(real_samples(batches)) == expected
        assert all(set(batch) == {"input_ids", "token_type_ids", "attention_mask"} for batch in batches)


@pytest.mark.parametrize("form", ["texts", "stream"])
def test_what_can_only_be_read_on_is_drawn_from_in_blocks(spec, form, monkeypatch, caplog):
    monkeypatch.setattr(calibration_tables, "ROWS_PER_BLOCK", 10)
    seen = []

    def endless():
        for number in itertools.count():
            seen.append(f"w{number % 60}")
            yield seen[-1] if form == "texts" else {"text": seen[-1]}

    given = endless()
    if form == "stream":
        given = IterableDataset.from_generator(endless)
    with caplog.at_level(logging.INFO):
        samples = real_samples(batches_of(given, spec, num_tokens=45, keep_order=True))
    blocks = [spec.processing_class(seen[start : start + 10])["input_ids"] for start in (0, 10)]
    assert len(samples) == 15 and 20 <= len(seen) <= 22
    assert sorted(samples[:10]) == blocks[0] and samples[:10] != blocks[0]
    assert all(sample in blocks[1] for sample in samples[10:])
    assert "a stream, 10 rows at a time" in caplog.text


def test_the_parts_of_a_stream_come_in_an_order_of_the_seed(tokenizer, monkeypatch):
    monkeypatch.setattr(calibration_tables, "ROWS_PER_BLOCK", 10)
    stream = Dataset.from_dict({"text": [f"w{number}" for number in range(60)]}).to_iterable_dataset(num_shards=6)
    specs = [InputSpec("text-classification", tokenizer, seed=seed) for seed in range(4)]
    firsts = {str(sorted(real_samples(batches_of(stream, spec, num_tokens=30)))) for spec in specs}
    assert len(firsts) > 1


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "must hold samples. Got no items"),
        (iter([]), "must hold samples. Got no items"),
        (IterableDataset.from_generator(lambda: iter([])), "must hold samples. Got no items"),
        (Dataset.from_dict({"input_ids": []}), "must hold tokens. Got none: it has no rows"),
        (pd.DataFrame({"text": []}, dtype=str), "must hold tokens. Got none: it has no rows"),
        (["", " "], "must hold tokens. Got none"),
        ("w1 w2", r"Got str instead. Load it: get_calibration_dataset"),
        (None, r"must be a `datasets.Dataset`, .* Got NoneType instead"),
        (3, "Got int instead"),
        ([3], "must be texts, tuples of texts, or batches .* Got int"),
        (np.zeros((2, 2)), "must be texts, .* Got ndarray"),
        ({"text": "w1"}, r'Got dict instead. Pass a list of batches, or .*\{"text": \[...\]\}'),
        ({"input_ids": np.ones((1, 3))}, "Got dict instead. Pass a list of batches"),
        ({}, "Got dict instead"),
        ({"text": ["w1"], "label": []}, "all of one length. Got something else: .*label expected length 1"),
        ({0: ["w1"]}, "must be columns with names"),
        (pd.DataFrame({"text": ["w1", 3]}, dtype=object), "each of values of one type.*column text"),
        (DatasetDict({"a": RAW}), "Got DatasetDict instead. Pass one of its splits: a"),
        (pd.DataFrame({"label": [0, 1]}), "Cannot tell which columns hold the text.*'label'"),
        (pd.DataFrame({"a": ["w1"], "b": ["w2"]}), "Cannot tell which columns hold the text.*'a', 'b' could be meant"),
        (pd.Series(["w1", None]), "begins with an item of type str and holds an item of type"),
        (["w1", ("w1", "w2")], "begins with an item of type str and holds a tuple of str"),
        ([("w1", "w2"), "w1"], "begins with a tuple of str and holds an item of type str"),
        ([("w1", "w2"), ("w1",)], "all of one length. Got items of 1 and 2 texts"),
        ([("w1", "w2", "w3")], "one text column or two for a pair.* Got items of 3 texts"),
        ([("w1", 2)], "holds a tuple of int, str"),
        ([[1, 2]], "batches must be mappings"),
        (["w1", "w2 \ud800"], r"half of a surrogate pair, '\\ud800', in 'w2 \\ud800'"),
        ({"text": ["\udfff"]}, "half of a surrogate pair"),
        (pd.DataFrame({"text": ["w1 \ud83d"]}, dtype=object), "half of a surrogate pair"),
    ],
)
def test_what_is_no_data_is_refused(data, message, spec):
    with pytest.raises(ValueError, match=message):
        batches_of(data, spec)
