"""What is saved is not replaced unasked, and what is loaded is whole and no pickle."""

import pytest
import torch
import zoo
from safetensors.torch import load_file, save_file
from tiny import batches_of, ragged_samples, same_state, tiny_model
from transformers import AutoModelForSequenceClassification

from optimum_kprune import KPruneConfig, KPruner
from optimum_kprune.folder import written_whole

WEIGHTS = "model.safetensors"


@pytest.fixture
def pruner():
    found = KPruner(tiny_model())
    found.prune(KPruneConfig(), batches_of(ragged_samples()))
    return found


def test_a_saved_model_is_replaced_only_if_asked(pruner, tmp_path):
    pruner.save_pretrained(tmp_path / "model")
    with pytest.raises(FileExistsError, match="must be new or empty"):
        pruner.save_pretrained(tmp_path / "model")
    pruner.save_pretrained(tmp_path / "model", overwrite=True)


def test_a_folder_that_is_taken_while_it_is_written_stays(tmp_path):
    with pytest.raises(FileExistsError), written_whole(tmp_path / "model") as draft:
        (draft / "ours").touch()
        (tmp_path / "model").mkdir()
        (tmp_path / "model" / "theirs").touch()
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["theirs"]


def test_a_model_that_lacks_weights_of_its_encoder_is_refused(pruner, tmp_path):
    pruner.save_pretrained(tmp_path)
    weights = load_file(tmp_path / WEIGHTS)
    del weights["bert.encoder.layer.0.output.dense.bias"]
    save_file(weights, tmp_path / WEIGHTS, {"format": "pt"})
    with pytest.raises(ValueError, match="they lack 1 of the encoder"):
        AutoModelForSequenceClassification.from_pretrained(tmp_path)


def test_a_pickle_in_the_place_of_the_weights_is_not_loaded(pruner, tmp_path):
    pruner.save_pretrained(tmp_path)
    torch.save(load_file(tmp_path / WEIGHTS), tmp_path / "pytorch_model.bin")
    (tmp_path / WEIGHTS).unlink()
    with pytest.raises(OSError, match="safetensors"):
        AutoModelForSequenceClassification.from_pretrained(tmp_path)


def test_biases_that_a_prune_gave_are_loaded_and_kept_by_the_next(tmp_path):
    batches = [zoo.batch_of("t5", rows=6, seed=seed) for seed in range(2)]
    pruner = KPruner(zoo.build("t5"))
    pruner.prune(KPruneConfig(compression_rate=0.4, num_tokens=None), batches)
    pruner.save_pretrained(tmp_path / "once")
    again = KPruner.from_pretrained(tmp_path / "once")
    assert same_state(again.teacher, pruner.model)
    again.prune(KPruneConfig(compression_rate=0.4, num_tokens=None, bias="keep"), batches)
    again.save_pretrained(tmp_path / "twice")
    assert same_state(KPruner.from_pretrained(tmp_path / "twice").teacher, again.model)
