"""A summary of the calibration data for the user to look at: a wrong column is seen at once."""

from dataclasses import dataclass

from .batches import Batch, batch_tokens, rows_of
from .draw import Draw
from .tokenize import InputSpec, Sample

SHOWN_CHARACTERS = 200


@dataclass(frozen=True)
class CalibrationSummary:
    """The data that a prune calibrates on.

    Attributes:
        columns: the columns that hold the texts; None if they have no names, or the data was tokenized already.
        first_sample: the beginning of the text of the first sample that was drawn; None without a tokenizer.
        samples: number of samples, without those that are held out.
        tokens: number of real tokens in them.
        heldout_samples: number of samples that are held out.
        heldout_tokens: number of real tokens in those.
        mean_length: mean number of real tokens in a row. A sample has one row, or one per choice.
        draw: how the samples were chosen, in words.
    """

    columns: tuple[str, ...] | None
    first_sample: str | None
    samples: int
    tokens: int
    heldout_samples: int
    heldout_tokens: int
    mean_length: float
    draw: str

    def __str__(self) -> str:
        """Returns the summary as two lines of text."""
        held_out = f"; {self.heldout_samples:,} samples, {self.heldout_tokens:,} tokens are held out"
        columns = f"Columns: {', '.join(self.columns)}. " if self.columns else ""
        return (
            f"Calibration data: {self.samples:,} samples, {self.tokens:,} tokens ({self.mean_length:.1f} per "
            f"sequence){held_out if self.heldout_samples else ''}; {self.draw}.\n"
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
    tokens = sum(map(batch_tokens, batches))
    return CalibrationSummary(
        columns=draw.columns,
        first_sample=_text_of(first, spec),
        samples=_count(batches),
        tokens=tokens,
        heldout_samples=_count(heldout),
        heldout_tokens=sum(map(batch_tokens, heldout)),
        mean_length=tokens / sum(len(batch["input_ids"].flatten(0, -2)) for batch in batches),
        draw=draw.how,
    )


def _count(batches: list[Batch]) -> int:
    return sum(len(batch["input_ids"]) for batch in batches)


def _text_of(sample: Sample, spec: InputSpec) -> str | None:
    """Returns the beginning of the text of a sample, or of its first choice."""
    if spec.processing_class is None:
        return None
    ids = rows_of(sample["input_ids"])[0]
    mask = rows_of(sample.get("attention_mask", [True] * len(ids)))[0]
    real = [token for token, is_real in zip(ids, mask, strict=True) if is_real]
    text = " ".join(str(spec.processing_class.decode(real)).split())
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}..."
