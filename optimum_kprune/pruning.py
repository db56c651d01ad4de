"""The loop of K-prune: sublayer by sublayer from the bottom, measure, search, tune and shrink."""

import math
import time
from dataclasses import asdict, replace

import torch
from torch import Tensor

from .algorithm.knowledge import unit_scores
from .algorithm.search import select_units
from .configuration import KPruneConfig
from .frontier import Frontier
from .modeling_kprune import shrink_sublayer
from .passes import Progress, gather_fit, measure_knowledge
from .report import SublayerResult
from .sublayers import Sublayer


class SublayerPruner:
    """Prunes and tunes the student of a frontier in place, one sublayer after the other.

    Args:
        frontier: at its start, where the student equals the teacher.
        config: the settings.
        progress: wraps every iteration over the calibration data.

    Attributes:
        sequence_length: tokens T at which FLOPs are counted.
        budget: FLOPs that the sublayers from the target upward may cost.

    Raises:
        ValueError: if the model has no units.
    """

    def __init__(self, frontier: Frontier, config: KPruneConfig, progress: Progress) -> None:
        self.frontier = frontier
        self.config = config
        self.progress = progress
        self.sequence_length = config.sequence_length or max(1, round(frontier.tokens / frontier.rows))
        total = sum(
            sublayer.units * sublayer.unit_flops(self.sequence_length) for sublayer in frontier.teacher.sublayers()
        )
        if not total:
            raise ValueError("The model has no heads or neurons left to prune. Start from a larger model.")
        self.budget = total - math.ceil(config.compression_rate * total)

    def run(self) -> list[SublayerResult]:
        """Prunes all sublayers; returns one entry for each, bottom to top."""
        results = []
        self.frontier.start(self.progress)
        for index, teacher in enumerate(self.frontier.teacher.sublayers()):
            started = time.perf_counter()
            if teacher.layer > self.frontier.layer:
                self.frontier.advance(self.progress)
            result = self._prune_target(teacher, self.frontier.student.sublayers()[index:])
            results.append(replace(result, seconds=time.perf_counter() - started))
        return results

    def _prune_target(self, teacher: Sublayer, students: list[Sublayer]) -> SublayerResult:
        """Prunes the lowest of the student's sublayers that are left; one without units stays as it is."""
        target = students[0]
        parameters_before, unit_flops = target.parameters, target.unit_flops(self.sequence_length)
        indices: list[int] = []
        error = 0.0
        if target.units:
            kept = self._select([student for student in students if student.units])
            error = self._tune(teacher, target, target.feature_indices(kept))
            indices = kept.nonzero().flatten().tolist()
            shrink_sublayer(target.block, asdict(target.adapter), indices, target.units)
        self.budget -= len(indices) * unit_flops
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

    def _select(self, students: list[Sublayer]) -> Tensor:
        """Returns (units,) boolean, true at the units of the target to keep."""
        flops = [sublayer.unit_flops(self.sequence_length) for sublayer in students]
        importances = measure_knowledge(self.frontier, students, self.config, self.progress)
        scores = [
            unit_scores(importance, self.config.lambda_rep, self._mu(sublayer), cost)
            for importance, sublayer, cost in zip(importances, students, flops, strict=True)
        ]
        return select_units(scores, flops, self.budget)[0]

    def _tune(self, teacher: Sublayer, target: Sublayer, features: Tensor) -> float:
        """Refits the output projection on the kept features; returns the relative reconstruction error."""
        fit = gather_fit(self.frontier, teacher, target, features, self.progress)
        projection = target.projection(features)
        has_bias = target.output.bias is not None
        if self.config.bias == "drop" and not len(features):
            projection = projection._replace(bias=torch.zeros_like(projection.bias))
        if self.config.tuning:
            fit_bias = has_bias and self.config.bias == "refit"
            projection = fit.solve(projection, self.config.ridge, fit_bias, target.name)
        with torch.no_grad():
            target.output.weight[:, features] = projection.weight.T.to(target.output.weight)
            if has_bias:
                target.output.bias.copy_(projection.bias)
        return fit.squared_error(projection) / max(fit.squared_target.item(), torch.finfo(torch.float64).tiny)

    def _mu(self, sublayer: Sublayer) -> float:
        """The factor on scores: heads' knowledge is a mean over their dimensions, neurons' is not."""
        if sublayer.adapter.kind == "ffn":
            return 1.0
        return sublayer.unit_size if self.config.mu is None else self.config.mu
