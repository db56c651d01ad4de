"""A budget that is spent sublayer by sublayer: what units cost, and which of them are selected by what is left."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from ..algorithm.search import highest, round_selection, select_units, select_widths, with_reserved
from ..encoder.sublayers import Place, Sublayer


class Costs:
    """Units that cost the same at every width of their sublayer, and a budget for them.

    Args:
        targets: the sublayers that have units.
        unit_cost: returns what one unit of a sublayer costs.
        dense: what the dense model costs; None for the cost of its units.
        added: what a prune adds to it.
        neuron_multiple: see `KPruneConfig`.

    Attributes:
        unit_cost: the same; scores are knowledge per cost.
        dense: what the dense model costs.
        stays: what remains if all units go.
        least: what remains if all units go that can.
        budget: what is left for the target and the sublayers above it; at first, what all units cost.
    """

    def __init__(
        self,
        targets: list[Sublayer],
        unit_cost: Callable[[Sublayer], float],
        dense: float | None = None,
        added: float = 0,
        neuron_multiple: int = 1,
    ) -> None:
        self.unit_cost, self._neuron_multiple = unit_cost, neuron_multiple
        self.budget = sum(target.units * unit_cost(target) for target in targets)
        self.dense = self.budget if dense is None else dense
        self.stays = self.dense + added - self.budget
        self.least = self.stays + sum(target.least_units * unit_cost(target) for target in targets)

    def select(self, students: list[Sublayer], scores: list[Tensor]) -> Tensor:
        """Selects the units that the target keeps, (units,) boolean; see `select_units`.

        Args:
            students: the target and the sublayers above it that have units, in the student.
            scores: (units,) for each of them, knowledge per cost.
        """
        target, costs = students[0], [self.unit_cost(student) for student in students]
        scores = [with_reserved(own, each.least_units) for own, each in zip(scores, students, strict=True)]
        # Units of all sublayers compete for the budget, but only the target is pruned by it.
        selected = select_units(scores, costs, self.budget)[0]
        if target.adapter.kind == "ffn" and self._neuron_multiple > 1:
            most = self.budget / costs[0]
            return round_selection(selected, scores[0], self._neuron_multiple, most, target.least_units)
        return selected

    def spend(self, sublayer: Sublayer, kept: int) -> None:
        """Takes from the budget what the target costs with the units that it keeps.

        Args:
            sublayer: the target before it was shrunk.
            kept: number of units that it keeps.
        """
        # A sublayer that an earlier prune has emptied has no unit that could be counted.
        self.budget -= kept * self.unit_cost(sublayer) if kept else 0.0


class CostsByWidth(Costs):
    """Units whose cost depends on how many there are, such as milliseconds. Scores are knowledge.

    Args:
        targets: the sublayers that have units.
        curves: what 0, 1, ..., all units of a sublayer cost, more than the least it can have; by place.
        multiples: the multiple of a number of units that is kept, by place; all may be kept too.
        dense: what the dense model costs.
        stays: what remains if all units go that can.
    """

    def __init__(
        self,
        targets: list[Sublayer],
        curves: Mapping[Place, Sequence[float]],
        multiples: Mapping[Place, int],
        dense: float,
        stays: float,
    ) -> None:
        super().__init__(targets, unit_cost=lambda sublayer: 1.0, dense=dense)
        self.stays = self.least = stays
        self._curves, self._multiples = curves, multiples

    def select(self, students: list[Sublayer], scores: list[Tensor]) -> Tensor:
        """See `Costs`; and `select_widths`."""
        curves = [self._curves[student.place] for student in students]
        kept = select_widths(scores, curves, [self._widths(student) for student in students], self.budget)[0]
        return highest(scores[0], kept)

    def spend(self, sublayer: Sublayer, kept: int) -> None:
        """See `Costs`."""
        if sublayer.units:
            self.budget -= self._curves[sublayer.place][kept]

    def _widths(self, sublayer: Sublayer) -> list[int]:
        multiples = range(0, sublayer.units, self._multiples[sublayer.place])
        return [sublayer.least_units, *(n for n in multiples if n > sublayer.least_units), sublayer.units]


class CostsByBlock(Costs):
    """Blocks that are kept or removed as a whole; each costs 1. Scores are knowledge.

    The first sublayer of a block decides, by what its units and those of the blocks above know.

    Args:
        targets: the sublayers that have units.
    """

    def __init__(self, targets: list[Sublayer]) -> None:
        super().__init__(targets, unit_cost=lambda sublayer: 1.0, dense=len({target.layer for target in targets}))
        self.stays = self.least = 0.0
        self._is_kept: dict[int, bool] = {}

    def select(self, students: list[Sublayer], scores: list[Tensor]) -> Tensor:
        """See `Costs`."""
        layer = students[0].layer
        if layer not in self._is_kept:
            knowledge: dict[int, float] = {}
            for student, own in zip(students, scores, strict=True):
                knowledge[student.layer] = knowledge.get(student.layer, 0.0) + float(own.sum())
            # Stable: among equals, lower blocks come first.
            best = sorted(knowledge, key=lambda layer: -knowledge[layer])[: int(self.budget)]
            return torch.full_like(scores[0], layer in best, dtype=torch.bool)
        return torch.full_like(scores[0], self._is_kept[layer], dtype=torch.bool)

    def spend(self, sublayer: Sublayer, kept: int) -> None:
        """See `Costs`."""
        # Decided here and not in `select`, which is not asked about what a checkpoint has.
        if sublayer.units and sublayer.layer not in self._is_kept:
            self._is_kept[sublayer.layer] = bool(kept)
            self.budget -= bool(kept)
