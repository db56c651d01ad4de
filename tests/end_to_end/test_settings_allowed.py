"""Every setting refuses a value of another type and one out of its range, with one table for checks and words."""

import math

import pytest

from optimum_kprune import KPruneConfig
from optimum_kprune.configuration import BOUNDS, SETTINGS, SIZES_OR_SHARES, allowed

DEFAULTS = KPruneConfig().to_dict()
OPTIONAL = ("budget", "vocabulary", "mu", "num_tokens", "measure_tokens", "memory_budget", "sequence_length")


def of_another_type(name):
    """Values that another setting could have, among them those that equal an allowed one."""
    default = DEFAULTS[name]
    others = [[], {}, object(), b"fisher", 1j]
    if isinstance(default, bool):
        return [*others, 0, 1, 0.0, 1.0, "True", None]
    if isinstance(default, str):
        return [*others, True, 0, 1.0, None, default.upper(), ""]
    numbers = [*others, True, False, "1", math.nan]
    numbers += [] if name in OPTIONAL else [None]
    return numbers if "whole" not in allowed(name) or name in SIZES_OR_SHARES else [*numbers, 1.0, 0.5]


@pytest.mark.parametrize("name", SETTINGS)
def test_a_value_of_another_type_is_refused(name):
    for value in of_another_type(name):
        with pytest.raises(ValueError, match=f"setting '{name}' of KPruneConfig must be ") as caught:
            KPruneConfig(**{name: value})
        assert allowed(name) in str(caught.value)


@pytest.mark.parametrize("name", [name for name in SETTINGS if "number" in allowed(name)])
def test_a_value_out_of_the_range_is_refused_and_the_ends_are_not(name):
    least, most, _ = BOUNDS.get(name, (1, math.inf, ""))
    is_whole = "whole" in allowed(name)
    below = least - 1 if is_whole else math.nextafter(least, -math.inf)
    above = [] if is_whole else [math.nextafter(most, math.inf), math.inf, 10**400]
    for value in (below, -math.inf, -(10**400), *above):
        with pytest.raises(ValueError, match=f"setting '{name}'"):
            KPruneConfig(**{name: value})
    for value in (least, 10**6 if is_whole else most):
        assert getattr(KPruneConfig(**{name: value}), name) == value


def test_bounds_are_of_settings():
    assert BOUNDS.keys() < set(SETTINGS)


def test_the_words_say_type_and_range():
    assert allowed("compression_rate") == "a number in [0, 1)"
    assert allowed("mu") == "a number above 0, or None"
    assert allowed("num_tokens") == "a whole number, 1 or above, or None"
    assert allowed("gradient") == "one of 'sample', 'batch'"
    assert allowed("tuning") == "one of True, False"


@pytest.mark.parametrize(("rate", "hint"), [(60, "For 60%, give 0.6."), (100, None), (True, None), (-1, None)])
def test_a_percentage_is_told_as_a_share(rate, hint):
    with pytest.raises(ValueError) as caught:
        KPruneConfig(compression_rate=rate)
    assert str(caught.value).endswith(hint or f"Got {rate} instead.")
