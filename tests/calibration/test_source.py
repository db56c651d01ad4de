"""Where calibration data comes from: files, folders and the Hub."""

import gzip
import logging

import pandas as pd
import pyarrow as pa
import pytest
from datasets import Dataset, DatasetDict
from tiny_texts import make_texts, tokenized

from optimum_kprune.calibration import source as calibration_source
from optimum_kprune.calibration.prepare import load_calibration_dataset
from optimum_kprune.calibration.source import read_split

pytestmark = pytest.mark.slow


def write_arrow(data, path):
    table = data.data.table
    with pa.ipc.new_file(str(path), table.schema) as writer:
        writer.write_table(table)


def write(data, path):
    """Writes a data set as the suffix says."""
    suffix, _, compressed = path.name.partition(".")[2].partition(".")
    plain = path.with_suffix("") if compressed else path
    writers = {"parquet": data.to_parquet, "csv": data.to_csv, "json": data.to_json, "jsonl": data.to_json}
    writers |= {"ndjson": data.to_json, "tsv": lambda to: data.to_csv(to, sep="\t")}
    writers |= {"arrow": lambda to: write_arrow(data, to)}
    writers |= {"txt": lambda to: to.write_text("\n".join(data["text"]) + "\n")}
    writers[suffix](plain)
    if compressed:
        path.write_bytes(gzip.compress(plain.read_bytes()))
        plain.unlink()
    return path


@pytest.fixture
def raw():
    return Dataset.from_dict({"text": make_texts(50), "label": [0, 1] * 25})


SUFFIXES = ["parquet", "arrow", "csv", "tsv", "json", "jsonl", "ndjson", "txt"]
COMPRESSED = [f"{suffix}.gz" for suffix in SUFFIXES[2:]]


@pytest.mark.parametrize("suffix", SUFFIXES + COMPRESSED)
def test_files_of_every_format(raw, suffix, tmp_path, spec):
    path = write(raw, tmp_path / f"some.{suffix}")
    loaded = load_calibration_dataset(str(path), spec, num_tokens=None)
    assert set(loaded.column_names) == {"input_ids", "token_type_ids", "attention_mask"}
    expected = tokenized(make_texts(50), spec.processing_class)["input_ids"]
    assert sorted(loaded["input_ids"]) == sorted(expected)
    assert list(loaded["input_ids"]) != list(expected)
    for same in ([path], tmp_path):
        assert load_calibration_dataset(same, spec, num_tokens=None)["input_ids"][:] == loaded["input_ids"][:]


# Separators


TABLE = {"text": ["w1, w2; w3", "w4 | w5\tw6", 'w7 "w8"'], "label": [0, 1, 0]}


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("name", ["some.csv", "some.tsv", "some.csv.gz"])
@pytest.mark.parametrize("as_folder", [False, True])
def test_tables_are_read_with_the_separator_that_their_header_has(separator, name, as_folder, tmp_path, caplog):
    pd.DataFrame(TABLE).to_csv(tmp_path / name, sep=separator, index=False)
    with caplog.at_level(logging.INFO):
        table = read_split(tmp_path if as_folder else tmp_path / name, None, "train")
    assert table[:] == TABLE
    usual = "\t" if name.endswith("tsv") else ","
    assert (f"read with the separator {separator!r}" in caplog.text) == (separator != usual)


@pytest.mark.parametrize(
    ("header", "names"),
    [
        ("text", ["text"]),
        ('"text, raw";label', ["text, raw", "label"]),
        ('"text; raw",label', ["text; raw", "label"]),
        ("text,label;old", ["text", "label;old"]),
        ("\ufefftext;label", ["text", "label"]),
    ],
)
def test_headers_may_quote_separators(header, names, tmp_path):
    values = ["w1"] * len(names)
    separator = "," if header.startswith(('"text;', "text,")) else ";"
    (tmp_path / "some.csv").write_text(f"{header}\n{separator.join(values)}\n", encoding="utf-8")
    assert read_split(tmp_path / "some.csv", None, "train").column_names == names


