"""The default and the published value of every setting, so that none changes unseen."""

from optimum_kprune import KPruneConfig
from optimum_kprune.configuration import SETTINGS

# Setting: default, published.
VALUES = {
    "compression_rate": (0.5, 0.5),
    "budget": (None, None),
    "vocabulary": (None, None),
    "temperature": (2.0, 2.0),
    "knowledge": ("fisher", "divergence"),
    "lambda_rep": (0.1, 2.5e-4),
    "mu": (None, None),
    "head_weight": (2.0, 1.0),
    "gradient": ("sample", "batch"),
    "num_tokens": (100_000, 100_000),
    "heldout_share": (0.1, 0.0),
    "measure_tokens": (10_000, None),
    "measure_every": (1, 1),
    "measure_precision": ("float32", "float32"),
    "memory_budget": (None, None),
    "sequence_length": (None, None),
    "neuron_multiple": (8, 1),
    "tuning": (True, True),
    "ridge": (0.01, 0.0),
    "token_weights": ("scale", "equal"),
    "correct_inputs": (True, False),
    "bias": ("refit", "drop"),
    "published_targets": (False, True),
    "recovery_tokens": (0, 0),
    "recovery_learning_rate": (3e-4, 3e-4),
    "recovery_precision": ("auto", "auto"),
    "seed": (0, 0),
}


def test_defaults_and_published_settings_are_these():
    for place, config in enumerate((KPruneConfig(), KPruneConfig.paper())):
        found = {name: getattr(config, name) for name in SETTINGS}
        assert found == {name: values[place] for name, values in VALUES.items()}
        # 1 equals True, and 2 equals 2.0.
        assert all(type(found[name]) is type(values[place]) for name, values in VALUES.items())
