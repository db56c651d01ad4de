"""The scores of the units, and when they are measured again."""

from collections.abc import Callable

from torch import Tensor

from ..algorithm.knowledge import Importance, shares_of_whole, unit_scores
from ..configuration import KPruneConfig
from ..encoder.sublayers import Place, Sublayer
from .costs import unit_of
from .hidden_states import HiddenStates
from .predictions import Predictions
from .statistics import measure_knowledge


class Scores:
    """Scores S of the units of the target and of all sublayers above it: knowledge per cost, such as per FLOP.

    They are measured before the lowest target, and then before every `measure_every`-th target, because pruning the
    sublayers below changes them.

    Args:
        predictions: what the models predict.
        config: how knowledge is measured and weighed.
        unit_cost: returns what one unit of a sublayer costs.
        first: scores (units,) in float64 at the lowest target, by the place of the sublayer; empty until they are
            measured. They hold for every rate, because students still equal the teacher there, and rates share them.

    Attributes:
        predictions: what the models predict.
        latest: the scores of the last measurement, by place; empty before the first one.
    """

    def __init__(
        self,
        predictions: Predictions,
        config: KPruneConfig,
        unit_cost: Callable[[Sublayer], float],
        first: dict[Place, Tensor] | None = None,
    ) -> None:
        self.predictions = predictions
        self._first = {} if first is None else first
        self._latest: dict[Place, Tensor] = {}
        self._config, self._unit_cost = config, unit_cost

    @property
    def latest(self) -> dict[Place, Tensor]:
        """See the attributes."""
        return self._latest or self._first

    @latest.setter
    def latest(self, scores: dict[Place, Tensor]) -> None:
        self._latest = scores

    def are_due(self, number: int) -> bool:
        """Whether scores must be measured before a target, given by its number: 0 is the lowest target."""
        return not self.latest or (number > 0 and number % self._config.measure_every == 0)

    def measure(self, states: HiddenStates, students: list[Sublayer]) -> None:
        """Measures the scores of the target and of the sublayers above it, all in one pass over the data.

        S = mu (K_pred + lambda K_rep) / F          (`unit_scores`; docs/method.md, knowledge)
        S = K_pred(sublayer) / units                (`shares_of_whole`, for a budget of layers; docs/budgets.md)

        Args:
            states: the student's hidden states, at the target or at its block.
            students: the target and the sublayers above it that have units, in that student.
        """
        importances = measure_knowledge(self.predictions, states, students, self._config)
        self.latest = {
            student.place: self._score(importance, student)
            for importance, student in zip(importances, students, strict=True)
        }
        # All targets are there to be scored: this is the lowest.
        if len(students) == len(self.predictions.pair.targets):
            self._first.update(self.latest)

    def _score(self, importance: Importance, sublayer: Sublayer) -> Tensor:
        if unit_of(self._config) == "layers":
            return shares_of_whole(importance)
        return unit_scores(importance, self._config.lambda_rep, self._mu(sublayer), self._unit_cost(sublayer))

    def _mu(self, sublayer: Sublayer) -> float:
        """Returns mu, the factor on the scores of a sublayer: 1 for neurons; for heads, times `head_weight`.

        The knowledge of a head is a mean over its dimensions; by default, mu makes it a sum again.
        """
        if sublayer.adapter.kind == "ffn":
            return 1.0
        return self._config.head_weight * (sublayer.unit_size if self._config.mu is None else self._config.mu)
