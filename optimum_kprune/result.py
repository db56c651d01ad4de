"""The result of a prune: what was kept and what it cost, as data and as a table."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from html import escape
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .budget import amount_in_words, parse_budget

if TYPE_CHECKING:
    import pandas

    from .calibration.summary import CalibrationSummary

REPORT_NAME = "kprune_report.json"


@dataclass(frozen=True)
class SublayerResult:
    """What became of one sublayer.

    Attributes:
        layer: index of the block.
        kind: `"attention"` or `"ffn"`.
        kept: indices of the kept heads or neurons.
        total: number of heads or neurons before the prune.
        flops: FLOPs of the kept units on one sequence.
        flops_before: FLOPs of all units on one sequence.
        parameters: number of parameters of the projections after the prune.
        parameters_before: the same before the prune.
        error: reconstruction error: the squared distance between the student's and the teacher's hidden states after
            the sublayer, relative to the squared norm of what the sublayer had to add to the student's. Tokens are
            weighted as in the fit.
        seconds: time spent on the sublayer.
    """

    layer: int
    kind: str
    kept: list[int] = field(repr=False)
    total: int
    flops: float
    flops_before: float
    parameters: int
    parameters_before: int
    error: float
    seconds: float = 0.0

    def __str__(self) -> str:
        units = "heads" if self.kind == "attention" else "neurons"
        return (
            f"layer {self.layer} {self.kind}: {len(self.kept):,} of {self.total:,} {units} kept, "
            f"error {self.error:.4f}, {self.seconds:.1f} s"
        )


@dataclass(frozen=True)
class HeldoutQuality:
    """What a prune lost, measured on held-out calibration data against the dense model.

    Attributes:
        measure: what `closeness` measures. `"agreement"`: the share of predictions (samples, tokens, or starts and
            ends of spans) that have the same likeliest class in both models. `"order agreement"`: the share of pairs,
            among the scores of a query's candidates and 0, that are in the same order in both. `"correlation"`:
            Pearson's correlation of the outputs of a regression. `"cosine"`: the mean cosine between vectors, such as
            embeddings.
        closeness: how close both models are; 1 if nothing was lost.
        closeness_error: standard error of `closeness`. For an agreement, it counts one more sample that agrees and one
            that does not, so that it is never 0.
        divergence: mean over the samples of KL(dense || pruned), or of the squared error of plain values.
        divergence_error: standard error of `divergence`.
        samples: number of held-out samples.
    """

    measure: str
    closeness: float
    closeness_error: float
    divergence: float
    divergence_error: float
    samples: int

    def __str__(self) -> str:
        return (
            f"On {self.samples:,} held-out samples: {self.measure} with the model before {self.closeness:.1%} ± "
            f"{self.closeness_error:.1%}, divergence {self.divergence:.3g} ± {self.divergence_error:.1g}"
        )


@dataclass(frozen=True)
class VocabularyResult:
    """What became of a vocabulary that was trimmed, and of text that is written in it.

    Attributes:
        size_before: number of tokens of the dense model's tokenizer.
        size: number of tokens that stayed.
        texts: number of texts (rows) on which the following is measured.
        is_heldout: whether these are held out, so that no token was chosen by them.
        fell_back: share of their tokens that did not stay, and are written in smaller pieces.
        tokens_before: mean number of tokens of a text.
        tokens_after: the same in the tokens that stayed.
        parameters_removed: number of parameters that went with the tokens.
        megabytes_removed: what they took in the file, in 10^6 bytes.
    """

    size_before: int
    size: int
    texts: int
    is_heldout: bool
    fell_back: float
    tokens_before: float
    tokens_after: float
    parameters_removed: int
    megabytes_removed: float

    def __str__(self) -> str:
        held_out = "held-out " if self.is_heldout else ""
        return (
            f"Vocabulary: {self.size:,} of {self.size_before:,} tokens, {self.parameters_removed:,} parameters and "
            f"{self.megabytes_removed:.1f} MB less; on {self.texts:,} {held_out}texts, {self.fell_back:.2%} of the "
            f"tokens fall back to pieces: {self.tokens_after:.1f} tokens per text, {self.tokens_before:.1f} before"
        )


@dataclass(frozen=True)
class RecoveryResult:
    """What a recovery did after a prune.

    Attributes:
        tokens: number of tokens that the student learned from, in all passes.
        text_tokens: number of tokens in the text that it was given.
        steps: number of steps that were made.
        kept_step: the step after which the weights were the best on held-out data; 0 if they are those of the prune.
        before: what the prune lost, before the recovery.
        seconds: time of the recovery.
        tokens_are: what `tokens` counts; see `CalibrationSummary`.
    """

    tokens: int
    text_tokens: int
    steps: int
    kept_step: int
    before: HeldoutQuality
    seconds: float
    tokens_are: str = "tokens"

    def __str__(self) -> str:
        passes = self.tokens / self.text_tokens
        over = f" ({passes:.1f} passes over {self.text_tokens:,})" if passes > 1.05 else ""
        kept = f"the weights of step {self.kept_step:,} of {self.steps:,} are the best"
        if not self.kept_step:
            kept = "no weights were better than those of the prune, which are kept"
        return f"Recovered on {self.tokens:,} {self.tokens_are}{over} in {self.seconds:.1f} seconds: {kept}"


@dataclass(frozen=True)
class LatencyResult:
    """The milliseconds of a forward pass that a prune was asked for, and those that were then measured.

    Attributes:
        asked: what was asked for.
        predicted: what the latency table predicts for the pruned model.
        dense: what the table has for the dense model.
        measured: what the pruned model took after the prune.
        measured_dense: what the dense model took, in turns with the pruned one.
        conditions: under which conditions all of this holds, in words.
    """

    asked: float
    predicted: float
    dense: float
    measured: float
    measured_dense: float
    conditions: str

    @property
    def excess(self) -> float:
        """By which share the pruned model is slower than asked for, if the dense one were as fast as in the table."""
        return (self.measured / self.measured_dense) / (self.asked / self.dense) - 1

    def __str__(self) -> str:
        return (
            f"Latency ({self.conditions}): asked for {self.asked:.3g} ms, {self.asked / self.dense:.1%} of "
            f"{self.dense:.3g} ms; predicted {self.predicted:.3g} ms, {self.predicted / self.dense:.1%}; measured "
            f"{self.measured:.3g} ms, {self.measured / self.measured_dense:.1%} of {self.measured_dense:.3g} ms"
        )


@dataclass(frozen=True, repr=False)
class KPruneResult:
    """What a prune kept, sublayer by sublayer from the bottom. Printed, or shown in a notebook, it is a table.

    Attributes:
        sublayers: one entry per sublayer.
        sequence_length: number of tokens (of images and audio, of positions) T at which FLOPs are counted.
        samples: number of calibration samples used.
        tokens: number of calibration tokens used, padding not counted.
        parameters_before: number of parameters of the model as it was given.
        parameters_after: number of parameters of the pruned model.
        seconds: time of the whole prune.
        heldout: what was lost, measured on held-out calibration data; None if none was held out.
        stages: seconds per stage. "teacher": its predictions; "measure": knowledge; "search"; "fit": gathering the
            sums of the fits, and moving the teacher through the sublayers; "solve"; "advance": moving the student;
            "other"; "recovery", if there was one.
        calibration: a summary of the calibration data.
        recovery: what the recovery did; None if there was none. What it left of the loss is `heldout`.
        budget: what was to be kept; None if a compression rate was given.
        megabytes_before: size of the weights as they are saved, in 10^6 bytes, before the prune.
        megabytes_after: the same after the prune.
        dtype: the type of the weights of which that is the size.
        latency: the milliseconds that were asked for, and those that were then measured; None if the budget is in
            another unit.
        vocabulary: what became of the vocabulary; None if it was not trimmed.
    """

    sublayers: list[SublayerResult]
    sequence_length: int
    samples: int
    tokens: int
    parameters_before: int
    parameters_after: int
    seconds: float
    heldout: HeldoutQuality | None = None
    stages: dict[str, float] = field(default_factory=dict)
    calibration: "CalibrationSummary | None" = None
    recovery: RecoveryResult | None = None
    budget: str | None = None
    megabytes_before: float = 0.0
    megabytes_after: float = 0.0
    dtype: str = "float32"
    latency: LatencyResult | None = None
    vocabulary: VocabularyResult | None = None

    @property
    def kept(self) -> list[dict[str, Any]]:
        """One entry per sublayer, bottom to top: its layer and kind, the kept indices, the number of units before."""
        return [
            {"layer": entry.layer, "kind": entry.kind, "kept": entry.kept, "total": entry.total}
            for entry in self.sublayers
        ]

    @property
    def flops_before(self) -> float:
        """FLOPs of all units on one sequence, before the prune."""
        return sum(entry.flops_before for entry in self.sublayers)

    @property
    def flops_after(self) -> float:
        """FLOPs of all units on one sequence, after the prune."""
        return sum(entry.flops for entry in self.sublayers)

    @property
    def flops_removed(self) -> float:
        """Share of the FLOPs of all units that was removed, in [0, 1]."""
        return 1 - self.flops_after / self.flops_before

    def to_dict(self) -> dict[str, Any]:
        """Returns the result as a dictionary that JSON can hold."""
        totals = {
            "flops_before": self.flops_before,
            "flops_after": self.flops_after,
            "flops_removed": self.flops_removed,
        }
        return asdict(self) | totals

    def to_pandas(self) -> "pandas.DataFrame":
        """Returns a table with a row per sublayer, bottom to top; here `kept` is a number of units, not indices."""
        # Imported here: a prune does not need pandas, which is slow to import.
        import pandas

        return pandas.DataFrame([asdict(entry) | {"kept": len(entry.kept)} for entry in self.sublayers])

    def plot(self, path: str | PathLike) -> None:
        """Draws what is left of every layer: the shares of its heads and neurons that were kept.

        Args:
            path: a file that ends with .png, .svg or .pdf. One that is there is replaced when the new one is whole.

        Raises:
            ImportError: if matplotlib is not installed.
            ValueError: if the file has another ending.
            OSError: if the folder cannot be written.
        """
        from .plots import plot_kept

        plot_kept(self, path)

    def __str__(self) -> str:
        lines = [f"{'layer':>5} {'kind':<9} {'kept':>12} {'MFLOPs':>8} {'parameters':>10} {'error':>7} {'seconds':>7}"]
        for entry in self.sublayers:
            kept = f"{len(entry.kept)} of {entry.total}"
            lines.append(
                f"{entry.layer:>5} {entry.kind:<9} {kept:>12} {entry.flops / 1e6:>8.1f} {entry.parameters:>10,} "
                f"{entry.error:>7.4f} {entry.seconds:>7.1f}"
            )
        return "\n".join([*lines, *self._summary()])

    def __repr__(self) -> str:
        units = {"heads": "attention", "neurons": "ffn"}
        kept = ", ".join(f"{self._count(kind)} {name}" for name, kind in units.items())
        return (
            f"KPruneResult({self.flops_removed:.1%} of the FLOPs removed, kept: {kept}, parameters: "
            f"{self.parameters_before:,} -> {self.parameters_after:,}, {self._lost()})"
        )

    def _repr_html_(self) -> str:
        table = self.to_pandas().to_html(index=False, float_format="{:,.4g}".format)
        return table + "".join(f"<p>{escape(line)}</p>" for line in self._summary())

    def _summary(self) -> list[str]:
        tokens = self.calibration.tokens_are if self.calibration else "tokens"
        stages = ", ".join(f"{name} {seconds:.1f}" for name, seconds in self.stages.items())
        stages = f" ({stages})" if stages else ""
        return [
            f"FLOPs removed: {self.flops_removed:.2%} of {self.flops_before / 1e6:.1f} MFLOPs at "
            f"{self.sequence_length} {tokens}; parameters: {self.parameters_before:,} -> {self.parameters_after:,}; "
            f"{self.samples:,} samples, {self.tokens:,} {tokens}, {self.seconds:.1f} seconds{stages}",
            *([self.met] if self.met else []),
            *([str(self.vocabulary)] if self.vocabulary else []),
            *self._recovered(),
            self.loss,
        ]

    @property
    def met(self) -> str:
        """What was asked for and what was got, in the unit of the budget; "" if a compression rate was given."""
        if self.budget is None or self.latency:
            return str(self.latency or "")
        unit = parse_budget(self.budget).unit
        before, after = self._amounts(unit)
        dtype = f" in {self.dtype}" if unit == "megabytes" else ""
        return f"Budget: {self.budget}; kept: {amount_in_words(unit, after)} of {amount_in_words(unit, before)}{dtype}"

    def _amounts(self, unit: str) -> tuple[float, float]:
        """Returns how much there was of the unit of a budget before the prune, and after it."""
        if unit == "layers":
            totals = {entry.layer for entry in self.sublayers if entry.total}
            return len(totals), len({entry.layer for entry in self.sublayers if entry.kept})
        return getattr(self, f"{unit}_before"), getattr(self, f"{unit}_after")

    def _recovered(self) -> list[str]:
        """Returns what a recovery did, and what was lost before it."""
        return [f"Before the recovery: {self.recovery.before}", str(self.recovery)] if self.recovery else []

    @property
    def loss(self) -> str:
        """What was lost on held-out calibration data, in a sentence."""
        return str(self.heldout or "What was lost was not measured: no calibration data was held out.")

    def _count(self, kind: str) -> str:
        entries = [entry for entry in self.sublayers if entry.kind == kind]
        return f"{sum(len(entry.kept) for entry in entries):,} of {sum(entry.total for entry in entries):,}"

    def _lost(self) -> str:
        if self.heldout is None:
            return "nothing held out"
        return f"held-out {self.heldout.measure}: {self.heldout.closeness:.1%} ± {self.heldout.closeness_error:.1%}"


def write_report(
    folder: Path, result: KPruneResult, arguments: Mapping[str, Any], frontier: Mapping[str, Any] | None = None
) -> None:
    """Writes the result of a prune as JSON.

    Args:
        folder: where to write it.
        result: what was kept.
        arguments: the arguments that were given to every call, by the name of the call.
        frontier: the models of which this is one, as `Frontier.to_dict` gives them; or None.
    """
    report = result.to_dict() | {"arguments": arguments} | ({"frontier": frontier} if frontier else {})
    # One line per sublayer: indented, every index of a kept unit would have a line of its own.
    rows = ",\n".join(f"    {json.dumps(row)}" for row in report.pop("sublayers"))
    head = json.dumps(report, indent=2).removesuffix("\n}")
    (folder / REPORT_NAME).write_text(f'{head},\n  "sublayers": [\n{rows}\n  ]\n}}\n', encoding="utf-8")
