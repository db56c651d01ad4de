"""A prune that ends early, at any point, goes on from its checkpoint and ends with the same model, bit for bit."""

import json
import shutil

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny import (
    FAMILIES,
    HIDDEN,
    LAYERS,
    batches_of,
    ragged_samples,
    same_state,
    samples_for,
    tiny_model,
    tiny_tokenizer,
)
from transformers import AutoModelForSequenceClassification

from optimum_kprune import KPruneConfig, KPruner
from optimum_kprune.prune import checkpoint, scores
from optimum_kprune.prune.checkpoint import IDENTITY_NAME, Checkpoint
from optimum_kprune.prune.pair import Pair

pytestmark = pytest.mark.slow

SUBLAYERS = 2 * LAYERS


class Killed(BaseException):
    """Stands in for the end of the process: nothing catches it."""


def settings(**overrides):
    return KPruneConfig(**{"compression_rate": 0.6, "num_tokens": None, "measure_tokens": None, **overrides})


def prune(folder, model=None, batches=None, **overrides):
    model = tiny_model() if model is None else model
    one = KPruner(model, tiny_tokenizer())
    one.prune(settings(**overrides), batches or batches_of(samples_for(model)), checkpoint_dir=folder)
    return one


def killed_after(monkeypatch, sublayers, folder, **arguments):
    """Prunes until that many sublayers are written."""
    write = Checkpoint.write

    def write_or_die(self, index, *rest):
        if index == sublayers:
            raise Killed
        write(self, index, *rest)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Checkpoint, "write", write_or_die)
        prune(folder, **arguments)


def without_seconds(result):
    return [{**vars(entry), "seconds": None} for entry in result.sublayers]


@pytest.mark.parametrize("finished", range(SUBLAYERS))
def test_a_prune_goes_on_from_every_sublayer_to_the_same_bits(finished, tmp_path, monkeypatch):
    killed_after(monkeypatch, finished, tmp_path / "progress")
    measured = []
    measure = scores.measure_knowledge
    monkeypatch.setattr(scores, "measure_knowledge", lambda *args: measured.append(args) or measure(*args))
    alone, resumed = prune(None), prune(tmp_path / "progress")
    assert len(measured) == SUBLAYERS + SUBLAYERS - finished
    assert same_state(alone.model, resumed.model)
    assert without_seconds(alone.result) == without_seconds(resumed.result)
    assert resumed.model.config.kprune == alone.model.config.kprune


@pytest.mark.parametrize(
    ("family", "overrides"),
    [
        *((family, {}) for family in FAMILIES if family != "bert"),
        ("bert", {"measure_every": 4}),
        ("bert", {"compression_rate": 0.95}),
        ("bert", {"memory_budget": 0}),
        ("bert", {"tuning": False}),
        ("bert", {"gradient": "batch", "knowledge": "divergence"}),
    ],
)
def test_families_and_settings_resume_alike(family, overrides, tmp_path, monkeypatch):
    model = tiny_model(family, "token classification")
    for finished in (2, 3):
        killed_after(monkeypatch, finished, tmp_path / "progress", model=model, **overrides)
    resumed = prune(tmp_path / "progress", model, **overrides)
    assert same_state(prune(None, model, **overrides).model, resumed.model)


def test_scores_of_several_measurements_resume_too(tmp_path, monkeypatch):
    model = tiny_model(num_hidden_layers=7)
    killed_after(monkeypatch, 5, tmp_path / "progress", model=model, measure_tokens=100)
    resumed = prune(tmp_path / "progress", model, measure_tokens=100)
    assert same_state(prune(None, model, measure_tokens=100).model, resumed.model)


def test_a_finished_prune_is_taken_from_its_checkpoint(tmp_path, monkeypatch):
    first = prune(tmp_path / "progress")
    monkeypatch.setattr(scores, "measure_knowledge", pytest.fail)
    monkeypatch.setattr(Pair, "advance_teacher", pytest.fail)
    assert same_state(first.model, prune(tmp_path / "progress").model)


def test_a_model_pruned_before_resumes_too(tmp_path, monkeypatch):
    model = prune(None, compression_rate=0.9).model
    assert any(not entry["kept"] for entry in model.config.kprune["kept"])
    killed_after(monkeypatch, 4, tmp_path / "progress", model=model)
    assert same_state(prune(None, model).model, prune(tmp_path / "progress", model).model)


def test_a_sweep_resumes_in_the_rate_that_was_in_work(tmp_path, monkeypatch):
    rates, batches = [0.4, 0.7], batches_of(ragged_samples())
    writes = []
    write = Checkpoint.write

    def write_or_die(self, *rest):
        if len(writes) == SUBLAYERS + 2:
            raise Killed
        writes.append(self)
        write(self, *rest)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Checkpoint, "write", write_or_die)
        KPruner(tiny_model()).sweep(rates, settings(), batches, checkpoint_dir=tmp_path)
    assert sorted(folder.name for folder in tmp_path.iterdir()) == ["0.4", "0.7"]
    resumed = KPruner(tiny_model()).sweep(rates, settings(), batches, checkpoint_dir=tmp_path)
    alone = KPruner(tiny_model()).sweep(rates, settings(), batches)
    assert all(same_state(one.model, other.model) for one, other in zip(resumed, alone, strict=True))


