"""What a prune may keep, in any unit -> what units cost in it. The one place that knows the units of budgets."""

from collections.abc import Iterable
from math import prod
from typing import TYPE_CHECKING

from ..algorithm.cost import flops_budget
from ..budget import Budget, amount_in_words, parse_budget
from ..configuration import KPruneConfig
from ..encoder.file_size import SavedTensor, file_size, saved_tensors
from ..encoder.sublayers import Encoder, Sublayer
from ..encoder.unsharing import private_copy
from .spending import Costs, CostsByBlock, CostsByWidth

if TYPE_CHECKING:
    from ..latency_table import LatencyTable

# Costs are whole numbers where they can be, such as bytes: sums of them are exact.
COST_OF_ONE = {"megabytes": 1e6}
# The units in which embeddings count, too.
SIZES = ("parameters", "megabytes")
# A budget that was written with six digits may be the size of the model itself.
ROUNDING = 1e-5


def costs_of(
    config: KPruneConfig,
    dense: Encoder,
    sequence_length: int,
    latency_table: "LatencyTable | None" = None,
    untrimmed: Encoder | None = None,
) -> Costs:
    """Returns what units cost, with the budget of the settings.

    Args:
        config: the settings.
        dense: the model to prune, in which every block has weights of its own; see `private_copy`.
        sequence_length: tokens T at which FLOPs are counted.
        latency_table: milliseconds by width, which a budget of them needs.
        untrimmed: the dense model with all tokens, of whose size a budget may be a share; None if `dense` has them.

    Raises:
        ValueError: if no prune could meet the budget, or the model meets it as it is.
    """
    costs = _unlimited(config, dense, sequence_length, latency_table)
    if config.budget is None:
        amount = flops_budget(costs.dense, config.compression_rate)
        if amount < costs.least:
            raise ValueError(
                f"`compression_rate` must be at most {1 - costs.least / costs.dense:.3f} for this model: some of its "
                f"sublayers cannot be taken out whole, and keep one unit each. Got {config.compression_rate}."
            )
    else:
        unit, whole = unit_of(config), costs.dense
        if untrimmed is not None and unit in SIZES:
            whole = _size_of(untrimmed, unit)
        amount = _amount_of(parse_budget(config.budget), whole)
        if not costs.least * (1 - ROUNDING) <= amount <= costs.dense * (1 + ROUNDING):
            raise ValueError(_out_of_range(config.budget, costs, dense))
    costs.budget = amount - costs.stays
    return costs


def budget_at(
    rate: float,
    config: KPruneConfig,
    dense: Encoder,
    sequence_length: int,
    latency_table: "LatencyTable | None" = None,
) -> str:
    """Returns the budget that removes a share of what can be removed at all, in the unit of the budget in `config`.

    Args:
        rate: the share, in [0, 1).
        config: the settings. Without a budget in them, FLOPs are counted.
        dense: see `costs_of`.
        sequence_length: see `costs_of`.
        latency_table: see `costs_of`.
    """
    unit, costs = unit_of(config), _unlimited(config, dense, sequence_length, latency_table)
    if unit == "flops":
        return str(Budget(unit, 1 - rate * (1 - costs.least / costs.dense), True))
    amount = (costs.dense - rate * (costs.dense - costs.least)) / COST_OF_ONE.get(unit, 1)
    # Short, as it is read by people too.
    amount = max(1, round(amount)) if unit == "layers" else float(f"{amount:.6g}")
    return str(Budget(unit, amount, False))


def require_budget(config: KPruneConfig, encoder: Encoder) -> None:
    """Raises a ValueError if a model cannot be pruned to a budget, as far as that is known before data is read."""
    # How many tokens stay depends on the data.
    if unit_of(config) in (("layers",) if config.vocabulary else (*SIZES, "layers")):
        costs_of(config, private_copy(encoder), sequence_length=1)


def unit_of(config: KPruneConfig) -> str:
    """Returns the unit of the budget; a compression rate is one of FLOPs."""
    return "flops" if config.budget is None else parse_budget(config.budget).unit


def asked_in(config: KPruneConfig) -> str:
    """Returns what the settings ask for, in words: the budget or the rate."""
    return config.budget or f"rate {config.compression_rate}"


