"""`optimum-cli kprune` with a target in place of a rate: what it finds, tells, publishes and refuses."""

import re

import pytest
from command_line import arguments_of, write_inputs
from huggingface_hub import ModelCard
from tiny import ragged_samples, same_state, texts_of
from transformers import AutoModelForSequenceClassification

from optimum_kprune import KPruneConfig, KPruner
from optimum_kprune.budget import NAMES

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a model, settings that hold much out, and data: with labels in a split, and without."""
    folder = write_inputs(tmp_path_factory.mktemp("search"))
    texts = texts_of(ragged_samples(160))
    (folder / "texts.txt").write_text("".join(f"{text}\n" for text in texts))
    (folder / "both").mkdir()
    for split, rows in (("train", texts), ("validation", texts[:40])):
        lines = "".join(f"{text},{row % 3}\n" for row, text in enumerate(rows))
        (folder / "both" / f"{split}.csv").write_text(f"sentence,label\n{lines}")
    KPruneConfig(heldout_share=0.4).save_pretrained(folder / "held")
    return folder


def search(command, place, out, data="texts.txt", **options):
    """Runs the command without a rate; returns what it exits with."""
    given = {"compression_rate": None, "num_tokens": 2000, "config": place / "held", **options}
    return command(*arguments_of(place, out, data, **given))


def test_without_labels_it_finds_what_python_finds(place, tmp_path, command, capsys, caplog):
    assert search(command, place, tmp_path / "out", max_drop="25%", checkpoint_dir=tmp_path / "progress") is None
    pruner = KPruner.from_pretrained(place / "model")
    calibration = pruner.get_calibration_dataset(place / "texts.txt", num_tokens=2000)
    pruner.search(calibration, max_drop="25%", config=KPruneConfig(num_tokens=2000, heldout_share=0.4))
    assert same_state(AutoModelForSequenceClassification.from_pretrained(tmp_path / "out"), pruner.model)
    assert KPruneConfig.from_pretrained(tmp_path / "out").budget == pruner.config.budget
    shown = capsys.readouterr().out
    assert "FLOPs removed" in shown and "(chosen)" in shown and "Least agreement allowed: 0.75" in shown
    assert "agreement 1 dense; 0.75 or more is allowed" in caplog.text and "Chosen: agreement" in caplog.text
    assert (tmp_path / "progress" / "figures.json").exists()


@pytest.mark.parametrize("where", ["split", "file"])
def test_a_figure_on_labelled_data_is_in_the_card(where, place, tmp_path, command, capsys):
    options = {"metric": "accuracy", "min_quality": 0.01}
    if where == "split":
        options["eval_split"] = "validation"
    else:
        options["eval_dataset"] = place / "both" / "validation.csv"
    assert search(command, place, tmp_path / "out", "both", **options) is None
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    pruner = KPruner.from_pretrained(place / "model")
    evaluate = pruner.evaluation_on(place / "both", dataset_split="validation")
    dense, pruned = (evaluate(each)["accuracy"] for each in (pruner.teacher, model))
    assert f"accuracy: {dense:.4g} dense, {pruned:.4g} pruned" in capsys.readouterr().out
    assert f"| accuracy | {dense:.4g} | {pruned:.4g} |" in ModelCard.load(tmp_path / "out" / "README.md").text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_drop": "a point"}, "`--max_drop` must be a number.*Got 'a point'"),
        ({"min_quality": 2.0, "metric": "accuracy", "data": "both"}, "`--min_quality` must be"),
        ({"minimise": "layers"}, "`--minimise` goes with `--max_drop` or `--min_quality`"),
        ({"max_drop": 0, "num_tokens": 2000}, "No model holds that was tried: agreement 1 dense"),
    ],
)
def test_what_cannot_be_found_is_told_in_one_line(options, message, place, tmp_path, command):
    exit_code = search(command, place, tmp_path / "out", **options)
    assert isinstance(exit_code, str) and exit_code.count("\n") == 0
    assert re.search(message, exit_code)
    assert not (tmp_path / "out").exists()


def test_one_figure_counts(place, tmp_path, command):
    given = [
        *arguments_of(place, tmp_path / "out", compression_rate=None, max_drop=0.1),
        "--metric",
        "a",
        "--metric",
        "b",
    ]
    assert "With `--max_drop`, one figure counts. Got a, b." in command(*given)


@pytest.mark.parametrize("other", [{"min_quality": 0.9}, {"compression_rate": 0.5}, {"budget": "9 MB"}])
def test_a_target_stands_alone(other, place, tmp_path, command, capsys):
    assert search(command, place, tmp_path / "out", max_drop=0.01, **other) == 2
    assert "not allowed with argument" in capsys.readouterr().err


def test_a_unit_is_minimised_and_a_budget_in_the_settings_gives_way(place, tmp_path, command, capsys):
    KPruneConfig(budget="0.1 MB", heldout_share=0.4).save_pretrained(tmp_path / "settings")
    options = {"max_drop": 0.9, "minimise": "layers", "config": tmp_path / "settings"}
    assert search(command, place, tmp_path / "out", **options) is None
    assert KPruneConfig.from_pretrained(tmp_path / "out").budget == "1 layer"
    assert "1 layer (chosen)" in capsys.readouterr().out


def test_the_units_of_the_command_are_those_of_python(command, capsys):
    assert command("kprune", "--help") == 0
    assert f"--minimise {{{','.join(NAMES)}}}" in capsys.readouterr().out
