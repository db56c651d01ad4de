"""Which positions of the hidden states are real, for any input: texts, images and audio."""

import functools
import inspect
from typing import Any

import torch
from torch import Tensor

from ..calibration.spec import Batch, main_input, samples_in, token_mask
from .hooks import recorded_input
from .offloading import sharing_copy
from .partial_forward import run
from .sublayers import Encoder

# Models of the Wav2Vec2 kind tell by this method which frames come from real audio.
FRAME_MASK = "_get_feature_vector_attention_mask"


class Positions:
    """Maps batches to masks of the real positions of a model's hidden states.

    How many positions the hidden states have is seen in a run of one sample up to the first block, once per shape.

    Args:
        encoder: the model. It is not changed.
    """

    def __init__(self, encoder: Encoder) -> None:
        self._given = encoder
        self._shapes: dict[Any, tuple[int, int] | None] = {}

    def __call__(self, batch: Batch) -> Tensor:
        """Returns the mask of the real positions of the hidden states of a batch, (rows, positions) boolean.

        Raises:
            ValueError: if the model cannot read the batch.
        """
        key = tuple((name, values.shape[1:], values.dtype) for name, values in batch.items())
        if key not in self._shapes:
            self._shapes[key] = self._seen(batch)
        given, seen = batch.get("attention_mask"), self._shapes[key]
        # A forward that never gets to the encoder is refused later, with other reasons.
        if seen is None:
            return token_mask(batch)
        rows, positions = seen
        if given is None:
            device = main_input(batch).device
            return torch.ones(samples_in(batch) * rows, positions, dtype=torch.bool, device=device)
        mask = token_mask(batch)
        # A forward of one's own may run its encoder on anything: what belongs to what is not known.
        if mask.shape[1] == positions or self._given.running is not self._given.pretrained:
            return mask
        # What is added beside texts, such as the patches of a page, is real; what is added to texts alone is padding.
        has_more = any(name != "attention_mask" and values.is_floating_point() for name, values in batch.items())
        return self._of_positions(batch, mask, positions, has_more)

    @functools.cached_property
    def _encoder(self) -> Encoder:
        """A copy that shares the weights, in evaluation mode."""
        return self._given.of(sharing_copy(self._given.model))

    @torch.no_grad()
    def _seen(self, batch: Batch) -> tuple[int, int] | None:
        """Returns rows and positions of the hidden states of one sample; None if the encoder is not run."""
        sample = {name: values[:1] for name, values in batch.items()}
        try:
            with recorded_input(self._encoder.blocks[0]) as states:
                run(self._encoder, self._encoder.to_device(sample))
        except torch.OutOfMemoryError:
            raise
        # Models say by either that images are of another size, or audio too short; some as errors of PyTorch.
        except (ValueError, RuntimeError) as error:
            shapes = (f"`{name}` of {' x '.join(map(str, value.shape[1:]))}" for name, value in sample.items())
            raise ValueError(
                f"The calibration data must be what the model can read. Got samples with {', '.join(shapes)}, on "
                f"which it fails: {' '.join(str(error).split())} Prepare the data as for the training of the model."
            ) from error
        return (states[0].shape[0], states[0].shape[1]) if states else None

    @torch.no_grad()
    def _require_added_at_end(self, batch: Batch) -> None:
        """Raises a ValueError if positions that a model adds to tokens do not come after them."""
        sample = {name: values[:1] for name, values in batch.items()}
        name, tokens = next(iter(sample.items()))
        if tokens.is_floating_point():
            return
        other = tokens.clone()
        # Any other token of the sample's own, or else the next one.
        other[..., -1] = tokens[..., 0] if bool((tokens[..., 0] != tokens[..., -1]).all()) else tokens[..., -1] - 1
        seen = []
        for values in (tokens, other):
            with recorded_input(self._encoder.blocks[0]) as states:
                run(self._encoder, self._encoder.to_device({**sample, name: values}))
            seen.append(states[0])
        changed = (seen[0] != seen[1]).any(dim=-1)[0]
        if not changed[tokens.shape[-1] - 1]:
            raise ValueError(
                "Positions that a model adds to its tokens must come after them. Got a model that adds "
                f"{len(changed) - tokens.shape[-1]} before or between them: which positions are real is not known. "
                "Pass batches without padding and without `attention_mask`."
            )

    def _of_positions(self, batch: Batch, mask: Tensor, positions: int, has_more: bool) -> Tensor:
        """Returns the mask of the positions that a model makes of its masked input.

        Args:
            batch: the inputs.
            mask: the mask of the input, (rows, entries).
            positions: how many positions there are.
            has_more: whether positions that the model adds come from another input. Others are padding.
        """
        frames = getattr(self._encoder.pretrained.base_model, FRAME_MASK, None)
        if frames is not None:
            # The mask before the adapter layers, which some models have after their blocks.
            options = {"add_adapter": False} if "add_adapter" in inspect.signature(frames).parameters else {}
            return frames(positions, mask.long(), **options).bool()
        added = positions - mask.shape[1]
        if added > 0:
            self._require_added_at_end(batch)
            return torch.cat([mask, mask.new_full((len(mask), added), has_more)], dim=1)
        # Each position is made of as many entries of the input: it is real if one of them is.
        size = mask.shape[1] // positions
        return mask[:, : size * positions].unflatten(1, (positions, size)).any(dim=2)