def _amount_of(budget: Budget, dense: float) -> float:
    """Returns what a budget may cost."""
    if budget.unit == "flops" and budget.is_share:
        # As much as the same compression rate leaves. Rounded, because 1 - 0.7 is not 0.3.
        return flops_budget(dense, round(1 - budget.amount, 12))
    return budget.amount_of(dense) * (1 if budget.is_share else COST_OF_ONE.get(budget.unit, 1))


def _unlimited(
    config: KPruneConfig, dense: Encoder, sequence_length: int, latency_table: "LatencyTable | None"
) -> Costs:
    """Returns costs in the unit of the budget, which suffices for all units."""
    unit, multiple, targets = unit_of(config), config.neuron_multiple, dense.targets()
    if unit == "flops":
        return Costs(targets, lambda sublayer: sublayer.unit_flops(sequence_length), neuron_multiple=multiple)
    if unit == "layers":
        return _costs_of_layers(targets)
    if unit == "latency":
        return _costs_in_milliseconds(targets, latency_table)
    each = _size_of_one(dense, unit)
    size, grown = (_size_of(dense, unit, biases) for biases in ((), _new_biases(dense, targets)))
    return Costs(targets, lambda sublayer: each * sublayer.unit_parameters, size, grown - size, multiple)


def _costs_of_layers(targets: list[Sublayer]) -> CostsByBlock:
    fixed = [target.name for target in targets if target.least_units]
    if fixed:
        raise ValueError(
            f"A `budget` of layers is for models whose layers can be taken out whole. Of this one, {len(fixed)} "
            f"sublayers keep a unit, such as {fixed[0]}. Give a budget in another unit, such as '50% parameters'."
        )
    return CostsByBlock(targets)


def _costs_in_milliseconds(targets: list[Sublayer], table: "LatencyTable | None") -> CostsByWidth:
    if table is None:
        raise ValueError(
            "A `budget` of milliseconds needs a latency table. Measure one with `KPruner.measure_latency`, and pass "
            "it as `latency_table`."
        )
    curves = {target.place: table.curve(target.place, target.units) for target in targets}
    multiples = {target.place: table.multiple(target.place) for target in targets}
    return CostsByWidth(targets, curves, multiples, table.dense, table.base)


def _size_of(dense: Encoder, unit: str, added: Iterable[SavedTensor] = ()) -> int:
    """Returns the size of a model with tensors added to it, in parameters or in bytes as a pruned model is saved."""
    if unit == "parameters":
        shapes = [*(parameter.shape for parameter in dense.model.parameters()), *(bias.shape for bias in added)]
        return sum(map(prod, shapes))
    return file_size([*saved_tensors(dense.model, dense.pretrained.dtype), *added])


def _size_of_one(dense: Encoder, unit: str) -> int:
    """Returns the size of a parameter. All parameters of a pruned model have the same dtype."""
    return 1 if unit == "parameters" else dense.pretrained.dtype.itemsize


def _new_biases(dense: Encoder, targets: list[Sublayer]) -> list[SavedTensor]:
    """Returns the biases that output projections get which have none: from the refit, or with the last unit."""
    names = {f"{dense.adapter.blocks}.{target.layer}.{target.adapter.output}.bias": target for target in targets}
    return [
        SavedTensor(name, (target.width,), dense.pretrained.dtype)
        for name, target in names.items()
        if target.output.bias is None
    ]


def _out_of_range(budget: str, costs: Costs, dense: Encoder) -> str:
    """Returns the message that says between what a budget must be, and why."""
    unit = parse_budget(budget).unit
    scale = COST_OF_ONE.get(unit, 1)
    least, most = (amount_in_words(unit, amount / scale) for amount in (costs.least, costs.dense))
    why = f"the smallest model has {least}, the dense one {most}"
    if unit == "megabytes":
        why += f" in {str(dense.pretrained.dtype).removeprefix('torch.')}"
    if unit in SIZES:
        size, each = _size_of(dense, unit), _size_of_one(dense, unit)
        outside = size - each * sum(parameter.numel() for block in dense.blocks for parameter in block.parameters())
        alone, layers = (amount_in_words(unit, amount / scale) for amount in (outside, costs.least - outside))
        why += (
            f". What is outside of the layers, such as embeddings, pooler and head, takes {alone} "
            f"alone, and what stays in them, such as norms and biases, {layers}"
        )
    return f"`budget` must be between {least} and {most} for this model: {why}. Got {budget!r}."
