"""Frontiers and results whose figures are known, without a prune."""

from optimum_kprune.frontier import Frontier, FrontierPoint
from optimum_kprune.result import HeldoutQuality, KPruneResult, SublayerResult


def frontier(quality=0.85, milliseconds=None, **changes):
    """A dense model, and two pruned ones: of 80% and, a tenth worse and chosen, of 40% of its FLOPs."""
    times = milliseconds or [None] * 3
    dense = FrontierPoint("dense", 1.0, 1000, 4.0, times[0], 0.9, 0.02, figures={"accuracy": 0.9})
    points = [
        FrontierPoint(
            f"{share}% flops",
            share / 100,
            10 * share,
            share / 25,
            time,
            worse,
            0.02,
            HeldoutQuality("agreement", worse + 0.05, 0.03, 0.5, 0.04, 100),
            {"accuracy": worse},
            seconds=7.0,
        )
        for share, time, worse in zip((80, 40), times[1:], (quality, quality - 0.1), strict=True)
    ]
    return Frontier(dense, points, "accuracy", **{"floor": 0.8, "chosen": 1, "seconds": 20.0, **changes})


def result_with(kept, totals=(12, 100), kinds=("attention", "ffn")):
    """A result that keeps so many units: by layer, one number per sublayer."""
    totals = dict(zip(("attention", "ffn"), totals, strict=True))
    sublayers = [
        SublayerResult(layer, kind, list(range(count)), totals[kind], 1e6, 2e6, 500, 1000, 0.25, 1.5)
        for layer, counts in enumerate(kept)
        for kind, count in zip(kinds, counts, strict=True)
    ]
    return KPruneResult(sublayers, 128, 10, 1000, 40_000, 30_000, 6.0)
