"""What units cost in the unit of the budget, how much they may cost in all, and which of them are selected by that."""

from collections.abc import Callable

from torch import Tensor

from ..algorithm.cost import flops_budget
from ..algorithm.search import round_selection, select_units, with_reserved
from ..configuration import KPruneConfig
from ..encoder.sublayers import Sublayer


class Costs:
    """Units that cost the same at every width of their sublayer, and a budget for them.

    Args:
        unit_cost: returns what one unit of a sublayer costs.
        total: what all units cost.
        budget: what those that are kept may cost.
        neuron_multiple: see `KPruneConfig`.

    Attributes:
        unit_cost: the same; scores are knowledge per cost.
        budget: what is left of the budget for the target and the sublayers above it.
    """

    def __init__(
        self, unit_cost: Callable[[Sublayer], float], total: float, budget: float, neuron_multiple: int
    ) -> None:
        self.unit_cost, self.budget = unit_cost, budget
        self._total, self._neuron_multiple = total, neuron_multiple

    def require_reserved(self, targets: list[Sublayer], config: KPruneConfig) -> None:
        """Raises a ValueError if the budget does not suffice for the units that must stay."""
        reserved = sum(target.least_units * self.unit_cost(target) for target in targets)
        if reserved > self.budget:
            raise ValueError(
                f"`compression_rate` must be at most {1 - reserved / self._total:.3f} for this model: some of its "
                f"sublayers cannot be taken out whole, and keep one unit each. Got {config.compression_rate}."
            )

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


def flops_costs(targets: list[Sublayer], config: KPruneConfig, sequence_length: int) -> Costs:
    """Returns the FLOPs of the units on a sequence of T tokens, of which the compression rate goes."""
    total = sum(target.units * target.unit_flops(sequence_length) for target in targets)
    budget = flops_budget(total, config.compression_rate)
    return Costs(lambda sublayer: sublayer.unit_flops(sequence_length), total, budget, config.neuron_multiple)