def test_one_column_of_text_is_not_split_in_a_table_of_tabs(tmp_path):
    (tmp_path / "some.tsv").write_text("text\nw1, w2; w3\n")
    assert read_split(tmp_path / "some.tsv", None, "train")["text"][:] == ["w1, w2; w3"]


def test_tables_must_have_one_separator(tmp_path):
    for name, header in (("a.csv", "text,label\nw1,0\n"), ("b.csv", "text;label\nw1;0\n")):
        (tmp_path / name).write_text(header)
    with pytest.raises(ValueError, match=r"one separator. Got ',' in '.*a.csv' and ';' in '.*b.csv'. Convert"):
        read_split(tmp_path / "*.csv", None, "train")


# Folders and the Hub


def test_lists_and_globs_of_files(raw, tmp_path, spec, monkeypatch):
    write(raw.select(range(25)), tmp_path / "a.csv")
    write(raw.select(range(25, 50)), tmp_path / "b.csv")
    monkeypatch.chdir(tmp_path)
    forms = [["a.csv", "b.csv"], "*.csv", str(tmp_path / "*.csv"), ["a.csv", "b*"]]
    loaded = [load_calibration_dataset(form, spec, num_tokens=None)["input_ids"][:] for form in forms]
    assert len(loaded[0]) == 50 and all(samples == loaded[0] for samples in loaded)


def test_folder_with_splits(raw, tmp_path, spec):
    write(raw, tmp_path / "train.parquet")
    write(raw.select(range(5)), tmp_path / "validation.parquet")
    assert len(load_calibration_dataset(tmp_path, spec, num_tokens=None)) == 50
    assert len(load_calibration_dataset(tmp_path, spec, num_tokens=None, dataset_split="validation")) == 5
    assert len(load_calibration_dataset(tmp_path, spec, num_tokens=None, dataset_split="train[:7]")) == 7
    with pytest.raises(ValueError, match=r"split 'test' .*\['train', 'validation'\].*`dataset_split`"):
        load_calibration_dataset(tmp_path, spec, dataset_split="test")


def test_folders_saved_to_disk(raw, tmp_path, spec):
    raw.save_to_disk(tmp_path / "one")
    DatasetDict({"train": raw, "dev": raw.select(range(5))}).save_to_disk(tmp_path / "two")
    before = sorted(tmp_path.rglob("*"))
    one = load_calibration_dataset(tmp_path / "one", spec, num_tokens=60)
    two = load_calibration_dataset(tmp_path / "two", spec, num_tokens=60)
    assert one["input_ids"][:] == two["input_ids"][:]
    assert len(load_calibration_dataset(tmp_path / "two", spec, num_tokens=None, dataset_split="dev")) == 5
    assert sorted(tmp_path.rglob("*")) == before
    with pytest.raises(ValueError, match="`dataset_split` must be one of 'train', 'dev'"):
        load_calibration_dataset(tmp_path / "two", spec, dataset_split="test")


