"""The progress of a prune in a folder, written after every sublayer: a prune that was killed goes on from there.

    prune.json                 what the progress belongs to: model, settings, calibration data, versions
    sublayer-000.safetensors   a finished sublayer: its weights, its kept units and the latest scores
    saving                     an empty file that appears when the prune is over and the saving of its model begins
    latency_table.json         the table that was measured for a budget in milliseconds

Every file is written whole or not at all. The prune goes on at the first sublayer that has no file.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, replace
from os import PathLike
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ..calibration.spec import Batch, real_entries
from ..distributed import is_main, require_same
from ..encoder.sublayers import Place, Sublayer
from ..folder import write_atomically
from ..kprune_shrink import give_bias, shrink_sublayer
from ..result import SublayerResult

IDENTITY_NAME = "prune.json"
SAVING_NAME = "saving"
TABLE_NAME = "latency_table.json"
SCORES = "scores"


class Checkpoint:
    """The finished sublayers of one prune.

    Args:
        folder: where they lie; made if it does not exist. All processes must see the same folder.
        identity: what tells this prune from every other one: a dictionary that JSON can hold. Its keys are shown to
            the user, its values are plain values or dictionaries of them.

    Attributes:
        finished: number of sublayers, from the bottom, that were finished when the checkpoint was opened.

    Raises:
        ValueError: if the folder holds the progress of another prune; the message names the differences.
        OSError: if the folder cannot be read or written.
    """

    def __init__(self, folder: str | PathLike, identity: dict[str, Any]) -> None:
        self.folder = Path(folder)
        self._identity = identity
        claim(self.folder, identity)
        self.finished = 0
        while self._file(self.finished).exists():
            self.finished += 1
        # Processes that see different folders would go on at different sublayers, and wait for each other forever.
        require_same(f"checkpoint in {str(self.folder)!r}", [torch.tensor([self.finished])])

    def write(self, index: int, sublayer: Sublayer, result: SublayerResult, scores: dict[Place, Tensor]) -> None:
        """Writes a finished sublayer, as it is now, and the latest scores, which the next sublayers may use."""
        # The student is the same in all processes: one of them writes.
        if not is_main():
            return
        tensors = {f"{SCORES}.{place.layer}.{place.position}": values for place, values in scores.items()}
        for module in _projections(sublayer):
            for name, parameter in sublayer.block.get_submodule(module).named_parameters():
                tensors[f"{module}.{name}"] = parameter.detach()
        tensors = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
        written = json.dumps(asdict(result))
        metadata = {"result": written, "checksum": self._checksum(index, written, tensors)}
        write_atomically(self._file(index), safetensors.torch.save(tensors, metadata))

    def restore(self, index: int, target: Sublayer) -> tuple[SublayerResult, dict[Place, Tensor]]:
        """Makes the target what it was when it was finished.

        Args:
            index: number of the sublayer, from the bottom.
            target: the sublayer in the student, not yet pruned.

        Returns:
            the result of the sublayer, and the scores (units,) that were the latest then.

        Raises:
            OSError: if the file cannot be read, or is not what this prune wrote.
        """
        try:
            result, tensors = self._read(index, next(target.output.parameters()).device)
            if f"{target.adapter.output}.bias" in tensors:
                give_bias(target.output)
            shrink_sublayer(target.block, target.adapter.to_dict(), result.kept, target.units)
            for module in _projections(replace(target, units=len(result.kept))):
                projection = target.block.get_submodule(module)
                for name in dict(projection.named_parameters()):
                    setattr(projection, name, nn.Parameter(tensors.pop(f"{module}.{name}"), requires_grad=False))
            # All weights were popped: what is left are scores, named "scores.<layer>.<position>".
            return result, {Place(*map(int, name.split(".")[1:])): scores for name, scores in tensors.items()}
        except (SafetensorError, OSError, TypeError, KeyError, ValueError) as error:
            raise OSError(
                f"The checkpoint {str(self._file(index))!r} cannot be read: {error}. Remove it, and those after it, "
                "to prune from there on."
            ) from error

    def _read(self, index: int, device: torch.device) -> tuple[SublayerResult, dict[str, Tensor]]:
        with safe_open(self._file(index), framework="pt", device=str(device)) as file:
            metadata = file.metadata() or {}
            # Copies: tensors mapped from a file may not be aligned, which can change the last bit of float64 products.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}
        written = metadata.get("result", "")
        if metadata.get("checksum") != self._checksum(index, written, tensors):
            raise ValueError("it is not what this prune wrote for that sublayer")
        return SublayerResult(**json.loads(written)), tensors

    def _checksum(self, index: int, result: str, tensors: dict[str, Tensor]) -> str:
        """Returns a checksum over all that a file holds, and over the prune and the sublayer that it belongs to.

        It fails for a file of another prune or another sublayer, and for one that a disk or a person has changed.
        """
        content = [self._identity, index, result, digest(sorted(tensors.items()))]
        return hashlib.blake2b(json.dumps(content).encode(), digest_size=16).hexdigest()

    def _file(self, index: int) -> Path:
        return self.folder / f"sublayer-{index:03}.safetensors"


def claim(folder: Path, identity: dict[str, Any], work: str = "prune") -> None:
    """Takes a new or empty folder for the progress of some work; a folder that is taken must be that of this work.

    Args:
        folder: the folder; made if it does not exist.
        identity: what tells this work from every other; see `Checkpoint`.
        work: what it is, for messages.

    Raises:
        ValueError: if the folder holds the progress of other work; the message names the differences.
        OSError: if the folder cannot be read or written.
    """
    file = folder / IDENTITY_NAME
    if not file.exists():
        # Hidden files may be the rest of a write that was cut off: they do not make the folder somebody else's. A
        # latency table is written before the prune begins.
        names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
        if any(not name.startswith(".") for name in names - {TABLE_NAME}):
            raise ValueError(
                f"`checkpoint_dir` must be a new or empty folder, or hold the progress of a {work}. "
                f"{str(folder)!r} holds something else. Choose another folder."
            )
        if is_main():
            try:
                folder.mkdir(parents=True, exist_ok=True)
                write_atomically(file, json.dumps(identity, indent=2).encode())
            except OSError as error:
                raise OSError(
                    f"`checkpoint_dir` must be a folder that can be written. Got {str(folder)!r}: "
                    f"{error.strerror or error}. Choose another folder."
                ) from error
        return
    try:
        found = json.loads(file.read_bytes())
    except ValueError as error:
        raise OSError(f"The checkpoint {str(file)!r} cannot be read: {error}. Remove its folder.") from error
    # Through JSON and back, as what was found: it has lists where Python has tuples.
    differences = _differences(json.loads(json.dumps(identity)), found)
    if differences:
        raise ValueError(
            f"The checkpoint in {str(folder)!r} belongs to another {work}: {'; '.join(differences)}. Go on "
            "with what it was made with, choose another `checkpoint_dir`, or remove the folder to start anew."
        )


def begins_to_save(folder: str | PathLike) -> None:
    """Notes in a checkpoint that its model is saved from now on.

    A prune that is killed after that has perhaps filled its output folder. Called again, it may replace that model.
    """
    if is_main():
        write_atomically(Path(folder, SAVING_NAME), b"")


def has_begun_to_save(folder: str | PathLike | None) -> bool:
    """Whether the prune of a checkpoint got far enough to save its model; see `begins_to_save`."""
    return folder is not None and Path(folder, SAVING_NAME).exists()


def entries_of(batches: Iterable[Batch]) -> Iterator[tuple[str, Tensor]]:
    """Yields the inputs of every sample of batches by name, without padding: the same, however samples are batched."""
    for batch in batches:
        for index, real in enumerate(real_entries(batch)):
            for name, values in batch.items():
                # What has an entry for each of the main input is padded like it.
                is_padded = values[index].shape[: real.dim()] == real.shape
                yield name, values[index][real] if is_padded else values[index]


def digest(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """Returns a checksum of the names, shapes, dtypes and values of tensors: 32 hexadecimal digits."""
    hashed = hashlib.blake2b(digest_size=16)
    for name, tensor in tensors:
        hashed.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        # As bytes, because numpy has no bfloat16.
        hashed.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return hashed.hexdigest()


def _projections(sublayer: Sublayer) -> list[str]:
    """Names of the projections of a sublayer; one without units has its output projection (a `Constant`) only."""
    return [*sublayer.adapter.inputs, sublayer.adapter.output] if sublayer.units else [sublayer.adapter.output]


def _differences(given: Any, found: Any) -> list[str]:
    """Returns a phrase for every entry in which two identities differ."""
    if not isinstance(found, dict):
        return ["what it holds cannot be told"]
    differences = []
    for name in dict.fromkeys([*given, *found]):
        one, other = given.get(name), found.get(name)
        if one == other:
            continue
        if isinstance(one, dict) and isinstance(other, dict):
            differences += _differences(one, other)
        # Nothing can be read from a checksum of `digest`, which has 32 digits.
        elif isinstance(one, str) and len(one) == 32:
            differences.append(f"the {name} is another")
        else:
            differences.append(f"{name} is {one!r} here and was {other!r}")
    return differences
