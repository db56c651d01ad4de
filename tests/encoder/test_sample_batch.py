"""Batches made from a config alone: models of all modalities take them."""

import pytest
import torch
import zoo
from tiny import HEADS, PAD, tiny_model

from optimum_kprune.encoder.sample_batch import sample_batch

READERS = ["vit", "videomae", "swin", "wav2vec2", "wav2vec2-bert", "whisper", "audio-spectrogram-transformer"]
READERS += ["t5", "bart"]


@torch.no_grad()
@pytest.mark.parametrize("name", READERS)
def test_models_take_what_is_made_for_them(name):
    model = zoo.build(name)
    batch = sample_batch(model)
    assert {values.shape[0] for values in batch.values()} == {2}
    model(**batch)


@torch.no_grad()
@pytest.mark.parametrize("head", [head for head in HEADS if head != "multiple choice"])
def test_heads_of_text_take_two_rows_of_which_one_is_padded(head):
    model = tiny_model(head=head)
    batch = sample_batch(model)
    model(**batch)
    ids, mask = batch["input_ids"], batch["attention_mask"].bool()
    assert 0 < mask[1].sum() < mask[0].sum() == ids.shape[1]
    assert (ids[~mask] == PAD).all() and not (ids[mask] == PAD).any()


def test_an_input_whose_size_is_not_in_the_config_is_asked_for():
    model = zoo.build("vit")
    model.main_input_name = "points"
    with pytest.raises(ValueError, match=r"does not say how large its 'points' are. Give a batch"):
        sample_batch(model)
