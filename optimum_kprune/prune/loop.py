"""The loop of K-prune: sublayer by sublayer from the bottom, measure, search, tune and shrink."""

import logging
import time
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ..algorithm.tuning import LeastSquares, Projection, fold, scale_weights, unscaled
from ..configuration import KPruneConfig
from ..distributed import as_in_main
from ..encoder.offloading import own_weights
from ..encoder.sublayers import Sublayer
from ..kprune_shrink import give_bias, shrink_sublayer
from ..progress import progress_bar
from ..result import SublayerResult
from .checkpoint import Checkpoint
from .costs import Costs
from .pair import Pair
from .scores import Scores
from .statistics import add_up_fit, gather_correction
from .stopwatch import Stopwatch

logger = logging.getLogger(__name__)

# The bar shows the share of the work that is done, not the number of sublayers: they take different times.
BAR_FORMAT = "{desc} {percentage:3.0f}%|{bar}| {elapsed}<{remaining}"


class SublayerPruner:
    """Prunes and tunes a student in place, one sublayer after the other.

    Args:
        pair: teacher and student at the bottom, where they are equal.
        scores: the scores of the units.
        costs: what units cost, and how much those that are kept may cost.
        config: the settings.
        sequence_length: tokens T at which FLOPs are counted.
        checkpoint: where finished sublayers are written. Those that it holds already are read instead of pruned.

    Attributes:
        stopwatch: the seconds that the stages take.

    Raises:
        ValueError: if the model has no units.
    """

    def __init__(
        self,
        pair: Pair,
        scores: Scores,
        costs: Costs,
        config: KPruneConfig,
        sequence_length: int,
        checkpoint: Checkpoint | None = None,
    ) -> None:
        self.pair, self.scores, self.costs, self.config, self.checkpoint = pair, scores, costs, config, checkpoint
        self.sequence_length = sequence_length
        self.stopwatch = Stopwatch(pair.student.encoder.device)
        if not pair.targets:
            raise ValueError("The model has no heads or neurons left to prune. Start from a larger model.")
        costs.require_reserved(pair.targets, config)

    def run(self) -> list[SublayerResult]:
        """Prunes all sublayers; returns one result for each, bottom to top."""
        results = []
        finished = self.checkpoint.finished if self.checkpoint else 0
        # To read a finished sublayer, and to move past it, takes little time.
        work = [0.0] * finished + self._work()[finished:]
        # Without smoothing, the time left follows from all work so far: the speed of one sublayer says little.
        with progress_bar(total=sum(work), bar_format=BAR_FORMAT, smoothing=0) as bar:
            for index, teacher in enumerate(self.pair.teacher.encoder.sublayers()):
                bar.set_description(f"Pruning {teacher.name}")
                result = self._prune_sublayer(index, teacher, index < finished)
                self.costs.spend(teacher, len(result.kept))
                results.append(result)
                logger.info("%s%s", result, ", from the checkpoint" if index < finished else "")
                bar.update(work[index])
        return results

    def _prune_sublayer(self, index: int, teacher: Sublayer, is_finished: bool) -> SublayerResult:
        """Prunes a sublayer of the student, or takes it from the checkpoint.

        Args:
            index: number of the sublayer, from the bottom.
            teacher: the sublayer in the teacher.
            is_finished: whether the checkpoint has it.
        """
        started = time.perf_counter()
        if teacher.units:
            with self.stopwatch("advance"):
                self.pair.advance(teacher)
        students = self.pair.student.encoder.sublayers()[index:]
        target = students[0]
        with own_weights(target.block):
            if self.checkpoint and is_finished:
                result, self.scores.latest = self.checkpoint.restore(index, target)
                return result
            # Read now: a sublayer looks up its modules when it is asked, and they are about to be shrunk.
            parameters, unit_flops = target.parameters, target.unit_flops(self.sequence_length)
            kept, error = self._prune_target(teacher, students) if target.units else ([], 0.0)
            result = SublayerResult(
                layer=target.layer,
                kind=target.adapter.kind,
                kept=kept,
                total=target.units,
                flops=len(kept) * unit_flops,
                flops_before=target.units * unit_flops,
                parameters=replace(target, units=len(kept)).parameters,
                parameters_before=parameters,
                error=error,
                seconds=time.perf_counter() - started,
            )
            if self.checkpoint:
                # Looked up again: the target still has the number of units from before.
                pruned = self.pair.student.encoder.sublayer(target.place)
                self.checkpoint.write(index, pruned, result, self.scores.latest)
        return result

    def _prune_target(self, teacher: Sublayer, students: list[Sublayer]) -> tuple[list[int], float]:
        """Runs the method on one target: correct inputs, score, select, shrink, fit, write; see docs/method.md.

        Args:
            teacher: the target in the teacher.
            students: the target in the student and all sublayers above it.

        Returns:
            indices of the kept units, and the relative reconstruction error (see `SublayerResult`).
        """
        target, candidates = students[0], [student for student in students if student.units]
        if self.config.tuning and self.config.bias == "refit":
            give_bias(target.output)
        self._correct_inputs(teacher, target)  # W <- W M^T, b <- b + W c
        scores = self._score(candidates)  # S = mu (K_pred + lambda K_rep) / F
        kept = self._select(candidates, scores)  # S > nu, the least threshold that fits the budget
        # Shrunk before the fit, so that only kept features are computed. A target that keeps no unit is shrunk after
        # it: without units, it has no module that could be observed.
        if kept:
            shrink_sublayer(target.block, target.adapter.to_dict(), kept, target.units)
        student = replace(target, units=len(kept))
        fit = LeastSquares(student.features, student.width, self.stopwatch.device)
        with self.stopwatch("fit"):
            for step in self.pair.steps():
                preserved, output = self.pair.advance_teacher(step, teacher)  # X_teacher + Sub_teacher(X_teacher)
                features, present = self.pair.student.features_of(step, student)  # A, X_student
                weights = scale_weights(preserved) if self.config.token_weights == "scale" else None  # diagonal of D
                missing = preserved - present.float()
                # What is normalised before it is added can only be preserved as it is.
                response = output if student.normaliser else unscaled(missing, student.scale, output)
                # The slice takes all columns, or none where no unit is kept: then only a bias is fitted.
                fit.add(features[:, : student.features], response, weights)  # A^T D A, A^T D Y
            add_up_fit(fit, student.name)
        error = self._write_solution(student, fit)  # W*, b*
        if not kept:
            shrink_sublayer(target.block, target.adapter.to_dict(), kept, target.units)
        return kept, error

    def _correct_inputs(self, teacher: Sublayer, target: Sublayer) -> None:
        """Corrects what the target reads: folds the affine map x_student -> x_teacher into its input projections.

        min_{M, c} || X_teacher - X_student M - 1 c ||_F^2 + ridge to M = I;    W <- W M^T,  b <- b + W c
        """
        is_lowest = target.place == self.pair.targets[0].place  # there, student and teacher read the same
        if is_lowest or not (self.config.tuning and self.config.correct_inputs and target.corrected_inputs):
            return
        with self.stopwatch("fit"):
            fit = gather_correction(self.pair, teacher, target)
        with self.stopwatch("solve"):
            # The map has a constant c only if every projection can take it up in its bias.
            has_bias = all(projection.bias is not None for projection in target.corrected_inputs)
            identity = Projection(torch.eye(fit.features).to(fit.gram), torch.zeros(fit.features).to(fit.gram))
            correction = fit.solve(identity, self.config.ridge, has_bias, target.name)
            for projection in target.corrected_inputs:
                weight, bias = fold(correction, projection.weight.to(fit.gram), projection.bias if has_bias else None)
                _replace(projection, weight=weight)
                if bias is not None:
                    _replace(projection, bias=bias)

    def _score(self, students: list[Sublayer]) -> list[Tensor]:
        """Returns the scores (units,) of the target and of the sublayers above it; measures them if they are due."""
        if self.scores.are_due(len(self.pair.targets) - len(students)):
            # Made here and not before, because a checkpoint or an earlier rate may have all scores that are needed.
            with self.stopwatch("teacher"):
                self.scores.predictions.make()
            with self.stopwatch("measure"):
                self.scores.measure(students)
        return [self.scores.latest[student.place] for student in students]

    def _select(self, students: list[Sublayer], scores: list[Tensor]) -> list[int]:
        """Returns the indices of the units that the target, the first of the sublayers, keeps."""
        with self.stopwatch("search"):
            selected = self.costs.select(students, scores)
        return as_in_main(selected).nonzero().flatten().tolist()

    def _write_solution(self, student: Sublayer, fit: LeastSquares) -> float:
        """Solves the fit and writes W* and b* into the student; returns the relative error of the reconstruction."""
        with self.stopwatch("solve"):
            # In float64, like the sums; without tuning, these weights stay and only their error is computed.
            projection = Projection(*(values.to(fit.gram) for values in student.projection()))
            has_bias = student.output.bias is not None
            if self.config.bias == "drop" and not student.units:
                projection = projection._replace(bias=torch.zeros_like(projection.bias))
            if self.config.tuning:
                fit_bias = has_bias and self.config.bias == "refit"
                projection = fit.solve(projection, self.config.ridge, fit_bias, student.name)
            if student.units:
                _replace(student.output, weight=projection.weight.T)
            if has_bias:
                _replace(student.output, bias=projection.bias)
            # A sublayer that had nothing to add has a response of 0, which must not be divided by.
            return fit.squared_error(projection) / max(fit.squared_response.item(), torch.finfo(torch.float64).tiny)

    def _work(self) -> list[float]:
        """Returns the work that each sublayer takes, from which the bar estimates the time left.

        The unit of work is a run of all calibration tokens through one sublayer. A sublayer takes five for its own
        passes and its solve. A measurement takes three, forward and twice backward, through every sublayer from there
        on, for the share of the tokens on which knowledge is measured: at first all that are there for it, then a part.
        """
        targets = [sublayer.place for sublayer in self.pair.targets]
        measured_share = self.pair.measured / max(1, len(self.pair))
        work = []
        for sublayer in self.pair.teacher.encoder.sublayers():
            number = targets.index(sublayer.place) if sublayer.units else 0
            is_measured = number % self.config.measure_every == 0 and not (number == 0 and self.scores.latest)
            measurement = 3 * measured_share * (len(targets) - number) * is_measured
            measurement /= len(self.pair.parts) if number else 1
            work.append(5 + measurement if sublayer.units else 0.0)
        return work


def _replace(projection: Any, **values: Tensor) -> None:
    """Gives a projection the main process's values as new parameters.

    They replace the old ones, which are not written into: the teacher may share them.
    """
    for name, value in values.items():
        present = getattr(projection, name)
        # Contiguous, because a transposed view could not be saved.
        data = as_in_main(value.to(present)).contiguous()
        setattr(projection, name, nn.Parameter(data, present.requires_grad))
