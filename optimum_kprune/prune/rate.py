"""What a prune does for one rate: corrects, selects, shrinks, writes and restores sublayers of the rate's student."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ..algorithm.tuning import LeastSquares, Projection, fold
from ..configuration import KPruneConfig
from ..distributed import as_in_main
from ..encoder.sublayers import Sublayer
from ..kprune_shrink import give_bias, shrink_sublayer
from ..result import SublayerResult
from .checkpoint import Checkpoint
from .pair import Pair
from .scores import Scores
from .spending import Costs


class RatePruner:
    """Prunes and tunes one student in place, one sublayer after the other; `Loop` says when, and gathers the sums.

    Args:
        pair: teacher and student at the bottom, where they are equal.
        scores: the scores of the units; several rates may share them.
        costs: what units cost, and how much those that are kept may cost.
        config: the settings.
        sequence_length: tokens T at which FLOPs are counted.
        checkpoint: where finished sublayers are written. Those that it holds already are read instead of pruned.

    Attributes:
        pair, scores, costs, config, sequence_length: the same.
        finished: number of sublayers that the checkpoint holds.
        results: one result for each sublayer so far, bottom to top.
        candidates: the target in the student, and the sublayers above it that have units.

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
        self.pair, self.scores, self.costs, self.config = pair, scores, costs, config
        self.sequence_length, self._checkpoint = sequence_length, checkpoint
        self.finished = checkpoint.finished if checkpoint else 0
        self.results: list[SublayerResult] = []
        if not pair.targets:
            raise ValueError("The model has no heads or neurons left to prune. Start from a larger model.")

    def begin(self) -> None:
        """Makes the next sublayer the target."""
        target, *above = self.pair.student.encoder.sublayers()[len(self.results) :]
        self.candidates = [target, *(student for student in above if student.units)]
        # Read now: a sublayer looks up its modules when it is asked, and they are about to be shrunk.
        self._parameters, self._unit_flops = target.parameters, target.unit_flops(self.sequence_length)
        self._kept: list[int] = []
        self._error = 0.0

    @property
    def target(self) -> Sublayer:
        """The sublayer that is pruned now, as it was before."""
        return self.candidates[0]

    @property
    def student(self) -> Sublayer:
        """The target with the units that it keeps."""
        return replace(self.target, units=len(self._kept))

    def restore(self) -> None:
        """Takes the target from the checkpoint, and with it the latest scores."""
        assert self._checkpoint is not None
        result, self.scores.latest = self._checkpoint.restore(len(self.results), self.target)
        self._append(result)

    def finish(self, seconds: float) -> None:
        """Writes the target, which is pruned, to the checkpoint.

        Args:
            seconds: the time that the sublayer took.
        """
        kept = len(self._kept)
        result = SublayerResult(
            layer=self.target.layer,
            kind=self.target.adapter.kind,
            kept=self._kept,
            total=self.target.units,
            flops=kept * self._unit_flops,
            flops_before=self.target.units * self._unit_flops,
            parameters=self.student.parameters,
            parameters_before=self._parameters,
            error=self._error,
            seconds=seconds,
        )
        if self._checkpoint:
            self._checkpoint.write(len(self.results), self.student, result, self.scores.latest)
        self._append(result)

    def give_bias(self) -> None:
        """Gives the output projection of the target a bias to be fitted, if it has none."""
        if self.config.tuning and self.config.bias == "refit":
            give_bias(self.target.output)

    def correct(self, fit: LeastSquares) -> None:
        """Folds the affine map x_student -> x_teacher into the input projections of the target.

        min_{M, c} || X_teacher - X_student M - 1 c ||_F^2 + ridge to M = I;    W <- W M^T,  b <- b + W c
        """
        projections = self.target.corrected_inputs
        # The map has a constant c only if every projection can take it up in its bias.
        has_bias = all(projection.bias is not None for projection in projections)
        identity = Projection(torch.eye(fit.features).to(fit.gram), torch.zeros(fit.features).to(fit.gram))
        correction = fit.solve(identity, self.config.ridge, has_bias, self.target.name)
        for projection in projections:
            weight, bias = fold(correction, projection.weight.to(fit.gram), projection.bias if has_bias else None)
            _replace(projection, weight=weight)
            if bias is not None:
                _replace(projection, bias=bias)

    def select(self) -> None:
        """Selects the units that the target keeps, from the latest scores, and takes the others out."""
        scores = [self.scores.latest[student.place] for student in self.candidates]
        self._kept = as_in_main(self.costs.select(self.candidates, scores)).nonzero().flatten().tolist()
        # Shrunk before the fit, so that only kept features are computed. A target that keeps no unit is shrunk after
        # it: without units, it has no module that could be observed.
        if self._kept:
            self._shrink()

    def write_solution(self, fit: LeastSquares) -> None:
        """Solves the fit and writes W* and b* into the target."""
        student = self.student
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
        response = max(fit.squared_response.item(), torch.finfo(torch.float64).tiny)
        self._error = fit.squared_error(projection) / response
        if not self._kept:
            self._shrink()

    def _shrink(self) -> None:
        """Takes the units that are not kept out of the target."""
        shrink_sublayer(self.target.block, self.target.adapter.to_dict(), self._kept, self.target.units)

    def _append(self, result: SublayerResult) -> None:
        """Takes what the target keeps from the budget, and goes on to the next sublayer."""
        # In the teacher, it is what it was before.
        self.costs.spend(self.pair.teacher.encoder.sublayer(self.target.place), len(result.kept))
        self.results.append(result)


def _replace(projection: Any, **values: Tensor) -> None:
    """Gives a projection the main process's values as new parameters.

    They replace the old ones, which are not written into: the teacher may share them.
    """
    for name, value in values.items():
        present = getattr(projection, name)
        # Contiguous, because a transposed view could not be saved.
        data = as_in_main(value.to(present)).contiguous()
        setattr(projection, name, nn.Parameter(data, present.requires_grad))
