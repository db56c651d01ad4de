"""Searches whose prunes cost nothing: a model is a rate, and its quality is a function of it."""

from types import SimpleNamespace

from torch import nn

from optimum_kprune import KPruneConfig
from optimum_kprune.order import Order
from optimum_kprune.search.journal import Journal
from optimum_kprune.search.quality import Quality
from optimum_kprune.search.rounds import Limits, Search
from optimum_kprune.search.target import Target


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
    """Prunes by noting the rate."""

    def __init__(self, pruner, heldout=None):
        self.pruner, self.heldout = pruner, heldout
        self.pruned, self.most_alive = [], 0

    def carry_out(self, orders):
        for order in orders:
            rate = order.config.compression_rate
            self.pruned.append(rate)
            order.pruner.model, order.pruner.config = Model(rate), order.config
            result = SimpleNamespace(flops_removed=rate, parameters_after=110, megabytes_after=0.1)
            result.heldout, result.seconds = self.heldout, 0.0
            order.pruner.result = result
            yield order, result

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
