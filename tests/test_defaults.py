"""Defaults that several rooms share: told once, and the same wherever a user meets them."""

import inspect

from optimum_kprune import KPruneConfig, KPruner
from optimum_kprune.defaults import BATCH_SIZE, NUM_TOKENS


def test_the_api_has_the_shared_defaults():
    defaults = {
        (function.__name__, name): parameter.default
        for function in (KPruner.prune, KPruner.sweep, KPruner.evaluation_on, KPruner.get_calibration_dataset)
        for name, parameter in inspect.signature(function).parameters.items()
        if name in ("batch_size", "num_tokens")
    }
    expected = {("prune", "batch_size"): None, ("sweep", "batch_size"): None}
    expected["evaluation_on", "batch_size"] = BATCH_SIZE
    assert defaults == {**expected, ("get_calibration_dataset", "num_tokens"): NUM_TOKENS}
    assert KPruneConfig().num_tokens == NUM_TOKENS
