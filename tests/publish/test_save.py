"""A pruned model as a folder: what it holds, what is refused, and what stays after a failure."""

import json

import pytest
from prunes import interrupt_at, prune, settings, untouchable
from tiny import (
    FAMILIES,
    assert_same_outputs,
    batches_of,
    pad,
    ragged_samples,
    save_tiny,
    texts_of,
    tiny_model,
    tiny_tokenizer,
)
from transformers import AutoModelForSequenceClassification

from optimum_kprune import KPruner
from optimum_kprune.publish import save as publishing

SAMPLES = ragged_samples()


# Saved and loaded


@pytest.mark.parametrize("family", FAMILIES)
def test_saved_equals_loaded_in_the_same_process(family, tmp_path):
    pruner = prune(tiny_model(family))
    pruner.save_pretrained(tmp_path / "out")
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    assert type(loaded) is type(pruner.model)
    assert_same_outputs(pruner.model, loaded, pad(SAMPLES))


def test_the_folder_holds_all_that_is_needed(tmp_path):
    folder = tmp_path / "new" / "out"
    pruner = KPruner(tiny_model(), tiny_tokenizer())
    result = pruner.prune(settings(lambda_rep=0.3), texts_of(SAMPLES), save_directory=folder)
    expected = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    expected |= {
        "modeling_kprune.py",
        "kprune_map.py",
        "kprune_shrink.py",
        "kprune_config.json",
        "kprune_report.json",
        "README.md",
    }
    assert {path.name for path in folder.iterdir()} == expected
    assert [path.name for path in folder.parent.iterdir()] == ["out"]
    assert folder.stat().st_mode & 0o777 == 0o755
    settings_file = json.loads((folder / "kprune_config.json").read_text())
    assert settings_file == pruner.config.to_dict() and settings_file["lambda_rep"] == 0.3
    report = json.loads((folder / "kprune_report.json").read_text())
    assert report.keys() - result.to_dict().keys() == {"arguments"}
    assert {name: report[name] for name in result.to_dict()} == result.to_dict()
    assert [{name: entry[name] for name in ("layer", "kind", "kept", "total")} for entry in report["sublayers"]] == (
        result.kept
    )
    assert (report["parameters_before"], report["flops_removed"]) == (result.parameters_before, result.flops_removed)


# The output folder


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_an_output_folder_in_use_is_refused_before_any_work(kind, tmp_path):
    place = tmp_path / "out"
    if kind == "folder":
        place.mkdir()
    content = place / "mine.txt" if kind == "folder" else place
    content.write_text("precious")
    pruner = KPruner(tiny_model(), tiny_tokenizer())
    with pytest.raises(FileExistsError, match=r"new or empty.*out"):
        pruner.prune(settings(), untouchable(), save_directory=place)
    pruner.prune(settings(), batches_of(SAMPLES))
    with pytest.raises(FileExistsError, match="new or empty"):
        pruner.save_pretrained(place)
    assert content.read_text() == "precious"
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == [content.name]


@pytest.mark.parametrize("place", ["file/out", "."])
def test_an_output_folder_that_cannot_be_made_is_refused_before_any_work(place, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("precious")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OSError, match="The output folder must"):
        KPruner(tiny_model(), tiny_tokenizer()).prune(settings(), untouchable(), save_directory=place)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("name", ["empty", "link"])
def test_an_empty_folder_is_used(name, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    prune(tiny_model()).save_pretrained(tmp_path / name)
    assert (tmp_path / "empty" / "model.safetensors").is_file()


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
@pytest.mark.parametrize("exists", [True, False])
def test_a_save_that_fails_leaves_nothing_behind(error, exists, tmp_path, monkeypatch):
    def fail(folder, *report):
        assert (folder / "model.safetensors").is_file()
        raise error("disk full")

    monkeypatch.setattr(publishing, "write_report", fail)
    place = tmp_path / "out"
    if exists:
        place.mkdir()
    pruner = KPruner(tiny_model(), tiny_tokenizer())
    with pytest.raises(error, match="disk full"):
        pruner.prune(settings(), batches_of(SAMPLES), save_directory=place)
    assert list(tmp_path.rglob("*")) == ([place] if exists else [])
    monkeypatch.undo()
    pruner.save_pretrained(place)
    assert (place / "kprune_report.json").is_file()


def test_a_prune_that_fails_writes_nothing(tmp_path):
    teacher = tiny_model()
    teacher.bert.encoder.layer[2].register_forward_hook(interrupt_at(12, KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        KPruner(teacher).prune(settings(), batches_of(SAMPLES), save_directory=tmp_path / "new" / "out")
    assert not list(tmp_path.iterdir())


# The tokenizer


def test_a_tokenizer_that_is_given_is_used_and_saved(tmp_path):
    save_tiny(tmp_path / "dense", tokenizer=False)
    pruner = KPruner.from_pretrained(tmp_path / "dense", processing_class=tiny_tokenizer())
    pruner.prune(settings(), texts_of(SAMPLES), save_directory=tmp_path / "out")
    assert KPruner.from_pretrained(tmp_path / "out").processing_class("w1 w2")["input_ids"] == [0, 6, 7, 2]
