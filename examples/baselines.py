"""Other ways to choose what is kept, to compare with knowledge: at random, by magnitude, or by dropping layers.

They go through the same loop as K-prune, which removes as many FLOPs and, with `tuning`, refits what is left.
"""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from optimum_kprune import KPruneConfig, KPruner, KPruneResult
from optimum_kprune.calibration.prepare import CalibrationBatches
from optimum_kprune.encoder.sublayers import Encoder, Sublayer
from optimum_kprune.prune.sweep import Sweep

KNOWLEDGE = "knowledge"
# More sublayers than any model has: scores that are measured before every so many are never measured.
NEVER = 1_000_000


def random_scores(sublayer: Sublayer, generator: torch.Generator) -> Tensor:
    """Returns scores between 0 and 1 that mean nothing."""
    return torch.rand(sublayer.units, generator=generator, dtype=torch.float64)


def magnitude_scores(sublayer: Sublayer, generator: torch.Generator) -> Tensor:
    """Returns the root mean square of the weights of every unit, in the input and the output projections.

    Raises:
        ValueError: if an input projection has not one row for each feature, so that its rows are not known to be those
            of the units in their order.
    """
    weights = [projection.weight for projection in sublayer.inputs] + [sublayer.output.weight.T]
    if any(len(weight) != sublayer.features for weight in weights):
        raise ValueError(
            "Magnitudes are compared in models whose input projections have one row for each feature, as BERT's. "
            f"{sublayer.name} has {sublayer.features} features and projections of {[len(w) for w in weights]} rows."
        )
    rows = torch.cat([weight.detach().double().reshape(sublayer.units, -1) for weight in weights], dim=1)
    return rows.square().mean(dim=1).sqrt()


def layer_scores(sublayer: Sublayer, generator: torch.Generator) -> Tensor:
    """Returns scores by which whole blocks go, the topmost first; of the last one that goes, the smallest units."""
    magnitudes = magnitude_scores(sublayer, generator)
    return magnitudes / (1 + magnitudes) - sublayer.layer


SELECTIONS: dict[str, Callable[[Sublayer, torch.Generator], Tensor]] = {
    "random": random_scores,
    "magnitude": magnitude_scores,
    "layers": layer_scores,
}


class SelectingPruner(KPruner):
    """A pruner whose units may be chosen otherwise than by their knowledge.

    Attributes:
        selection: `"knowledge"`, or a key of `SELECTIONS`.
    """

    selection = KNOWLEDGE

    def prune(self, config: KPruneConfig, *args: Any, **kwargs: Any) -> KPruneResult:
        """Prunes; scores that are not those of knowledge hold for all sublayers."""
        if self.selection != KNOWLEDGE:
            config = copy.copy(config)
            config.measure_every = NEVER
        return super().prune(config, *args, **kwargs)

    def _sweep_over(self, dense: Encoder, calibration: CalibrationBatches, config: KPruneConfig) -> Sweep:
        """Gives the sweep the scores of the selection."""
        sweep = super()._sweep_over(dense, calibration, config)
        if self.selection != KNOWLEDGE:
            score, generator = SELECTIONS[self.selection], torch.Generator().manual_seed(config.seed)
            sublayers = [sublayer for sublayer in dense.sublayers() if sublayer.units]
            sweep.first_scores["flops"] = {sublayer.place: score(sublayer, generator) for sublayer in sublayers}
        return sweep
