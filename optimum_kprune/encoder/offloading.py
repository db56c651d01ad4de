"""Handles models that accelerate placed: over several devices, or offloaded to CPU memory or disk between uses.

accelerate gives each module of such a model an `AlignDevicesHook`, which moves the inputs of the module to its device.
If the module is offloaded, the hook also holds its weights. The parameters are then on the meta device, except while
the forward of the module runs. For a model without hooks, the functions here do nothing special.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from functools import partial
from typing import Any

import torch
from accelerate.hooks import AlignDevicesHook
from accelerate.utils import align_module_device, named_module_tensors
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, set_checkpoint_early_stop
from transformers import PreTrainedModel

from .conversion import empty_pruned_model, pruned_model_from


def require_known_hooks(model: nn.Module) -> None:
    """Raises a ValueError if weights are moved or converted by a hook that is not known here."""
    for name, module in model.named_modules():
        hook = getattr(module, "_hf_hook", None)
        # With `place_submodules`, one hook loads the weights of all modules inside: they cannot be loaded one by one.
        if hook is not None and (not isinstance(hook, AlignDevicesHook) or (hook.offload and hook.place_submodules)):
            raise ValueError(
                f"The weights of {name or 'the model'!r} are managed by a {hook!r}, which cannot be followed. Load "
                "the model with a `device_map`, or take the hooks off with "
                "`accelerate.hooks.remove_hook_from_submodules`."
            )


def is_placed(model: nn.Module) -> bool:
    """Returns whether accelerate placed a model."""
    return next(_hooks(model), None) is not None


def execution_device(model: PreTrainedModel) -> torch.device:
    """Returns the device on which a model reads its inputs: that of its parameters if accelerate did not place it."""
    # Asked of the hooks first: where the first weights are offloaded, `model.device` is the meta device.
    devices = (hook.execution_device for hook in _hooks(model) if hook.execution_device is not None)
    device = next(devices, None)
    return model.device if device is None else torch.device(device)


def named_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yields names and values of parameters and saved buffers. Reads offloaded ones without changing the model."""
    for prefix, module in model.named_modules():
        hook = getattr(module, "_hf_hook", None)
        for name, tensor in _direct_tensors(module):
            value = hook.weights_map[name] if hook is not None and tensor.is_meta else tensor
            yield f"{prefix}.{name}" if prefix else name, value


def weight_of(module: Any) -> Tensor:
    """Returns the weight of a module, loaded if it is offloaded."""
    with align_module_device(module):
        return module.weight.detach()


def sharing_copy(model: nn.Module) -> nn.Module:
    """Returns a copy of a model in evaluation mode. The copy has modules of its own, but shares the weights.

    A prune puts its hooks on such copies only. Other threads can use the model meanwhile, and an interruption leaves
    no trace in it. The student is such a copy, too. A prune never writes into a shared weight: it replaces the
    parameter. For a model that accelerate placed, it does so inside of `own_weights`.
    """
    # Held until the copy is made: `deepcopy` finds objects by their ids, and if another thread replaced a weight, the
    # id of the old one could be given to a new object.
    weights = list(model.parameters())
    # New parameters on the same memory, so that `requires_grad_` below does not change the user's model.
    shared: dict[int, Any] = {id(weight): nn.Parameter(weight.detach(), False) for weight in weights}
    for hook in _hooks(model):
        shared[id(hook.weights_map)] = hook.weights_map
        # This map holds tied weights while they are loaded. Every copy loads its own, so the map is not shared.
        shared[id(hook.tied_params_map)] = hook.tied_params_map and {pointer: {} for pointer in hook.tied_params_map}
    placed = [module for module in model.modules() if hasattr(module, "_hf_hook")]
    shared |= {id(buffer): buffer for module in placed for buffer in module.buffers(recurse=False)}
    copied = deepcopy(model, shared).eval().requires_grad_(False)
    configs: list[Any] = [module.config for module in copied.modules() if hasattr(module, "config")]
    for config in configs:
        if getattr(config, "use_cache", False):
            # No token comes after those that are there.
            config.use_cache = False
    return copied


