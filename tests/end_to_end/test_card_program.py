"""The program in the card makes the model again, and the report holds the arguments that it is made of."""

import ast
import dataclasses
import json
import re

import datasets
import pytest
from tiny import ragged_samples, same_state, save_tiny, texts_of, tiny_model, tiny_tokenizer

from optimum_kprune import KPruneConfig, KPruner

pytestmark = pytest.mark.slow

CHANGED = {"compression_rate": 0.6, "ridge": 0.5, "gradient": "batch", "num_tokens": 300}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def folder(tmp_path):
    """A folder with a dense model and a file of texts."""
    save_tiny(tmp_path / "model")
    (tmp_path / "texts.csv").write_text(
        "other,words\n" + "".join(f"x,{text}\n" for text in texts_of(ragged_samples()))
    )
    return tmp_path


def program_in(folder):
    return re.search(r"## Reproduce\n\n```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)[1]


def arguments_in(folder):
    return json.loads((folder / "kprune_report.json").read_text())["arguments"]


def test_the_program_makes_the_model_again(folder, monkeypatch):
    pruner = KPruner.from_pretrained(folder / "model")
    options = {"text_columns": ["words"], "max_length": 9, "seed": 5, "num_tokens": 300}
    calibration = pruner.get_calibration_dataset(folder / "texts.csv", **options)
    pruner.prune(KPruneConfig(**CHANGED), calibration, batch_size=3, save_directory=folder / "out")
    program = program_in(folder / "out")
    assert len(program.strip().splitlines()) == 7 and "compression_rate=0.6" in program
    for name, path in {"model_or_path": "model", "dataset_name": "texts.csv"}.items():
        assert f"{name}=..." in program
        program = program.replace(f"{name}=...", f"{name}={str(folder / path)!r}")
    monkeypatch.chdir(folder)
    scope = {}
    exec(program.replace("path/to/this/folder", str(folder / "out")), scope)
    assert same_state(scope["pruner"].model, pruner.model)
    assert (folder / "pruned" / "config.json").is_file() and arguments_in(folder / "pruned") == arguments_in(
        folder / "out"
    )


def test_the_program_makes_a_recovered_model_again(folder, monkeypatch):
    monkeypatch.setattr("optimum_kprune.recovery.text.BATCH_TOKENS", 128)
    (folder / "texts.txt").write_text("\n".join(texts_of(ragged_samples(200))))
    pruner = KPruner.from_pretrained(folder / "model")
    calibration = pruner.get_calibration_dataset(folder / "texts.txt", num_tokens=1000)
    text = pruner.get_calibration_dataset(folder / "texts.txt", num_tokens=1000, seed=3)
    config = KPruneConfig(compression_rate=0.6, recovery_tokens=1000, heldout_share=0.3, recovery_learning_rate=1e-4)
    pruner.prune(config, calibration, recovery_dataset=text, save_directory=folder / "out")
    program = program_in(folder / "out")
    for name, path in {"model_or_path": "model", "dataset_name": "texts.txt"}.items():
        program = program.replace(f"{name}=...", f"{name}={str(folder / path)!r}")
    monkeypatch.chdir(folder)
    scope = {}
    exec(program.replace("path/to/this/folder", str(folder / "out")), scope)
    assert pruner.result.recovery.kept_step and same_state(scope["pruner"].model, pruner.model)
    recovered_on = arguments_in(folder / "out")["pruner.prune"]["recovery_dataset"]
    assert recovered_on == {"dataset_name": "...", "dataset_split": "train", "seed": 3, "num_tokens": 1000}
    recovery = json.loads((folder / "out" / "kprune_report.json").read_text())["recovery"]
    assert recovery == dataclasses.asdict(pruner.result.recovery)


def test_text_that_was_not_drawn_is_not_told(folder):
    pruner = KPruner.from_pretrained(folder / "model")
    texts = texts_of(ragged_samples(100))
    pruner.prune(KPruneConfig(heldout_share=0.3, recovery_tokens=100), texts, recovery_dataset=texts)
    pruner.save_pretrained(folder / "out")
    assert "pruner.prune(config, calibration, recovery_dataset=...)" in program_in(folder / "out")


def test_the_report_holds_the_arguments_without_paths_and_functions(folder):
    pruner = KPruner.from_pretrained(folder / "model", dtype="float32", revision="v1")
    rows = {"preprocess_function": lambda rows: {"input_ids": [[0, 5, 2]] * len(rows["words"])}}
    calibration = pruner.get_calibration_dataset(folder / "texts.csv", num_tokens=None, **rows)
    pruner.prune(KPruneConfig(num_tokens=None), calibration, save_directory=folder / "out")
    assert arguments_in(folder / "out") == {
        "KPruner.from_pretrained": {
            "model_or_path": "...",
            "task": "text-classification",
            "revision": "v1",
            "dtype": "float32",
        },
        "pruner.get_calibration_dataset": {
            "dataset_name": "...",
            "dataset_split": "train",
            "preprocess_function": "...",
            "seed": 0,
            "num_tokens": None,
        },
        "pruner.prune": {},
    }
    for name in ("README.md", "kprune_report.json", "config.json", "kprune_config.json"):
        assert str(folder) not in (folder / "out" / name).read_text()


def test_data_that_was_drawn_before_and_saved_is_known(folder):
    KPruner.from_pretrained(folder / "model").get_calibration_dataset(
        folder / "texts.csv", text_columns=["words"]
    ).save_to_disk(folder / "drawn")
    pruner = KPruner(tiny_model(), tiny_tokenizer(), encoder="")
    for data, drawn in ((datasets.load_from_disk(folder / "drawn"), True), (texts_of(ragged_samples()), False)):
        pruner.prune(KPruneConfig(), data, save_directory=folder / "out", overwrite=True)
        assert bool(arguments_in(folder / "out")["pruner.get_calibration_dataset"]) == drawn
        assert ("calibration = ...\n" in program_in(folder / "out")) != drawn


def test_names_on_the_hub_are_told(folder):
    model = tiny_model()
    model.config._name_or_path = "somebody/bert"
    pruner = KPruner(model, tiny_tokenizer(), prediction=lambda outputs: outputs.logits)
    calibration = pruner.get_calibration_dataset(folder / "texts.csv", text_columns=["words"])
    note = calibration.info.description.replace('"dataset_name": "..."', '"dataset_name": "nyu-mll/glue"')
    calibration.info.description = note
    text = pruner.get_calibration_dataset(folder / "texts.csv", text_columns=["words"])
    text.info.description = note.replace("nyu-mll/glue", "wikitext")
    options = {"recovery_dataset": text, "data_collator": lambda samples: tiny_tokenizer().pad(samples)}
    pruner.prune(KPruneConfig(heldout_share=0.3, recovery_tokens=100), calibration, **options)
    pruner.save_pretrained(folder / "out")
    card = (folder / "out" / "README.md").read_text()
    assert "of nyu-mll/glue, without their labels" in card and "datasets:\n- nyu-mll/glue\n- wikitext\n" in card
    program = program_in(folder / "out")
    calls = {
        ast.unparse(call.func): ast.unparse(call) for call in ast.walk(ast.parse(program)) if type(call) is ast.Call
    }
    assert calls["KPruner"] == "KPruner(model=..., processing_class=..., prediction=...)"
    assert calls["pruner.prune"] == "pruner.prune(config, calibration, recovery_dataset=text, data_collator=...)"
    assert "dataset_name='nyu-mll/glue', dataset_split='train', text_columns=['words']" in program