@pytest.mark.parametrize(
    ("arguments", "difference"),
    [
        ({"compression_rate": 0.5}, "compression_rate is 0.5 here and was 0.6"),
        ({"seed": 3, "ridge": 0.5}, "ridge is 0.5 here and was 0.01; seed is 3 here and was 0"),
        ({"model": tiny_model(seed=1)}, "the model is another"),
        ({"batches": batches_of(ragged_samples(seed=1))}, "the calibration data is another"),
    ],
)
def test_the_checkpoint_of_another_prune_is_refused(arguments, difference, tmp_path, monkeypatch):
    killed_after(monkeypatch, 2, tmp_path)
    files = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    with pytest.raises(ValueError, match="belongs to another prune") as caught:
        prune(tmp_path, **arguments)
    assert difference in str(caught.value)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == files


def test_how_states_are_held_may_change(tmp_path, monkeypatch):
    killed_after(monkeypatch, 2, tmp_path)
    assert same_state(prune(tmp_path, memory_budget=0).model, prune(None).model)


def test_how_many_samples_share_a_batch_may_change_unless_that_counts(tmp_path, monkeypatch):
    """It depends on the memory that is free."""
    others = batches_of(ragged_samples(), size=7, extra=2)
    killed_after(monkeypatch, 2, tmp_path / "sample")
    assert prune(tmp_path / "sample", batches=others).result.kept == prune(None).result.kept
    killed_after(monkeypatch, 2, tmp_path / "batch", gradient="batch")
    with pytest.raises(ValueError, match="the calibration data is another"):
        prune(tmp_path / "batch", batches=others, gradient="batch")


def test_a_place_that_is_no_folder_is_named(tmp_path):
    file = tmp_path / "file"
    file.write_text("kept")
    with pytest.raises(OSError, match=r"`checkpoint_dir` must be a folder that can be written. Got '.*file'"):
        Checkpoint(file, {})
    assert file.read_text() == "kept"


def test_a_folder_of_something_else_is_refused_and_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(ValueError, match="holds something else"):
        prune(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("name", [IDENTITY_NAME, "sublayer-001.safetensors"])
def test_a_broken_checkpoint_is_named(name, tmp_path, monkeypatch):
    killed_after(monkeypatch, 3, tmp_path)
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-9])
    with pytest.raises(OSError, match=f"{name}.*cannot be read.*Remove"):
        prune(tmp_path)


def test_a_sublayer_of_another_prune_or_place_is_refused(tmp_path):
    """Of the right shapes: it would have made another model, without a word."""
    for name, rate in (("one", 0.6), ("other", 0.62)):
        prune(tmp_path / name, compression_rate=rate)
    file = tmp_path / "one" / "sublayer-002.safetensors"
    for source in ("other/sublayer-002.safetensors", "one/sublayer-004.safetensors"):
        file.write_bytes((tmp_path / source).read_bytes())
        with pytest.raises(OSError, match=r"sublayer-002.*not what this prune wrote"):
            prune(tmp_path / "one")


@pytest.mark.parametrize(
    "damage",
    [
        lambda tensors: {name: torch.zeros_like(tensor) for name, tensor in tensors.items()},
        lambda tensors: {name: tensor.half() for name, tensor in tensors.items()},
        lambda tensors: {**tensors, "output.LayerNorm.weight": torch.zeros(HIDDEN)},
        lambda tensors: {**tensors, "output.dense.__class__": torch.zeros(1)},
        lambda tensors: {},
    ],
)
def test_a_sublayer_that_was_changed_is_refused(damage, tmp_path):
    prune(tmp_path)
    file = tmp_path / "sublayer-001.safetensors"
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
    save_file(damage(load_file(file)), file, metadata)
    with pytest.raises(OSError, match=r"sublayer-001.*not what this prune wrote"):
        prune(tmp_path)


def test_progress_of_another_version_is_refused(tmp_path, monkeypatch):
    killed_after(monkeypatch, 2, tmp_path)
    identity = json.loads((tmp_path / IDENTITY_NAME).read_text())
    identity["versions"]["torch"] = "1.0"
    (tmp_path / IDENTITY_NAME).write_text(json.dumps(identity))
    with pytest.raises(ValueError, match=r"torch is '.*' here and was '1\.0'"):
        prune(tmp_path)