def test_hub_names_go_to_the_hub(raw, spec, monkeypatch):
    asked = []

    def load_dataset(*arguments, **options):
        asked.append((arguments, options))
        if arguments[0] == "no/data":
            raise ConnectionError("unreachable")
        return raw

    monkeypatch.setattr(calibration_source, "load_dataset", load_dataset)
    options = {"dataset_config_name": "v1.1", "dataset_split": "train[:9]"}
    load_calibration_dataset("owner/some.data-v1.1", spec, num_tokens=5, **options)
    assert asked == [(("owner/some.data-v1.1", "v1.1"), {"data_files": None, "split": "train[:9]"})]
    with pytest.raises(FileNotFoundError, match="'no/data' is no local folder or file, and it could not be read"):
        load_calibration_dataset("no/data", spec)


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("absent.csv", FileNotFoundError, r"'absent.csv', which does not exist"),
        ("./absent", FileNotFoundError, "does not exist"),
        ("a/b/c", FileNotFoundError, "does not exist"),
        ("*.feather", FileNotFoundError, "does not exist"),
        ("table.xlsx", ValueError, r"types .csv, .tsv, .* .parquet, .arrow, .*also as .gz\). Got 'table.xlsx'"),
        ("*", ValueError, "of the types"),
        (["some.csv", "some.txt"], ValueError, "must all have one format .* Got csv, text"),
        ("mixed", ValueError, "must all have one format"),
        ("strange", ValueError, r"'strange' must hold files .* Got 'notes.docx'"),
        ("empty", ValueError, "'empty' must hold files .* Got no files"),
        ("table.parquet.gz", ValueError, "Got 'table.parquet.gz' instead. Convert it"),
        ("header.csv", ValueError, "split 'train' of .*header.csv.* could not be read: it has no rows"),
        *((f"empty.{suffix}", ValueError, f"could not be read: 'empty.{suffix}' is empty") for suffix in SUFFIXES),
        (["some.csv", "empty.csv"], ValueError, "could not be read: 'empty.csv' is empty"),
        ("latin.txt", ValueError, "'latin.txt' is not in UTF-8 .*0xe9 .*iconv -f latin1"),
        ("latin.json", ValueError, "'latin.json' is not in UTF-8"),
        ("latin.csv.gz", ValueError, "'latin.csv.gz' is not in UTF-8"),
        (
            ["some.csv", "latin.csv"],
            ValueError,
            r"some.csv.*latin.csv.* could not be read: 'latin.csv' is not in UTF-8",
        ),
        ("blank.txt", ValueError, "must hold tokens. Got none"),
        ("", ValueError, "`dataset_name` must name a data set"),
        ([], ValueError, "`dataset_name` must name a data set"),
    ],
)
def test_sources_that_cannot_be_read(name, error, message, tmp_path, spec, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in ("mixed", "strange", "empty"):
        (tmp_path / folder).mkdir()
    contents = {
        "some.csv": "text\nw1\n",
        "some.txt": "w1\n",
        "header.csv": "text,label\n",
        "table.xlsx": "w1",
        "table.parquet.gz": "?",
    }
    more = {"blank.txt": "\n\n", "mixed/a.csv": "text\nw1\n", "mixed/a.txt": "w1\n"}
    for path, content in {**contents, **more, "strange/notes.docx": "?"}.items():
        (tmp_path / path).write_text(content)
    for suffix in SUFFIXES:
        (tmp_path / f"empty.{suffix}").touch()
    latin = "text,label\nétude,0\n".encode("latin-1")
    for path, content in {"csv": latin, "txt": latin, "json": latin, "csv.gz": gzip.compress(latin)}.items():
        (tmp_path / f"latin.{path}").write_bytes(content)
    with pytest.raises(error, match=message):
        load_calibration_dataset(name, spec)


def test_files_have_no_configurations_and_one_split(raw, tmp_path, spec):
    path = write(raw, tmp_path / "some.csv")
    with pytest.raises(ValueError, match="`dataset_config_name` must be None for files"):
        load_calibration_dataset(path, spec, dataset_config_name="mrpc")
    with pytest.raises(ValueError, match=r"split 'test' .*\['train'\]"):
        load_calibration_dataset(path, spec, dataset_split="test")


# Data sets that are loaded


def test_a_loaded_data_set_is_drawn_like_its_files(raw, tmp_path, spec):
    path = write(raw, tmp_path / "some.parquet")
    expected = load_calibration_dataset(path, spec, num_tokens=100)["input_ids"][:]
    for given in (raw, raw.to_pandas(), raw.to_iterable_dataset(), raw[:], raw.shuffle(1)):
        assert load_calibration_dataset(given, spec, num_tokens=100)["input_ids"][:] == expected
    with pytest.raises(ValueError, match=r"go with the name of a data set. Got a Dataset instead"):
        load_calibration_dataset(raw, spec, dataset_split="test")
    with pytest.raises(ValueError, match=r"Got DatasetDict instead. Pass one of its splits: train"):
        load_calibration_dataset(DatasetDict(train=raw), spec)
    with pytest.raises(ValueError, match=r"Batches cannot be drawn from again"):
        load_calibration_dataset(iter([{"input_ids": [[1]]}]), spec)
