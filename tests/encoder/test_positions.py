"""Which positions of the hidden states are real, against what is known of the architectures."""

import pytest
import torch
from tiny import encoder_of
from zoo import batch_of, build

from optimum_kprune.encoder.positions import Positions


def positions_of(name, **options):
    return Positions(encoder_of(build(name, **options))), batch_of(name)


@pytest.mark.parametrize(("name", "count"), [("vit", 17), ("deit", 18), ("audio-spectrogram-transformer", 14)])
def test_images_and_spectrograms_have_one_position_per_patch_and_token(name, count):
    """16 patches of 4 x 4, or 12, and one or two tokens besides."""
    positions, batch = positions_of(name)
    mask = positions(batch)
    assert mask.shape == (4, count) and mask.all()


def frames_of(samples):
    """Frames that convolutions of widths 8 and 4, with strides 4 and 2, make of so many numbers."""
    return ((samples - 8) // 4 + 1 - 4) // 2 + 1


def test_frames_are_real_where_all_of_their_audio_is():
    positions, batch = positions_of("wav2vec2/pre-norm")
    lengths = batch["attention_mask"].sum(dim=1).tolist()
    mask = positions(batch)
    assert len(set(lengths)) > 1 and mask.shape[1] == frames_of(200)
    assert mask.sum(dim=1).tolist() == list(map(frames_of, lengths))
    assert torch.equal(mask, mask.cummin(dim=1).values)
    del batch["attention_mask"]
    assert positions(batch).shape == mask.shape and positions(batch).all()


def test_texts_have_the_positions_of_their_tokens():
    positions, batch = positions_of("bert")
    assert torch.equal(positions(batch), batch["attention_mask"].bool())


def test_choices_are_rows():
    positions, _ = positions_of("bert", head="ForMultipleChoice")
    assert positions({"input_ids": torch.full((2, 3, 5), 7)}).shape == (6, 5)


def test_a_position_of_several_characters_is_real_if_one_of_them_is():
    positions, _ = positions_of("canine")
    mask = (torch.arange(12) < torch.tensor([[12], [5], [4]])).long()
    found = positions({"input_ids": torch.full((3, 12), 7), "attention_mask": mask})
    assert found.tolist() == [[True, True, True], [True, True, False], [True, False, False]]


def test_what_a_model_adds_to_texts_alone_is_padding():
    positions, batch = positions_of("longformer")
    mask, found = batch["attention_mask"].bool(), positions(batch)
    assert found.shape[1] > mask.shape[1]
    assert torch.equal(found[:, : mask.shape[1]], mask) and not found[:, mask.shape[1] :].any()


def test_patches_beside_words_are_real():
    positions, batch = positions_of("layoutlmv3", visual_embed=True, input_size=16, patch_size=4)
    mask = batch["attention_mask"].bool()
    found = positions(batch | {"pixel_values": torch.zeros(4, 3, 16, 16)})
    assert found.shape == (4, mask.shape[1] + 17)
    assert torch.equal(found[:, : mask.shape[1]], mask) and found[:, mask.shape[1] :].all()


def test_a_model_is_run_once_per_shape_and_not_changed():
    model = build("vit").train()
    runs = []
    positions = Positions(encoder_of(model))
    model.vit.embeddings.register_forward_hook(lambda *_: runs.append(1))
    for _ in range(2):
        positions(batch_of("vit"))
    assert len(runs) == 1 and all(module.training for module in model.modules())


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("vit", {"pixel_values": (2, 3, 20, 20)}, r"`pixel_values` of 3 x 20 x 20, .* fails: .*size \(20\*20\)"),
        ("vit", {"pixel_values": (2, 1, 16, 16)}, "`pixel_values` of 1 x 16 x 16, on which it fails: .*channel"),
        ("wav2vec2", {"input_values": (2, 5)}, "`input_values` of 5, on which it fails: .*Kernel size"),
    ],
)
def test_what_a_model_cannot_read_is_told_before_any_work(name, shape, message):
    positions, _ = positions_of(name)
    with pytest.raises(ValueError, match=message):
        positions({key: torch.zeros(sizes) for key, sizes in shape.items()})


def test_positions_before_the_tokens_are_refused():
    """Such as those of soft prompts: which positions of a padded row are real is not known."""
    model, batch = build("bert"), batch_of("bert")
    model.bert.encoder.layer[0].register_forward_pre_hook(
        lambda module, args: (torch.cat([args[0][:, :2], args[0]], dim=1), *args[1:])
    )
    with pytest.raises(ValueError, match="must come after them"):
        Positions(encoder_of(model))(batch)
