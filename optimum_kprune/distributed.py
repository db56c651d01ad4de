"""Several processes that prune one model: each has a share of the batches, and their sums are added up.

`torchrun` or `accelerate launch` starts them. All run the same code, and meet wherever they exchange something. At a
meeting they also learn of errors: if one process has failed, all raise its error. In a single process, the functions
here do nothing special.
"""

import logging
import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch
import torch.distributed as dist
from accelerate import PartialState
from accelerate.utils import get_cpu_distributed_information, parse_flag_from_env
from torch import Tensor

Item = TypeVar("Item")
Given = ParamSpec("Given")
Returned = TypeVar("Returned")

# The classes in which an error of another process is raised here, or else as a RuntimeError. The first that fits is
# taken, so subclasses come first. Class and message are sent, because not every error can be pickled.
ERRORS = (FileExistsError, OSError, ValueError)


@dataclass
class _Together:
    """The state of this process in work that all processes do together; see `together`.

    Attributes:
        is_meeting: whether a meeting has begun and not ended. A meeting that fails never ends. Then the others know of
            the error already, and must not be told again.
    """

    is_meeting: bool = False


_together: ContextVar[_Together | None] = ContextVar("_together", default=None)


def world_size() -> int:
    """Returns the number of processes; joins them first, if a launcher has started several and nothing else did."""
    if dist.is_available() and not dist.is_initialized() and _launched()[1] > 1:
        _join()
    return dist.get_world_size() if _are_joined() else 1


def is_main() -> bool:
    """Whether this process is the one that logs and saves. To ask does not join the processes."""
    return (dist.get_rank() if _are_joined() else _launched()[0]) == 0


def own_device() -> torch.device:
    """Returns the device of this process among those of its machine."""
    return _join().device


def share(items: Sequence[Item]) -> Sequence[Item]:
    """Returns this process's share of the items: every n-th, so that any first part of them is shared evenly too."""
    processes = world_size()
    return items if processes == 1 else items[dist.get_rank() :: processes]


def add_up(*sums: Tensor) -> None:
    """Adds the tensors of the other processes to those of this one, in place, one by one."""
    if world_size() == 1:
        return
    # Met first, because adding up would wait forever for a process that has failed.
    _meet()
    for total in sums:
        carried = _carried(total)
        dist.all_reduce(carried)
        total.copy_(carried)


def as_in_main(tensor: Tensor) -> Tensor:
    """Returns the main process's tensor in every process.

    Each could compute it from the same sums, but perhaps not to the last bit; and the students must stay equal.
    """
    if world_size() == 1:
        return tensor
    _meet()
    carried = _carried(tensor)
    dist.broadcast(carried, src=0)
    return carried.to(tensor.device)


def gather(brought: Any) -> list[Any]:
    """Returns what each process brought, in the order of the processes."""
    return [brought] if world_size() == 1 else _meet(brought)


def require_same(name: str, tensors: Iterable[Tensor]) -> None:
    """Raises a ValueError if the processes do not have the same tensors."""
    if world_size() == 1:
        return
    checksum = 0
    for tensor in tensors:
        # Offloaded weights are on the meta device and have no values to compare.
        if not tensor.is_meta:
            values = tensor.detach().cpu().contiguous().view(-1).view(torch.uint8)
            # A checksum is enough, and no process must send its whole model.
            checksum = zlib.crc32(values.numpy().data, checksum)
    if len(set(_meet(checksum))) > 1:
        raise ValueError(
            f"The {name} must be the same in all processes, which then share the work. Got different ones. Load and "
            "prepare everything in every process as if it were the only one, with the same seeds, and split nothing."
        )


@contextmanager
def together() -> Iterator[None]:
    """Raises an error of one process in all of them. Inside, processes other than the main one log errors only.

    All processes must enter it. It may be nested; only the outermost one has an effect. Interruptions
    (KeyboardInterrupt, SystemExit) are left to the launcher, which ends all processes.
    """
    if world_size() == 1 or _together.get():
        yield
        return
    logger, work = logging.getLogger(__package__), _Together()
    level, token = logger.level, _together.set(work)
    if not is_main():
        logger.setLevel(logging.ERROR)
    try:
        yield
        # A process that is done waits here, since another may still fail.
        _meet()
    except Exception as error:
        if not work.is_meeting:
            _meet(error=error)
        raise
    finally:
        logger.setLevel(level)
        _together.reset(token)


def in_main(function: Callable[Given, Returned]) -> Callable[Given, Returned]:
    """Makes a function run in the main process only. The others wait for it, and return or raise what it does."""

    @wraps(function)
    def run(*args: Given.args, **kwargs: Given.kwargs) -> Returned:
        if world_size() == 1:
            return function(*args, **kwargs)
        with together():
            return _meet(function(*args, **kwargs) if is_main() else None)[0]

    return run


def leave() -> None:
    """Takes this process out of the group that `world_size` joined, at the end of a program."""
    if _are_joined():
        dist.destroy_process_group()


def _launched() -> tuple[int, int]:
    """Returns the number of this process and how many there are, as a launcher has set them in the environment."""
    # A cluster or MPI sets numbers too. Without an address to meet at, its processes are each alone.
    if "MASTER_ADDR" not in os.environ:
        return 0, 1
    told = get_cpu_distributed_information()
    return told.rank, told.world_size


def _are_joined() -> bool:
    return dist.is_available() and dist.is_initialized()


def _join() -> PartialState:
    """Joins the other processes; they exchange data over the CPU if asked to, or if there is no accelerator for it."""
    is_alone = torch.get_device_module() in (torch.cpu, torch.mps)
    return PartialState(cpu=is_alone or parse_flag_from_env("ACCELERATE_USE_CPU"))


def _carried(tensor: Tensor) -> Tensor:
    """Returns a copy of a tensor on a device whose tensors the backend can exchange."""
    is_carried = f"{tensor.device.type}:" in dist.get_backend_config()
    return tensor.detach().to(tensor.device if is_carried else own_device(), copy=True).contiguous()


def _meet(brought: Any = None, error: Exception | None = None) -> list[Any]:
    """Waits for all processes, and exchanges objects with them.

    Args:
        brought: the object of this process.
        error: the error that this process failed with, to be raised in the others.

    Returns:
        the objects of all processes, in their order.

    Raises:
        Exception: the error that another process failed with.
    """
    work = _together.get() or _Together()
    work.is_meeting = True
    failure = None
    if error is not None:
        failure = next((kind for kind in ERRORS if isinstance(error, kind)), RuntimeError), str(error)
    met: list[Any] = [None] * world_size()
    dist.all_gather_object(met, (brought, failure))
    for index, (_, failure) in enumerate(met):
        if failure is not None and error is None:
            kind, message = failure
            elsewhere = kind(message)
            elsewhere.add_note(f"Process {index} failed with this, and with it all others.")
            raise elsewhere
    work.is_meeting = False
    return [entry for entry, _ in met]
