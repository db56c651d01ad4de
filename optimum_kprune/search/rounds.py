"""The search itself: in rounds, several models are pruned and evaluated, until the bracket is narrow enough."""

import copy
import logging
import time
from dataclasses import dataclass, field, replace
from typing import Any

from ..distributed import gather
from ..frontier import Frontier, FrontierPoint
from ..order import Order, config_at, within
from ..result import HeldoutQuality, KPruneResult
from ..session import PruneSession
from . import words
from .bracket import Allowed, Tried, bracket_of, next_rates
from .journal import DENSE, Journal
from .points import dense_point, pruned_point
from .quality import Quality
from .target import Figure, Target, is_number

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Limits:
    """How far a search goes.

    Attributes:
        target: what is allowed.
        confidence: how sure it must be that the chosen model holds, in [0.5, 1).
        resolution: how far apart rates may be at the end.
        max_evaluations: the number of pruned models that may be evaluated.
    """

    target: Target
    confidence: float
    resolution: float
    max_evaluations: int

    def check(self) -> None:
        """Raises a ValueError if a limit is out of its range."""
        is_whole = isinstance(self.max_evaluations, int) and not isinstance(self.max_evaluations, bool)
        ranges = {
            "confidence": (is_number(self.confidence) and 0.5 <= self.confidence < 1, "a number in [0.5, 1)"),
            "resolution": (is_number(self.resolution) and 0.001 <= self.resolution < 1, "a number in [0.001, 1)"),
            "max_evaluations": (is_whole and self.max_evaluations >= 1, "a whole number, 1 or above"),
        }
        for name, (is_allowed, allowed) in ranges.items():
            if not is_allowed:
                raise ValueError(f"`{name}` must be {allowed}. Got {getattr(self, name)!r} instead.")