@pytest.mark.parametrize("point", range(0, SUBLAYERS + 1, 2))
def test_a_write_that_is_cut_off_is_as_if_it_had_not_begun(point, tmp_path, monkeypatch):
    """Killed inside of the write: what is left of it is a temporary file, at most."""
    writes = []
    write = checkpoint.write_atomically

    def cut_off(path, data):
        writes.append(path)
        if len(writes) == point + 1:
            (path.parent / f".{path.name}-cut-off").write_bytes(data[: len(data) // 2])
            raise Killed
        write(path, data)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(checkpoint, "write_atomically", cut_off)
        prune(tmp_path / "progress")
    assert same_state(prune(None).model, prune(tmp_path / "progress").model)
    shutil.rmtree(tmp_path / "progress")


@pytest.mark.parametrize("moved", [True, False])
def test_the_same_call_ends_what_was_killed_while_saving(moved, tmp_path, monkeypatch):
    """Before the folder of the second rate has got its name, and after."""
    arguments = dict(save_directory=tmp_path / "models", checkpoint_dir=tmp_path / "progress")
    rates, batches = [0.4, 0.7], batches_of(ragged_samples())
    saves = []
    save = KPruner.save_pretrained

    def save_or_die(self, *rest, **options):
        saves.append(self)
        if len(saves) < 2 or moved:
            save(self, *rest, **options)
        if len(saves) == 2:
            raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(KPruner, "save_pretrained", save_or_die)
        KPruner(tiny_model()).sweep(rates, settings(), batches, **arguments)
    resumed = KPruner(tiny_model()).sweep(rates, settings(), batches, **arguments)
    for rate, one in zip(rates, resumed, strict=True):
        loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "models" / str(rate))
        assert same_state(one.model, loaded)
    with pytest.raises(FileExistsError):
        KPruner(tiny_model()).prune(settings(), batches, save_directory=tmp_path / "models" / "0.4")


# Sweeps, in which rates share knowledge

RATES = [0.8, 0.3]


def sweep(folder, rates=RATES, share_knowledge=True):
    batches = batches_of(ragged_samples())
    return KPruner(tiny_model()).sweep(
        rates, settings(), batches, checkpoint_dir=folder, share_knowledge=share_knowledge
    )


def swept_until(monkeypatch, files, folder):
    """Sweeps until that many sublayers are written, of both rates together."""
    written = []
    write = Checkpoint.write

    def write_or_die(self, *args):
        if len(written) == files:
            raise Killed
        written.append(args)
        write(self, *args)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Checkpoint, "write", write_or_die)
        sweep(folder)


@pytest.fixture(scope="module")
def whole_sweep(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    return folder, sweep(folder)


@pytest.mark.parametrize("files", [1, 2, 5, 2 * SUBLAYERS - 1])
def test_a_sweep_goes_on_with_every_rate_from_where_it_was(files, whole_sweep, tmp_path, monkeypatch):
    """Of an odd number of files, one rate is ahead: what was measured for both lies in its checkpoint."""
    swept_until(monkeypatch, files, tmp_path)
    measured = []
    measure = scores.measure_knowledge
    monkeypatch.setattr(scores, "measure_knowledge", lambda *args: measured.append(args) or measure(*args))
    for resumed, expected in zip(sweep(tmp_path), whole_sweep[1], strict=True):
        assert same_state(resumed.model, expected.model)
        assert without_seconds(resumed.result) == without_seconds(expected.result)
    assert len(measured) == SUBLAYERS - (files + 1) // 2


@pytest.mark.parametrize("rate", ["0.3", "0.8"])
def test_a_rate_that_has_fallen_behind_takes_what_was_measured_from_the_other(
    rate, whole_sweep, tmp_path, monkeypatch
):
    """Also the one on whose student knowledge is measured."""
    folder, expected = whole_sweep
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    for index in range(2, SUBLAYERS):
        (tmp_path / rate / f"sublayer-{index:03}.safetensors").unlink()
    monkeypatch.setattr(scores, "measure_knowledge", pytest.fail)
    assert all(same_state(found.model, each.model) for found, each in zip(sweep(tmp_path), expected, strict=True))


def test_progress_with_the_knowledge_of_another_student_is_refused(whole_sweep, tmp_path):
    folder, expected = whole_sweep
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    with pytest.raises(ValueError, match=r"knowledge of is None here and was 'rate 0\.3'"):
        sweep(tmp_path, rates=[0.8])
    with pytest.raises(ValueError, match=r"knowledge of is 'rate 0\.2' here and was None"):
        sweep(tmp_path, rates=[0.3, 0.2])
    # That student has its own: a prune goes on with its progress, and so does a sweep of other rates.
    (found,) = sweep(tmp_path, rates=[0.3], share_knowledge=False)
    assert same_state(found.model, expected[1].model)
    assert same_state(sweep(tmp_path, rates=[0.3, 0.8, 0.6])[1].model, expected[0].model)
