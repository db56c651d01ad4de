"""`optimum-cli kprune` with a recovery: what it reads, tells, publishes and refuses, and that it resumes."""

import json

import pytest
from command_line import arguments_of, write_inputs
from datasets import Dataset
from tiny import ragged_samples, same_state, texts_of
from transformers import AutoModelForSequenceClassification

from optimum_kprune import KPruneConfig, KPruner
from optimum_kprune.recovery.trainer import RecoveryTrainer

pytestmark = pytest.mark.slow

RECOVERY = {"compression_rate": 0.6, "num_tokens": 600, "recovery_tokens": 1000}
# So that some weights are better than those of the prune.
GENTLE = {"heldout_share": 0.3, "recovery_learning_rate": 1e-4}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a model, and so many texts that some can be held out."""
    folder = write_inputs(tmp_path_factory.mktemp("recovery"))
    (folder / "texts.txt").write_text("".join(f"{text}\n" for text in texts_of(ragged_samples(200))))
    KPruneConfig(**GENTLE).save_pretrained(folder / "gentle")
    return folder


@pytest.fixture(autouse=True)
def small_batches(monkeypatch):
    """Some steps, from little text."""
    monkeypatch.setattr("optimum_kprune.recovery.text.BATCH_TOKENS", 128)


@pytest.fixture
def others(tmp_path):
    """A folder with texts of its own in two splits; one has a column of no use."""
    for seed, split in enumerate(("train", "test"), 5):
        rows = {"text": texts_of(ragged_samples(200, seed=seed)), "id": list(range(200))}
        Dataset.from_dict(rows).to_csv(tmp_path / "others" / f"{split}.csv")
    return tmp_path / "others"


def recovering(place, output, **options):
    return arguments_of(place, output, **{"config": place / "gentle"} | RECOVERY | options)


def report_in(folder):
    return json.loads((folder / "kprune_report.json").read_text())


def by_hand(place, drawn, **options):
    """The model that the same calls make in Python."""
    pruner = KPruner.from_pretrained(place / "model")
    calibration = pruner.get_calibration_dataset(place / "texts.txt", num_tokens=600)
    text = pruner.get_calibration_dataset(drawn, num_tokens=1000, **options)
    pruner.prune(KPruneConfig(**RECOVERY, **GENTLE), calibration, recovery_dataset=text)
    return pruner


def test_it_reads_more_of_the_calibration_data(place, tmp_path, command, capsys):
    assert command(*recovering(place, tmp_path / "out")) is None
    told, report = capsys.readouterr().out, report_in(tmp_path / "out")
    assert "Before the recovery: On " in told and "Recovered on " in told
    assert report["calibration"]["tokens"] <= 600 < report["recovery"]["text_tokens"]
    pruner = by_hand(place, place / "texts.txt")
    assert report["recovery"]["kept_step"] > 0 and report["heldout"] == vars(pruner.result.heldout)
    assert same_state(AutoModelForSequenceClassification.from_pretrained(tmp_path / "out"), pruner.model)


@pytest.mark.parametrize("split", [None, "test"])
def test_it_reads_data_of_its_own(split, place, others, tmp_path, command):
    options = {"recovery_dataset": others, "recovery_split": split}
    assert command(*recovering(place, tmp_path / "out", **options)) is None
    pruner = by_hand(place, others, dataset_split=split or "train")
    assert same_state(AutoModelForSequenceClassification.from_pretrained(tmp_path / "out"), pruner.model)
    assert str(others) not in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize("option", ["recovery_dataset", "recovery_config", "recovery_split"])
def test_data_without_a_budget_is_refused_before_any_work(option, place, tmp_path, command):
    message = command(*arguments_of(place, tmp_path / "out", model="/nowhere/model", **{option: "texts"}))
    assert "`--recovery_dataset` is for a recovery, and `--recovery_tokens` is 0" in message


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"recovery_tokens": -1}, "'recovery_tokens'"),
        ({"recovery_dataset": "/nowhere/data.csv"}, "`--recovery_dataset` must be"),
        ({"recovery_split": "nonsense"}, "Change `--recovery_split`"),
    ],
)
def test_a_mistake_is_told_in_one_line(given, told, place, tmp_path, command):
    message = command(*recovering(place, tmp_path / "out", **given))
    assert told in message and "\n" not in message and not (tmp_path / "out").exists()


def test_settings_of_a_recovery_are_read_from_a_file(place, tmp_path, command):
    KPruneConfig(**RECOVERY, **GENTLE).save_pretrained(tmp_path / "settings")
    unsaid = dict.fromkeys(RECOVERY)
    assert command(*arguments_of(place, tmp_path / "out", config=tmp_path / "settings", **unsaid)) is None
    assert KPruneConfig.from_pretrained(tmp_path / "out") == KPruneConfig(**RECOVERY, **GENTLE)
    assert report_in(tmp_path / "out")["recovery"]


def test_a_killed_recovery_is_ended_by_the_same_command(place, tmp_path, command, monkeypatch, caplog):
    whole = recovering(place, tmp_path / "whole")
    resumed = recovering(place, tmp_path / "resumed", checkpoint_dir=tmp_path / "progress")
    assert command(*whole) is None and report_in(tmp_path / "whole")["recovery"]["kept_step"] > 0
    step = RecoveryTrainer.training_step

    def dies(trainer, *args, **kwargs):
        if trainer.state.global_step == 3:
            raise KeyboardInterrupt
        return step(trainer, *args, **kwargs)

    monkeypatch.setattr(RecoveryTrainer, "training_step", dies)
    assert command(*resumed) == 130 and not (tmp_path / "resumed").exists()
    assert any((tmp_path / "progress").glob("recovery/checkpoint-*"))
    monkeypatch.undo()
    monkeypatch.setattr("optimum_kprune.recovery.text.BATCH_TOKENS", 128)
    assert command(*resumed) is None
    load = AutoModelForSequenceClassification.from_pretrained
    assert same_state(load(tmp_path / "whole"), load(tmp_path / "resumed"))
