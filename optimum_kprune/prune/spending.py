"""A budget that is spent sublayer by sublayer: what units cost, and which of them are selected by what is left."""

from collections.abc import Callable

from torch import Tensor

from ..algorithm.search import round_selection, select_units, with_reserved
from ..encoder.sublayers import Sublayer


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