@contextmanager
def own_weights(block: nn.Module) -> Iterator[None]:
    """Gives a block of a student its own weights. In the context, they are on its device and can be replaced.

    At the end, they are offloaded to CPU memory, wherever they were before: where the teacher fills a device, there is
    no room for a second model, not even for a pruned one.
    """
    placed: list[Any] = [module for module in block.modules() if hasattr(module, "_hf_hook")]
    for module in placed:
        with align_module_device(module):
            own = {name: tensor.detach().clone() for name, tensor in _direct_tensors(module)}
        _put(module, own)
        module._hf_hook.offload = False
    try:
        yield
    finally:
        for module in placed:
            hook = module._hf_hook
            own = {name: tensor.detach().cpu() for name, tensor in _direct_tensors(module, hook.offload_buffers)}
            _put(module, {name: tensor.to("meta") for name, tensor in own.items()})
            hook.offload, hook.weights_map, hook.tied_params_map = True, own, None
            # From now on, every module loads only the weights that it holds itself.
            hook.place_submodules = False


@contextmanager
def weights_let_go(blocks: Iterable[nn.Module]) -> Iterator[None]:
    """Makes backward passes run offloaded blocks a second time, instead of holding the weights of all of them.

    This is activation checkpointing: when a backward pass gets to a block, it computes again what it needs of it. So
    the weights of only one block are loaded at a time.
    """
    run_twice = [block for block in blocks if any(hook.offload for hook in _hooks(block))]
    # accelerate stores its wrapper of `forward` as an attribute of the module. It is put back at the end.
    forwards = [vars(block).get("forward") for block in run_twice]
    try:
        for block in run_twice:
            block.forward = partial(checkpoint, block.forward, use_reentrant=False, preserve_rng_state=False)
        # If the second run stopped early, accelerate's hook would not run, and the block would keep its weights.
        with set_checkpoint_early_stop(False):
            yield
    finally:
        for block, forward in zip(run_twice, forwards, strict=True):
            del block.forward
            if forward is not None:
                block.forward = forward


def pruned_model_of(student: PreTrainedModel, kprune: dict[str, Any]) -> PreTrainedModel:
    """Returns the pruned model of a student; see `pruned_model_from`.

    A student that accelerate placed is taken apart, and cannot be used afterwards. Its pruned model is in CPU memory.
    """
    if not is_placed(student):
        return pruned_model_from(student, kprune)
    pruned = empty_pruned_model(student, kprune, torch.device("cpu"))
    state = pruned.state_dict()
    for prefix, module in list(student.named_modules()):
        with align_module_device(module):
            for name, tensor in _direct_tensors(module):
                state[f"{prefix}.{name}" if prefix else name].copy_(tensor)
        # Released module by module, so that the pruned model is never in memory twice.
        module._parameters.clear()
        vars(module).pop("_hf_hook", None)
    return pruned


def _hooks(model: nn.Module) -> Iterator[AlignDevicesHook]:
    """Returns the hooks that accelerate put on the modules of a model, outermost first."""
    hooks: Iterator[Any] = (getattr(module, "_hf_hook", None) for module in model.modules())
    return (hook for hook in hooks if hook is not None)


def _direct_tensors(module: nn.Module, buffers: bool = True) -> Iterator[tuple[str, Tensor]]:
    """Yields the names and values of the parameters and saved buffers that a module holds itself."""
    return named_module_tensors(module, include_buffers=buffers, remove_non_persistent=True)


def _put(module: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Replaces parameters and buffers that a module holds itself."""
    for name, tensor in tensors.items():
        if name in module._parameters:
            module._parameters[name] = nn.Parameter(tensor, requires_grad=False)
        else:
            module._buffers[name] = tensor