@dataclass
class Search:
    """One search.

    Attributes:
        session: where models are pruned.
        order: the order whose settings every model is pruned by; its pruner gets the chosen model.
        quality: how models are evaluated.
        limits: how far it goes.
        journal: what was evaluated.
        tried: the rates that were tried, in ascending order.
    """

    session: PruneSession
    order: Order
    quality: Quality
    limits: Limits
    journal: Journal
    tried: list[Tried] = field(default_factory=list)

    def run(self) -> Frontier:
        """Searches, and gives the chosen model to the pruner of the order.

        Raises:
            ValueError: if not even the dense model is allowed, no other is, or an evaluation gives no finite number.
        """
        started = time.perf_counter()
        dense = self._dense()
        figure = self.quality.of_dense(dense.figures, self.journal.measure)
        allowed = Allowed(self.limits.target.allowed_drop(figure), self.limits.confidence)
        logger.info(words.beginning(figure, allowed))
        # The best model so far, and those of the round. What earlier runs have evaluated is not among them.
        held: dict[str, Order] = {}
        number = 0
        while rates := self._next(allowed):
            number += 1
            held |= self._round(number, rates, figure, allowed)
            best = self._best(allowed)
            held = {budget: order for budget, order in held.items() if best and budget == best.budget}
        frontier = self._frontier(dense, figure, allowed, time.perf_counter() - started)
        for note in frontier.notes:
            logger.info(note)
        chosen = self._best(allowed)
        if chosen is None:
            raise ValueError(words.none_holds(figure, allowed, self.tried))
        logger.info("Chosen: %s", words.point_in_words(figure, chosen, allowed))
        self._take(held.get(chosen.budget) or self._pruned(chosen.budget), frontier)
        return frontier

    def _next(self, allowed: Allowed) -> list[float]:
        left = self.limits.max_evaluations - len({each.budget for each in self.tried})
        return next_rates(self.tried, allowed, self.limits.resolution, left)

    def _best(self, allowed: Allowed) -> Tried | None:
        """Returns the smallest model that holds, of those that were tried so far."""
        low = bracket_of(self.tried, allowed).low
        return next((each for each in self.tried if each.rate == low), None)

    def _round(self, number: int, rates: list[float], figure: Figure, allowed: Allowed) -> dict[str, Order]:
        """Prunes and evaluates the models of a round; returns those that were pruned now, by their budgets."""
        budgets = {rate: self.session.sweep.budget_at(rate, self.order.config) for rate in rates}
        logger.info("Round %d: %s", number, ", ".join(dict.fromkeys(budgets.values())))
        # Others were evaluated in another run of this search; or by another rate, of which a layer is more than one.
        new = [budget for budget in dict.fromkeys(budgets.values()) if budget not in self.journal.points]
        pruned = {}
        orders = self.session.carry_out([self._order(budget) for budget in new]) if new else ()
        for budget, (order, result) in zip(new, orders, strict=True):
            self.journal.write(budget, self._point(order, result, figure))
            pruned[budget] = order
        tried = [_tried(rate, self.journal.points[budget], figure) for rate, budget in budgets.items()]
        for each in tried:
            logger.info(words.point_in_words(figure, each, allowed))
        self.tried = sorted([*self.tried, *tried])
        return pruned

    def _order(self, budget: str) -> Order:
        config = config_at(budget, self.order.config)
        pruner = copy.copy(self.order.pruner)
        return Order(pruner, config, None, within(self.order.checkpoint_dir, config), overwrite=False)

    def _pruned(self, budget: str) -> Order:
        """Prunes a model again that was evaluated before; with a checkpoint, it is read from there."""
        ((order, _),) = self.session.carry_out([self._order(budget)])
        return order

    def _take(self, chosen: Order, frontier: Frontier) -> None:
        """Makes the chosen model that of the pruner, and saves it if asked to."""
        assert frontier.chosen is not None
        pruner = self.order.pruner
        # As a copy of the pruner has it: with what the card and the saving need.
        vars(pruner).update(vars(chosen.pruner))
        pruner.frontier = frontier
        pruner._figures = self.quality.facts(frontier.dense.figures, frontier.points[frontier.chosen].figures)
        self.order.save()

    def _dense(self) -> FrontierPoint:
        """Evaluates the dense model, if that was not done yet."""
        if DENSE not in self.journal.points:
            started = time.perf_counter()
            teacher = self.session.pruner.teacher
            heldout = self.session.heldout_of_dense() if self.quality.evaluation is None else None
            figures = self._figures(teacher, heldout)
            self.journal.measure = self.quality.of_dense(figures).name
            point = dense_point(teacher, figures, self.quality, heldout, self._is_paired)
            self.journal.write(DENSE, replace(point, seconds=time.perf_counter() - started))
        return self.journal.points[DENSE]

    def _point(self, order: Order, result: KPruneResult, figure: Figure) -> FrontierPoint:
        """Evaluates a pruned model."""
        started = time.perf_counter()
        figures = self._figures(order.pruner.model, result.heldout)
        point = pruned_point(order.config, result, figures, self.quality, figure, self._is_paired)
        return replace(point, seconds=point.seconds + time.perf_counter() - started)

    @property
    def _is_paired(self) -> bool:
        """Whether what counts is the difference from the dense model, which has less noise than either figure."""
        return self.limits.target.kind != "floor"

    def _figures(self, model: Any, heldout: HeldoutQuality | None) -> dict[str, Any]:
        # Those of the main process, so that all choose alike.
        return gather(self.quality.figures(model, heldout))[0]

    def _frontier(self, dense: FrontierPoint, figure: Figure, allowed: Allowed, seconds: float) -> Frontier:
        budgets = list(dict.fromkeys(each.budget for each in self.tried))
        best = self._best(allowed)
        samples = dense.heldout.samples if dense.heldout else self.quality.samples
        table = self.session.sweep.latency_table
        return Frontier(
            dense=replace(dense, milliseconds=table.dense) if table else dense,
            points=[self.journal.points[budget] for budget in budgets],
            measure=figure.name,
            greater_is_better=figure.greater_is_better,
            floor=figure.at_drop(allowed.drop),
            chosen=budgets.index(best.budget) if best else None,
            notes=words.notes(figure, allowed, self.tried, samples, self.limits.resolution),
            seconds=seconds,
            conditions=table.conditions if table else "",
        )


def _tried(rate: float, point: FrontierPoint, figure: Figure) -> Tried:
    assert point.quality is not None
    return Tried(rate, figure.drop(point.quality), point.quality_error, point.budget)
