"""What a prune may keep, in the units that people have: "100 MB", "10 ms", "12M parameters", "4 layers"."""

import math
import re
from typing import NamedTuple

# What is counted, by the names that it may be given by.
NAMES = {
    "flops": ("flops",),
    "parameters": ("parameters", "params"),
    "megabytes": ("megabytes", "mb"),
    "latency": ("latency", "milliseconds", "ms"),
    "layers": ("layers", "layer"),
}
FACTORS = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9}
# How amounts are written, other than with the name of the unit.
WRITTEN = {"megabytes": "{:,.4g} MB", "latency": "{:,.3g} ms", "flops": "{:,.4g} FLOPs"}
ALLOWED = (
    'an amount above 0 and a unit, such as "100 MB", "10 ms", "12M parameters" or "4 layers" (whole ones), or at most '
    '100% of what the dense model has, such as "40% flops" or "50% latency"; decimals stand after a point'
)
_UNITS = "|".join(name for names in NAMES.values() for name in names)
# Separators stand before three digits only: "1,5" is one and a half to many, and not 15.
_NUMBER = r"(?:[0-9]{1,3}(?:[_,][0-9]{3})+|[0-9]+)(?:\.[0-9]+)?(?:e[+-]?[0-9]+)?"
# The units are spelled out, so that the M of MB is not read as a million.
_WRITTEN = re.compile(rf"({_NUMBER})\s*([kmg%]?)\s*({_UNITS})", re.IGNORECASE)


class Budget(NamedTuple):
    """What a prune may keep.

    Attributes:
        unit: what is counted: `"flops"`, `"parameters"`, `"megabytes"`, `"latency"` (milliseconds) or `"layers"`.
        amount: how many of the unit, above 0; or, if `is_share`, the share of what the dense model has, in (0, 1].
        is_share: whether the amount is a share.
    """

    unit: str
    amount: float
    is_share: bool

    def amount_of(self, dense: float) -> float:
        """Returns the amount in the unit, for a dense model that has `dense` of it."""
        return self.amount * dense if self.is_share else self.amount

    def __str__(self) -> str:
        if self.is_share:
            return f"{100 * self.amount:.12g}% {self.unit}"
        return f"{self.amount:.12g} {'ms' if self.unit == 'latency' else _counted(self.unit, self.amount)}"


def amount_in_words(unit: str, amount: float) -> str:
    """Returns an amount of a unit in words, such as "90.9 MB"."""
    return WRITTEN.get(unit, f"{{:,.0f}} {_counted(unit, amount)}").format(amount)


def unit_called(name: str) -> str | None:
    """Returns the unit of a name, such as "megabytes" of "MB"; None if there is none."""
    return next((unit for unit, names in NAMES.items() if name.lower() in names), None)


def _counted(unit: str, amount: float) -> str:
    return unit.removesuffix("s") if amount == 1 else unit


def parse_budget(text: str) -> Budget:
    """Reads a budget.

    Args:
        text: an amount, with k, M or G for thousands, millions and billions, or with % for a share of the dense
            model; and a unit: flops, parameters, megabytes (MB, 10^6 bytes), milliseconds (ms, latency) or layers.

    Raises:
        ValueError: if it cannot be read.
    """
    found = _WRITTEN.fullmatch(text.strip())
    if found:
        number, suffix = float(re.sub("[_,]", "", found[1])), found[2].lower()
        unit = str(unit_called(found[3]))
        is_share = suffix == "%"
        # Divided, because 70 x 0.01 is not 0.7.
        amount = number / 100 if is_share else number * FACTORS[suffix]
        is_whole = unit != "layers" or is_share or amount % 1 == 0
        if is_whole and 0 < amount < math.inf and not (is_share and amount > 1):
            return Budget(unit, amount, is_share)
    raise ValueError(f"A budget must be {ALLOWED}. Got {text!r} instead.")
