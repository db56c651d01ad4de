"""The loop of K-prune: sublayer by sublayer from the bottom, measure, search, tune and shrink; all rates at once."""

import logging
import time
from contextlib import ExitStack

from ..encoder.offloading import own_weights
from ..encoder.sublayers import Sublayer
from ..progress import progress_bar
from .costs import asked_in
from .rate import RatePruner
from .statistics import gather_corrections, gather_fits
from .stopwatch import Stopwatch

logger = logging.getLogger(__name__)

# The bar shows the share of the work that is done, not the number of sublayers: they take different times.
BAR_FORMAT = "{desc} {percentage:3.0f}%|{bar}| {elapsed}<{remaining}"


class Loop:
    """Prunes and tunes the students of one teacher, one sublayer after the other; the teacher runs once for all.

    Args:
        rates: what prunes each student. Their pairs have the same teacher, and their settings differ in what units may
            cost only. Where rates share their scores, knowledge is measured on the student that may keep the most.

    Attributes:
        stopwatch: the seconds that the stages take, for all rates.
    """

    def __init__(self, rates: list[RatePruner]) -> None:
        self.rates = sorted(rates, key=lambda rate: rate.costs.budget, reverse=True)
        self.teacher, self.config = rates[0].pair.teacher, rates[0].config
        self.stopwatch = Stopwatch(self.teacher.encoder.device)
        self._targets = [target.place for target in rates[0].pair.targets]

    def run(self) -> None:
        """Prunes all sublayers, bottom to top; every rate then has a result for each."""
        work = self._work()
        # Without smoothing, the time left follows from all work so far: the speed of one sublayer says little.
        with progress_bar(total=sum(work), bar_format=BAR_FORMAT, smoothing=0) as bar:
            for index, teacher in enumerate(self.teacher.encoder.sublayers()):
                bar.set_description(f"Pruning {teacher.name}")
                self._prune_sublayer(index, teacher)
                bar.update(work[index])

    def _prune_sublayer(self, index: int, teacher: Sublayer) -> None:
        """Prunes a sublayer of every student, or takes it from the checkpoint.

        Args:
            index: number of the sublayer, from the bottom.
            teacher: the sublayer in the teacher.
        """
        started = time.perf_counter()
        if teacher.units:
            with self.stopwatch("advance"):
                for rate in self.rates:
                    rate.pair.advance(teacher)
        finished = [rate for rate in self.rates if index < rate.finished]
        others = [rate for rate in self.rates if index >= rate.finished]
        with ExitStack() as stack:
            for rate in self.rates:
                rate.begin()
                stack.enter_context(own_weights(rate.target.block))
            # First, because their scores may be those of the other rates, too.
            for rate in finished:
                rate.restore()
            if teacher.units and others:
                self._prune_target(teacher, others)
            for rate in others:
                rate.finish((time.perf_counter() - started) / len(others))
        for rate in self.rates:
            where = ", from the checkpoint" if rate in finished else ""
            of_rate = f"{asked_in(rate.config)}, " if len(self.rates) > 1 else ""
            logger.info("%s%s%s", of_rate, rate.results[-1], where)

    def _prune_target(self, teacher: Sublayer, rates: list[RatePruner]) -> None:
        """Runs the method on one target: correct inputs, score, select, shrink, fit, write; see docs/method.md.

        Args:
            teacher: the target in the teacher.
            rates: those whose students are pruned.
        """
        for rate in rates:
            rate.give_bias()
        self._correct_inputs(teacher, rates)  # W <- W M^T, b <- b + W c
        self._score(self._targets.index(teacher.place), rates)  # S = mu (K_pred + lambda K_rep) / F
        with self.stopwatch("search"):
            for rate in rates:
                rate.select()  # S > nu, the least threshold that fits the budget
        pairs, students = [rate.pair for rate in rates], [rate.student for rate in rates]
        with self.stopwatch("fit"):
            fits = gather_fits(pairs, teacher, students, self.config)  # A^T D A, A^T D Y
        with self.stopwatch("solve"):
            for rate in rates:
                rate.write_solution(fits.pop(0))  # W*, b*

    def _correct_inputs(self, teacher: Sublayer, rates: list[RatePruner]) -> None:
        """Corrects what the target reads, so that it is close to what it reads in the teacher."""
        is_lowest = teacher.place == self._targets[0]  # there, students and teacher read the same
        if is_lowest or not (self.config.tuning and self.config.correct_inputs and teacher.corrected_inputs):
            return
        pairs, students = [rate.pair for rate in rates], [rate.target for rate in rates]
        with self.stopwatch("fit"):
            fits = gather_corrections(pairs, teacher, students)
        with self.stopwatch("solve"):
            for rate in rates:
                rate.correct(fits.pop(0))

    def _score(self, number: int, rates: list[RatePruner]) -> None:
        """Measures the scores of a target, given by its number, and of the sublayers above it, where they are due."""
        # What finished rates share has come from their checkpoints.
        known = {rate.scores for rate in self.rates if rate not in rates}
        for rate in rates:
            # Asked one after the other: at the lowest target, what was measured for a rate holds for all.
            if rate.scores not in known and rate.scores.are_due(number):
                # Made here and not before, because a checkpoint or an earlier rate may have all scores needed.
                with self.stopwatch("teacher"):
                    rate.scores.predictions.make()
                with self.stopwatch("measure"):
                    rate.scores.measure(rate.pair.student, rate.candidates)
            known.add(rate.scores)

    def _work(self) -> list[float]:
        """Returns the work that each sublayer takes, from which the bar estimates the time left.

        The unit of work is a run of all calibration tokens through one sublayer. A sublayer takes one for the teacher,
        and four for the passes and the solve of every student. A measurement takes three, forward and twice backward,
        through every sublayer from there on, for the share of the tokens on which knowledge is measured: at first all
        that are there for it, then a part. To read a finished sublayer, and to move past it, takes little time.
        """
        pair = self.rates[0].pair
        measured_share = pair.measured / max(1, len(pair))
        work = []
        for index, sublayer in enumerate(self.teacher.encoder.sublayers()):
            students = sum(index >= rate.finished for rate in self.rates)
            if not sublayer.units or not students:
                work.append(0.0)
                continue
            number = self._targets.index(sublayer.place)
            # At the lowest target, one measurement is for all.
            measuring = {rate.scores for rate in self.rates if index >= rate.finished}
            measurements = len(measuring) if number else int(not self.rates[0].scores.latest)
            if number % self.config.measure_every:
                measurements = 0
            parts = len(pair.parts) if number else 1
            measurement = 3 * measured_share / parts * (len(self._targets) - number)
            work.append(1 + 4 * students + measurement * measurements)
        return work
