"""The journal of a search: the figures of every model that was evaluated, in a file that is written whole."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..distributed import in_main
from ..folder import write_atomically
from ..frontier import FrontierPoint
from ..prune.checkpoint import claim
from ..result import HeldoutQuality

FILE_NAME = "figures.json"
DENSE = "dense"


class Journal:
    """The points that a search has evaluated.

    Args:
        folder: the folder of the search; made if it does not exist. None keeps nothing on disk.
        identity: what tells this search from every other; see `claim`.

    Attributes:
        points: what was evaluated, by the budget, or by "dense".
        measure: name of the figure that counts; None before the dense model was evaluated.

    Raises:
        ValueError: if the folder holds the progress of other work; the message names the differences.
        OSError: if the folder cannot be read or written.
    """

    def __init__(self, folder: Path | None, identity: dict[str, Any]) -> None:
        self._file = None if folder is None else folder / FILE_NAME
        self.points: dict[str, FrontierPoint] = {}
        self.measure: str | None = None
        if self._file is not None:
            claim(self._file.parent, identity, "search")
            self.points, self.measure = in_main(_read)(self._file)

    def write(self, name: str, point: FrontierPoint) -> None:
        """Adds what was evaluated."""
        self.points[name] = point
        if self._file is not None:
            points = {name: asdict(each) for name, each in self.points.items()}
            written = {"measure": self.measure, "points": points}
            in_main(write_atomically)(self._file, json.dumps(written, indent=2).encode())


def _read(file: Path) -> tuple[dict[str, FrontierPoint], str | None]:
    if not file.exists():
        return {}, None
    try:
        found = json.loads(file.read_bytes())
        points = found["points"]
        for point in points.values():
            point["heldout"] = point["heldout"] and HeldoutQuality(**point["heldout"])
        return {name: FrontierPoint(**point) for name, point in points.items()}, found["measure"]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise OSError(
            f"The journal {str(file)!r} cannot be read: {error}. Remove it to evaluate the models again."
        ) from error
