"""The scores of the units, and when and on which part of the data they are measured again."""

import math
from collections.abc import Callable

from torch import Tensor

from ..algorithm.knowledge import unit_scores
from ..configuration import KPruneConfig
from ..encoder.sublayers import Place, Sublayer
from .blocks import measure_blocks
from .costs import unit_of
from .hidden_states import HiddenStates
from .predictions import Predictions
from .statistics import measure_knowledge

# More measurements than this take turns on parts of the data, so that their time is linear in the sublayers.
WHOLE_MEASUREMENTS = 12


def measured_parts(targets: int, config: KPruneConfig) -> int:
    """Returns in how many parts measurements take turns, by the number of targets; 1 if each takes all the data."""
    measurements = math.ceil(targets / config.measure_every)
    return 1 if config.measure_tokens is None else math.ceil(measurements / WHOLE_MEASUREMENTS)


class Scores:
    """Scores S of the units of the target and of all sublayers above it: knowledge per cost, such as per FLOP.

    They are measured before the lowest target, and then before every `measure_every`-th target, because pruning the
    sublayers below changes them. The first measurement is on all the data that is there for it. Those after it take
    turns on its parts, and the scores are running means, in which the latest part counts as much as its share.

    Args:
        predictions: what the models predict.
        config: how knowledge is measured and weighed.
        unit_cost: returns what one unit of a sublayer costs.
        first: scores (units,) in float64 at the lowest target, by the place of the sublayer; empty until they are
            measured. They hold for every rate, because students still equal the teacher there, and rates share them.

    Attributes:
        predictions: what the models predict.
        latest: the latest scores, by place; empty before the first measurement.
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
        self._is_by_block = unit_of(config) == "layers"

    @property
    def latest(self) -> dict[Place, Tensor]:
        """See the attributes."""
        return self._latest or self._first

    @latest.setter
    def latest(self, scores: dict[Place, Tensor]) -> None:
        self._latest = scores

    def are_due(self, number: int) -> bool:
        """Whether scores must be measured before a target, given by its number: 0 is the lowest target."""
        if not self.latest:
            return True
        return number > 0 and number % self._config.measure_every == 0 and not self._is_by_block

    def measure(self, states: HiddenStates, students: list[Sublayer]) -> None:
        """Measures the scores of the target and of the sublayers above it, all in one pass over the data.

        S = mu (K_pred + lambda K_rep) / F          (`unit_scores`; docs/method.md, knowledge)

        For a budget of layers, the units of a block share its score (`measure_blocks`), which is measured once.

        Args:
            states: the student's hidden states, at the target or at its block.
            students: the target and the sublayers above it that have units, in that student.
        """
        pair = self.predictions.pair
        number = len(pair.targets) - len(students)
        part = number // self._config.measure_every % len(pair.parts) if number else None
        if self._is_by_block:
            scores = measure_blocks(self.predictions, states, students, self._config)
        else:
            scores = self._measure_units(states, students, part)
        measured = {student.place: own for student, own in zip(students, scores, strict=True)}
        if number:
            # With one part, the new scores to the last bit.
            share = 1 / len(pair.parts)
            measured = {place: self.latest[place].to(new).lerp(new, share) for place, new in measured.items()}
        else:
            self._first.update(measured)
        self.latest = measured

    def _measure_units(self, states: HiddenStates, students: list[Sublayer], part: int | None) -> list[Tensor]:
        """Returns the scores (units,) of the units of every sublayer, by what is lost with each."""
        importances = measure_knowledge(self.predictions, states, students, self._config, part)
        return [
            unit_scores(importance, self._config.lambda_rep, self._mu(student), self._unit_cost(student))
            for importance, student in zip(importances, students, strict=True)
        ]

    def _mu(self, sublayer: Sublayer) -> float:
        """Returns mu, the factor on the scores of a sublayer: 1 for neurons; for heads, times `head_weight`.

        The knowledge of a head is a mean over its dimensions; by default, mu makes it a sum again.
        """
        if sublayer.adapter.kind == "ffn":
            return 1.0
        return self._config.head_weight * (sublayer.unit_size if self._config.mu is None else self._config.mu)
