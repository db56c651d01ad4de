"""The loop of K-prune: sublayer by sublayer from the bottom, measure, search, tune and shrink."""

import logging
import math
import time
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..algorithm.knowledge import unit_scores
from ..algorithm.search import round_selection, select_units
from ..algorithm.tuning import LeastSquares, Projection
from ..configuration import KPruneConfig
from ..distributed import as_in_main
from ..encoder.offloading import own_weights
from ..encoder.sublayers import Place, Sublayer
from ..modeling_kprune import shrink_sublayer
from ..progress import progress_bar
from ..result import SublayerResult
from .checkpoint import Checkpoint
from .hidden_states import Frontier
from .statistics import gather_correction, gather_fit, measure_knowledge
from .stopwatch import Stopwatch

logger = logging.getLogger(__name__)

# What a bar shows: not how many sublayers are done, since they do not take alike, but the share of the work.
BAR_FORMAT = "{desc} {percentage:3.0f}%|{bar}| {elapsed}<{remaining}"


class SublayerPruner:
    """Prunes and tunes the student of a frontier in place, one sublayer after the other.

    Args:
        frontier: at its start, where the student equals the teacher.
        config: the settings.
        first_scores: those of an earlier prune of the same frontier, to whatever rate: where the student still equals
            the teacher, all rates measure the same. None measures.
        checkpoint: where finished sublayers are written, and taken from if they were finished before.

    Attributes:
        sequence_length: tokens T at which FLOPs are counted.
        budget: FLOPs that the sublayers from the target upward may cost.
        stopwatch: the time of the stages.
        first_scores: scores of all units by sublayer, as measured at the lowest target; None if they were not.

    Raises:
        ValueError: if the model has no units.
    """

    def __init__(
        self,
        frontier: Frontier,
        config: KPruneConfig,
        first_scores: dict[Place, Tensor] | None = None,
        checkpoint: Checkpoint | None = None,
    ) -> None:
        self.frontier = frontier
        self.config = config
        self.checkpoint = checkpoint
        self.sequence_length = config.sequence_length or max(1, round(frontier.tokens / frontier.rows))
        total = sum(
            sublayer.units * sublayer.unit_flops(self.sequence_length) for sublayer in frontier.teacher.sublayers()
        )
        if not total:
            raise ValueError("The model has no heads or neurons left to prune. Start from a larger model.")
        self.budget = total - math.ceil(config.compression_rate * total)
        self.stopwatch = Stopwatch(frontier.student.device)
        self.first_scores = first_scores
        self._scores = first_scores or {}

    def run(self) -> list[SublayerResult]:
        """Prunes all sublayers; returns one entry for each, bottom to top."""
        results = []
        finished = self.checkpoint.finished if self.checkpoint else 0
        work = [0.0] * finished + self._work()[finished:]
        with progress_bar(total=sum(work), bar_format=BAR_FORMAT, smoothing=0) as bar:
            for index, teacher in enumerate(self.frontier.teacher.sublayers()):
                bar.set_description(f"Pruning {teacher.name}")
                result = self._prune_sublayer(index, teacher, index < finished)
                self.budget -= result.flops
                results.append(result)
                logger.info("%s%s", result, ", from the checkpoint" if index < finished else "")
                bar.update(work[index])
        return results

    def _work(self) -> list[float]:
        """Returns how much work each sublayer is, relative to each other, for an honest estimate of the time left.

        Counted in runs of all calibration tokens through one sublayer: five in its own passes and its solve, and for
        a measurement three (forward, and backward twice) through all sublayers from there on.
        """
        targets = [sublayer.place for sublayer in self.frontier.targets]
        measured = self.frontier.measured / max(1, len(self.frontier))
        work = []
        for sublayer in self.frontier.teacher.sublayers():
            number = targets.index(sublayer.place) if sublayer.units else 0
            measurement = 3 * measured * (len(targets) - number) * (number % self.config.measure_every == 0)
            work.append(5 + measurement if sublayer.units else 0.0)
        return work

    def _prune_sublayer(self, index: int, teacher: Sublayer, is_finished: bool) -> SublayerResult:
        """Moves the frontier to a sublayer and prunes it, or takes it from the checkpoint."""
        started = time.perf_counter()
        if teacher.units:
            with self.stopwatch("advance"):
                self.frontier.advance(teacher)
        students = self.frontier.student.sublayers()[index:]
        with own_weights(students[0].block):
            if self.checkpoint and is_finished:
                result, self._scores = self.checkpoint.restore(index, students[0])
                return result
            result = self._prune_target(teacher, students)
            result = replace(result, seconds=time.perf_counter() - started)
            if self.checkpoint:
                self.checkpoint.write(index, self.frontier.student.sublayer(teacher.place), result, self._scores)
        return result

    def _prune_target(self, teacher: Sublayer, students: list[Sublayer]) -> SublayerResult:
        """Prunes the lowest of the student's sublayers that are left; one without units stays as it is."""
        target = students[0]
        parameters_before, unit_flops = target.parameters, target.unit_flops(self.sequence_length)
        indices: list[int] = []
        error = 0.0
        if target.units:
            if self._is_corrected(teacher):
                self._correct_inputs(teacher, target)
            kept = as_in_main(self._select([student for student in students if student.units]))
            indices = kept.nonzero().flatten().tolist()
            # Shrunk first, so that only kept features are computed; one without units cannot be observed any more.
            if indices:
                shrink_sublayer(target.block, asdict(target.adapter), indices, target.units)
            error = self._tune(teacher, replace(target, units=len(indices)))
            if not indices:
                shrink_sublayer(target.block, asdict(target.adapter), indices, target.units)
        return SublayerResult(
            layer=target.layer,
            kind=target.adapter.kind,
            kept=indices,
            total=target.units,
            flops=len(indices) * unit_flops,
            flops_before=target.units * unit_flops,
            parameters=replace(target, units=len(indices)).parameters,
            parameters_before=parameters_before,
            error=error,
        )

    def _is_corrected(self, target: Sublayer) -> bool:
        """Whether the input of a target is corrected; that of the lowest cannot differ from the teacher's."""
        return self.config.tuning and self.config.correct_inputs and target.place != self.frontier.targets[0].place

    def _correct_inputs(self, teacher: Sublayer, target: Sublayer) -> None:
        """Folds the map x_student -> x_teacher into the input projections: they read what comes closest to x_teacher.

        min_{M, c} || X_teacher - X_student M - 1 c ||_F^2 + ridge to M = I;    W <- W M^T,  b <- b + W c
        """
        with self.stopwatch("fit"):
            fit = gather_correction(self.frontier, teacher, target)
        with self.stopwatch("solve"), torch.no_grad():
            fit_bias = all(projection.bias is not None for projection in target.inputs)
            identity = Projection(torch.eye(fit.features).to(fit.gram), torch.zeros(fit.features).to(fit.gram))
            correction = fit.solve(identity, self.config.ridge, fit_bias, target.name)
            for projection in target.inputs:
                weight = projection.weight.to(fit.gram)
                _replace(projection, weight=weight @ correction.weight.T)
                if fit_bias:
                    _replace(projection, bias=projection.bias.to(fit.gram) + weight @ correction.bias)

    def _select(self, students: list[Sublayer]) -> Tensor:
        """Returns (units,) boolean, true at the units of the target to keep."""
        number = len(self.frontier.targets) - len(students)
        if not self._scores or (number and number % self.config.measure_every == 0):
            self._measure(students)
        if not number:
            self.first_scores = self._scores
        with self.stopwatch("search"):
            flops = [sublayer.unit_flops(self.sequence_length) for sublayer in students]
            scores = [self._scores[sublayer.place] for sublayer in students]
            selected = select_units(scores, flops, self.budget)[0]
            if students[0].adapter.kind == "ffn" and self.config.neuron_multiple > 1:
                return round_selection(selected, scores[0], self.config.neuron_multiple, self.budget / flops[0])
            return selected

    def _measure(self, students: list[Sublayer]) -> None:
        """Scores the units of the target and the sublayers above it."""
        if not self.frontier.is_started:
            with self.stopwatch("teacher"):
                self.frontier.start()
        with self.stopwatch("measure"):
            importances = measure_knowledge(self.frontier, students, self.config)
        self._scores = {}
        for importance, sublayer in zip(importances, students, strict=True):
            flops = sublayer.unit_flops(self.sequence_length)
            scores = unit_scores(importance, self.config.lambda_rep, self._mu(sublayer), flops)
            self._scores[sublayer.place] = scores

    def _tune(self, teacher: Sublayer, target: Sublayer) -> float:
        """Refits the output projection of the kept units; returns the relative reconstruction error."""
        with self.stopwatch("fit"):
            fit = gather_fit(self.frontier, teacher, target, self.config)
        with self.stopwatch("solve"):
            return self._refit(target, fit)

    def _refit(self, target: Sublayer, fit: LeastSquares) -> float:
        """Solves the fit, writes it into the model and returns its relative error."""
        projection = Projection(*(values.to(fit.gram) for values in target.projection()))
        has_bias = target.output.bias is not None
        if self.config.bias == "drop" and not target.units:
            projection = projection._replace(bias=torch.zeros_like(projection.bias))
        if self.config.tuning:
            fit_bias = has_bias and self.config.bias == "refit"
            projection = fit.solve(projection, self.config.ridge, fit_bias, target.name)
        if target.units:
            _replace(target.output, weight=projection.weight.T)
        if has_bias:
            _replace(target.output, bias=projection.bias)
        return fit.squared_error(projection) / max(fit.squared_target.item(), torch.finfo(torch.float64).tiny)

    def _mu(self, sublayer: Sublayer) -> float:
        """The factor on scores: heads' knowledge is a mean over their dimensions, neurons' is not."""
        if sublayer.adapter.kind == "ffn":
            return 1.0
        return self.config.head_weight * (sublayer.unit_size if self.config.mu is None else self.config.mu)


def _replace(projection: Any, **values: Tensor) -> None:
    """Puts the main process's parameters into a projection; what is there may be shared with the teacher."""
    for name, value in values.items():
        present = getattr(projection, name)
        data = as_in_main(value.to(present)).contiguous()
        setattr(projection, name, nn.Parameter(data, present.requires_grad))
