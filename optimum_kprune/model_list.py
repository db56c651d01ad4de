"""The table of supported models: what `optimum-cli kprune --list_models` prints."""

from .encoder.families import Family, families

HEADINGS = ("model type", "reads", "pruned", "checkpoints, and what to know")
UNITS = {"attention": "heads", "ffn": "neurons"}


def model_list() -> str:
    """Returns the table as text, one line per model type, in columns."""
    rows = [HEADINGS, *map(_cells, families())]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "".join(f"{line}\n" for line in lines)


def units_of(family: Family) -> str:
    """Returns which units of a family are pruned: "heads, neurons" or "neurons"."""
    kinds = {sublayer.kind for adapter in family.adapters for sublayer in adapter.sublayers}
    return ", ".join(units for kind, units in UNITS.items() if kind in kinds)


def _cells(family: Family) -> tuple[str, ...]:
    told = ", ".join(family.checkpoints) + (f". {family.note}" if family.note else "")
    return family.model_type, family.modality, units_of(family), told
