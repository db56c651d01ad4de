"""A summary of the calibration data for the user to look at: a wrong column is seen at once."""

from dataclasses import dataclass

import numpy as np

from .batches import NESTED, batch_tokens, rows_of
from .draw import Draw
from .spec import Batch, InputSpec, Sample, main_input, samples_in

SHOWN_CHARACTERS = 200


@dataclass(frozen=True)
class CalibrationSummary:
    """The data that a prune calibrates on.

    Attributes:
        columns: the columns that hold the texts, images or audio; None if they have no names, or were prepared before.
        first_sample: the beginning of the text of the first sample that was drawn, or the shape of its main input;
            None for texts without a tokenizer.
        samples: number of samples, without those that are held out.
        tokens: number of real tokens in them; for images and audio, of real positions of the hidden states.
        heldout_samples: number of samples that are held out.
        heldout_tokens: number of real tokens in those.
        mean_length: mean number of real tokens in a row. A sample has one row, or one per choice.
        draw: how the samples were chosen, in words.
        samples_are: what the samples are called.
        tokens_are: what `tokens` counts.
        rows: number of rows of the samples that are not held out.
        rows_are: what the rows of a sample are called; "" if it has one.
    """

    columns: tuple[str, ...] | None
    first_sample: str | None
    samples: int
    tokens: int
    heldout_samples: int
    heldout_tokens: int
    mean_length: float
    draw: str
    samples_are: str = "samples"
    tokens_are: str = "tokens"
    rows: int = 0
    rows_are: str = ""

    def __str__(self) -> str:
        """Returns the summary as two lines of text."""
        sample, position = self.samples_are, self.tokens_are
        of_each = "sequence" if position == "tokens" else sample.removesuffix("s")
        rows = f" with {self.rows / self.samples:.1f} {self.rows_are} on average" if self.rows_are else ""
        held_out = f"; {self.heldout_samples:,} {sample}, {self.heldout_tokens:,} {position} are held out"
        columns = f"Columns: {', '.join(self.columns)}. " if self.columns else ""
        return (
            f"Calibration data: {self.samples:,} {sample}{rows}, {self.tokens:,} {position} ({self.mean_length:.1f} "
            f"per {of_each}){held_out if self.heldout_samples else ''}; {self.draw}.\n"
            f"{columns}First sample: {self.first_sample or 'unknown without a tokenizer'}"
        )


def summary_of(
    batches: list[Batch], heldout: list[Batch], first: Sample, draw: Draw, spec: InputSpec
) -> CalibrationSummary:
    """Returns the summary of batches that have their masks.

    Args:
        batches: the batches to calibrate on.
        heldout: the batches that are held out.
        first: the first sample that was drawn.
        draw: how the samples were drawn.
        spec: what the model reads; its tokenizer decodes the first sample.
    """
    tokens, heldout_tokens = (sum(batch_tokens(batch, spec) for batch in part) for part in (batches, heldout))
    rows = sum(len(main_input(batch).flatten(0, -2) if spec.is_text else main_input(batch)) for batch in batches)
    return CalibrationSummary(
        columns=draw.columns,
        first_sample=_text_of(first, spec),
        samples=sum(map(samples_in, batches)),
        tokens=tokens,
        heldout_samples=sum(map(samples_in, heldout)),
        heldout_tokens=heldout_tokens,
        mean_length=tokens / rows,
        draw=draw.how,
        samples_are="queries" if spec.task == "text-ranking" else f"{spec.modality.sample}s",
        tokens_are=f"{spec.modality.position}s",
        rows=rows,
        rows_are=NESTED.get(spec.task, ""),
    )


def _text_of(sample: Sample, spec: InputSpec) -> str | None:
    """Returns the beginning of the text of a sample, or of its first choice; of media, the shape of the main input."""
    if not spec.is_text:
        return f"{spec.main_input} of {' x '.join(map(str, np.shape(sample[spec.main_input])))}"
    if spec.processing_class is None:
        return None
    ids = rows_of(sample["input_ids"])[0]
    mask = rows_of(sample.get("attention_mask", [True] * len(ids)))[0]
    real = [token for token, is_real in zip(ids, mask, strict=True) if is_real]
    text = " ".join(str(spec.tokenizer.decode(real)).split())
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}..."
