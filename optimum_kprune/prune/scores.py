"""The scores of the units, and when they are measured anew."""

from torch import Tensor

from ..algorithm.knowledge import unit_scores
from ..configuration import KPruneConfig
from ..encoder.sublayers import Place, Sublayer
from .pair import Pair
from .predictions import Predictions
from .statistics import measure_knowledge


class Scores:
    """Scores S of the units of the target and of all sublayers above it: knowledge per FLOP.

    They are measured before the lowest target, and then before every `measure_every`-th: what is pruned below changes
    them.

    Args:
        predictions: what the models predict.
        config: how knowledge is measured and weighed.
        sequence_length: tokens T at which FLOPs are counted.
        first: scores that were measured at the lowest target earlier, to whatever rate: where the student still equals
            the teacher, all rates measure the same.

    Attributes:
        predictions: what the models predict.
        first: scores (units,) in float64 by sublayer, as measured at the lowest target; None if they were not.
        latest: those of the last measurement; empty if there was none.
    """

    def __init__(
        self,
        predictions: Predictions,
        config: KPruneConfig,
        sequence_length: float,
        first: dict[Place, Tensor] | None = None,
    ) -> None:
        self.predictions = predictions
        self.first = first
        self.latest = first or {}
        self._config, self._sequence_length = config, sequence_length

    def are_due(self, number: int) -> bool:
        """Whether scores are to be measured before the target of a number, counted from 0 at the lowest."""
        return not self.latest or (number > 0 and number % self._config.measure_every == 0)

    def measure(self, pair: Pair, students: list[Sublayer]) -> None:
        """Scores the units of the student's target and of the sublayers above it, all in one pass.

        S = mu (K_pred + lambda K_rep) / F          (`unit_scores`; docs/method.md, knowledge)
        """
        importances = measure_knowledge(pair, self.predictions, students, self._config)
        self.latest = {
            student.place: unit_scores(
                importance, self._config.lambda_rep, self._mu(student), student.unit_flops(self._sequence_length)
            )
            for importance, student in zip(importances, students, strict=True)
        }
        if len(students) == len(pair.targets):
            self.first = self.latest

    def _mu(self, sublayer: Sublayer) -> float:
        """The factor on scores: heads' knowledge is a mean over their dimensions, neurons' is not."""
        if sublayer.adapter.kind == "ffn":
            return 1.0
        return self._config.head_weight * (sublayer.unit_size if self._config.mu is None else self._config.mu)
