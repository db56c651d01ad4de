"""Searches whose prunes cost nothing: a model is a rate, and its quality is a function of it."""

from types import SimpleNamespace

from torch import nn

from optimum_kprune import KPruneConfig
from optimum_kprune.budget import Budget, parse_budget
from optimum_kprune.order import Order
from optimum_kprune.search.journal import Journal
from optimum_kprune.search.quality import Quality
from optimum_kprune.search.rounds import Limits, Search
from optimum_kprune.search.target import Target

SIZES = {"parameters_after": 110, "megabytes_after": 0.1, "latency": None}


class Model(nn.Linear):
    """A model of a rate; the dense one has rate 0."""

    def __init__(self, rate):
        super().__init__(10, 10)
        self.rate = rate


class Pruner:
    """What a search needs of a pruner."""

    def __init__(self):
        self.teacher = self.model = Model(0.0)
        self.result = self.config = None
        self._figures = {}


class Session:
    """Prunes by noting the rate, of FLOPs or of so many layers."""

    def __init__(self, pruner, heldout=None, layers=None):
        self.pruner, self.heldout, self.layers = pruner, heldout, layers
        self.pruned, self.sweep = [], SimpleNamespace(latency_table=None, budget_at=self.budget_at)

    def carry_out(self, orders):
        for order in orders:
            rate = self.rate_of(order.config)
            self.pruned.append(rate)
            order.pruner.model, order.pruner.config = Model(rate), order.config
            order.pruner.result = SimpleNamespace(flops_removed=rate, **SIZES, heldout=self.heldout, seconds=0.0)
            yield order, order.pruner.result

    def budget_at(self, rate, config):
        if self.layers:
            return f"{max(1, round(self.layers * (1 - rate)))} layers"
        return str(Budget("flops", 1 - rate, is_share=True))

    def rate_of(self, config):
        amount = parse_budget(config.budget).amount
        return round(1 - (amount / self.layers if self.layers else amount), 12)

    def heldout_of_dense(self):
        return self.heldout


def search_of(quality_at, target=None, session=None, folder=None, measure=None, heldout=None, **limits):
    """A search for the smallest model; `quality_at` gives the figure of a rate."""
    session = session or Session(Pruner(), heldout)
    limits = {"confidence": 0.8, "resolution": 0.02, "max_evaluations": 12, **limits}
    measured = measure or (lambda model: quality_at(model.rate))
    quality = Quality(measured, "accuracy", None, None, "text-classification", measured, {})
    order = Order(session.pruner, KPruneConfig(), None, folder, overwrite=False)
    journal = Journal(folder, {"curve": 1})
    return Search(session, order, quality, Limits(target or Target(0.01, "points"), **limits), journal)
