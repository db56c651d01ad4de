"""Quality against size, as data."""

import json

from optimum_kprune.frontier import Frontier, FrontierPoint


def frontier():
    dense = FrontierPoint("dense", 1.0, 1000, 0.004, quality=0.9)
    points = [FrontierPoint(f"{share}% flops", share / 100, 10 * share, share / 2.5e4) for share in (80, 40)]
    return Frontier(dense, points, "accuracy", floor=0.89, chosen=0)


def test_a_frontier_is_data_that_json_can_hold():
    found = json.loads(json.dumps(frontier().to_dict()))
    assert found["dense"]["quality"] == 0.9
    assert [point["parameters"] for point in found["points"]] == [800, 400]
