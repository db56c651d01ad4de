"""Modules of users that hold an encoder: finds it, puts the pruned one in its place, saves and loads the rest."""

import copy
import inspect
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from transformers import PreTrainedModel
from transformers.utils import cached_file

from ..calibration.modality import ProcessingClass
from ..calibration.spec import InputSpec
from ..kprune_map import blocks_of
from ..modeling_kprune import is_of_transformers
from .adapters import supported_model_types
from .config_field import adapter_of
from .conversion import dense_class_of, pruned_class, require_no_generation
from .sublayers import max_positions

HEAD_NAME = "head.safetensors"


def find_encoder(model: Any, name: str | None = None) -> str:
    """Returns the name of the submodule that is the encoder to prune; "" for the model itself.

    Args:
        model: a transformers model, or a module that holds one.
        name: the submodule to take. None takes the outermost transformers model that can be pruned, if there is only
            one.

    Raises:
        ValueError: if there is no encoder, or several and no name.
    """
    _require_module(model)
    chosen: Any = dict(model.named_modules()).get(name or "")
    if isinstance(chosen, PreTrainedModel):
        require_no_generation(type(chosen))
    found = _encoders_in(model)
    if name is not None:
        if chosen is None or not _is_encoder(chosen):
            raise ValueError(
                "`encoder` must name a submodule that is an encoder of transformers which can be pruned. Got "
                f"{name!r} instead. In this {type(model).__name__} there are: {', '.join(map(repr, found)) or 'none'}."
            )
        return name
    if len(found) > 1:
        listed = ", ".join(
            f"{found_name!r} ({type(model.get_submodule(found_name)).__name__})" for found_name in found
        )
        raise ValueError(
            f"The {type(model).__name__} holds several encoders: {listed}. Choose one: "
            f"`KPruner(model, encoder={found[0]!r})`."
        )
    if not found:
        raise _nothing_to_prune(model)
    return found[0]


def _require_module(model: Any) -> None:
    """Raises a ValueError if a model is not loaded, or if it is wrapped, compiled or has adapters of PEFT."""
    if not isinstance(model, nn.Module):
        raise ValueError(
            f"`model` must be a loaded transformers model. Got {type(model).__name__} instead. "
            "To load one, use `KPruner.from_pretrained(...)`; for a trainer, `KPruner.from_trainer(...)`."
        )
    if isinstance(model, DataParallel | DistributedDataParallel):
        raise ValueError(
            f"`model` must be the model itself. Got the {type(model).__name__} around it. Pass `model.module`, and "
            "wrap the pruned model."
        )
    # `torch.compile(model)` makes a module around the model, `model.compile()` only an attribute.
    if any(hasattr(module, "_orig_mod") or module._compiled_call_impl is not None for module in model.modules()):
        raise ValueError(
            "A compiled model cannot be observed. Pass the model as it was before `torch.compile(...)` or "
            "`model.compile()`, and compile the pruned model."
        )
    if _is_from(model, "sentence_transformers"):
        raise ValueError(
            f"`model` must be a loaded transformers model. Got {type(model).__name__} instead. Use "
            "`KPruner.from_sentence_transformer(...)` or `KPruner.from_cross_encoder(...)`, which take pipelines of "
            "sentence-transformers."
        )
    if any(_is_from(module, "peft") for module in model.modules()):
        raise ValueError(
            "The model has adapters of PEFT, such as LoRA: heads and neurons are cut out of plain matrices. Merge the "
            "adapters first, and give what comes out: `model = peft_model.merge_and_unload()`. If they were added by "
            "`model.add_adapter(...)`, save them with `model.save_pretrained(folder)`, and merge "
            "`PeftModel.from_pretrained(dense_model, folder)`."
        )


def _is_from(module: nn.Module, library: str) -> bool:
    """Returns whether the class of a module comes from a library, or is derived from one that does."""
    # By name, because importing an optional library only to ask would be slow, or fail.
    return any(base.__module__.partition(".")[0] == library for base in type(module).__mro__)


def _encoders_in(model: nn.Module) -> list[str]:
    """Returns the names of the outermost encoders in a module."""
    found: list[str] = []
    for name, module in model.named_modules():
        inside = any(not outer or name.startswith(f"{outer}.") for outer in found)
        if not inside and _is_encoder(module):
            found.append(name)
    return found


def _is_encoder(module: nn.Module) -> bool:
    """Returns whether a module is a transformers model, with or without a head, with blocks where its adapter says."""
    if not isinstance(module, PreTrainedModel):
        return False
    is_pruned = getattr(module.config, "kprune", None) is not None
    base = module.base_model
    if not is_pruned and module.config.model_type not in supported_model_types():
        return False
    # A class of the user's own may hold its encoder under a name that transformers does not use. `AutoModel` would not
    # find the weights of such a model, so that it counts as a module that holds an encoder.
    is_named = getattr(base, "base_model_prefix", None) == module.base_model_prefix
    if not is_named and not is_of_transformers(dense_class_of(type(module))):
        return False
    adapter = adapter_of(module)
    try:
        blocks_of(module, adapter.blocks)
    except ValueError:
        return False
    return True


def _nothing_to_prune(model: nn.Module) -> ValueError:
    """Returns the error that says why there is no encoder in a module."""
    inner = next((module for module in model.modules() if isinstance(module, PreTrainedModel)), None)
    if inner is None:
        return ValueError(
            "`model` must be a loaded transformers model, or a module that holds one. Got a "
            f"{type(model).__name__} without any."
        )
    require_no_generation(type(inner))
    if inner.config.model_type not in supported_model_types():
        # Imported here, because suggestions are verified by what imports this module.
        from .suggestion import unknown_type

        return unknown_type(inner)
    blocks = adapter_of(inner).blocks
    return ValueError(
        f"The {type(inner).__name__} has no module {blocks!r}, where the blocks of a model of the type "
        f"{inner.config.model_type!r} are. Give a model of transformers' own structure, or one that holds it."
    )


def input_names(model: nn.Module, encoder: PreTrainedModel) -> list[str]:
    """Returns the names of the inputs of a model. If it takes `**kwargs`, these are also the inputs of its encoder."""
    parameters = inspect.signature(model.forward).parameters
    hands_on = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    return list(dict.fromkeys([*parameters, *(inspect.signature(encoder.forward).parameters if hands_on else ())]))


def input_spec(
    model: nn.Module, encoder: Any, task: str, processing_class: ProcessingClass | None, **reading: Any
) -> InputSpec:
    """Returns what a model reads that is an encoder or holds one. `reading` has more fields of `InputSpec`."""
    return InputSpec(
        task=task,
        processing_class=processing_class,
        max_positions=max_positions(encoder),
        vocab_size=_rows_of_embeddings(encoder),
        type_vocab_size=getattr(encoder.config, "type_vocab_size", None),
        model_inputs=input_names(model, encoder),
        main_input=encoder.main_input_name,
        image_channels=getattr(encoder.config, "num_channels", None),
        dtype=encoder.dtype,
        **reading,
    )


def _rows_of_embeddings(encoder: Any) -> int | None:
    """Returns the number of tokens that a model knows; None for one that reads no tokens."""
    try:
        return getattr(encoder.get_input_embeddings(), "num_embeddings", None)
    # Some models of audio have no such method of their own.
    except NotImplementedError:
        return None


def with_encoder(host: nn.Module, name: str, encoder: PreTrainedModel) -> nn.Module:
    """Returns a copy of a module in which another encoder replaces its own.

    The module may refer to parts of its encoder in other places, such as tied embeddings. In the copy, these refer to
    the same parts of the other encoder.

    Args:
        host: the module.
        name: the submodule that is its encoder; "" for the module itself.
        encoder: the other encoder. It is not copied.
    """
    if not name:
        return encoder
    # A memo that already maps the parts of one encoder to those of the other makes `deepcopy` replace them everywhere.
    return copy.deepcopy(host, _replacements(host.get_submodule(name), encoder)).train(encoder.training)


def _replacements(own: nn.Module, encoder: nn.Module) -> dict[int, Any]:
    """Returns the parts of another encoder, by the ids of the same parts of one's own. A pruned one lacks some."""
    modules, parameters = dict(encoder.named_modules()), dict(encoder.named_parameters())
    replaced: dict[int, Any] = {id(part): modules[path] for path, part in own.named_modules() if path in modules}
    return replaced | {id(part): parameters[path] for path, part in own.named_parameters() if path in parameters}


def save_head(host: nn.Module, name: str, folder: Path) -> None:
    """Writes the weights of a module into a folder, without those of its encoder."""
    # Cloned, because safetensors refuses tensors that share memory, as tied weights do.
    state = {key: value.detach().cpu().contiguous().clone() for key, value in _head_state(host, name).items()}
    save_file(state, folder / HEAD_NAME, metadata={"format": "pt", "encoder": name})


def load_into(module: nn.Module, folder: str | PathLike, **kwargs: Any) -> nn.Module:
    """Loads the pruned encoder of a folder, and the head that was saved beside it, into a module of your own.

    Args:
        module: a module like the one that was pruned. Its own encoder may have any size. It is changed in place.
        folder: the folder that `KPruner.save_pretrained` wrote for such a module, or its name on the Hub.
        kwargs: where files come from, as in `from_pretrained`: `revision`, `token`, `cache_dir`, `local_files_only`.

    Returns:
        the module, in evaluation mode.

    Raises:
        OSError: if there is no such folder, or it holds no head.
        ValueError: if the module is not like the one that was pruned. The module is then unchanged.
    """
    try:
        file: Any = cached_file(folder, HEAD_NAME, **kwargs)
    except OSError as error:
        raise OSError(
            f"{str(folder)!r} must hold {HEAD_NAME}, which is saved with the encoder of a module of your own. To load "
            f"a transformers model, use its `from_pretrained`. {error}"
        ) from error
    try:
        with safe_open(file, "pt") as opened:
            name: Any = (opened.metadata() or {}).get("encoder")
        state = load_file(file)
    except SafetensorError as error:
        raise OSError(f"{file!r} cannot be read: {error}. Take the file that was saved.") from error
    encoder = dict(module.named_modules()).get(name)
    if not isinstance(encoder, PreTrainedModel):
        raise ValueError(
            f"The module must hold its encoder as {name!r}, as the one did that was pruned. Got a "
            f"{type(module).__name__} whose {name!r} is {type(encoder).__name__}."
        )
    differing = sorted({key for key, *_ in _forms(_head_state(module, name)) ^ _forms(state)})
    if differing:
        raise ValueError(
            f"The head must be like the one that was saved. The {type(module).__name__} differs from {HEAD_NAME} in "
            f"the names, shapes or kinds of number of {', '.join(differing)}. Build the module as it was when it was "
            "pruned."
        )
    loaded = pruned_class(type(encoder)).from_pretrained(folder, dtype=encoder.dtype, **kwargs).to(encoder.device)
    # Whatever was to fail has failed by now: from here on, the module is changed.
    replaced, inside = _replacements(encoder, loaded), set(encoder.modules())
    for part in [part for part in module.modules() if part not in inside]:
        for held in (part._modules, part._parameters):
            held.update({key: replaced[id(value)] for key, value in held.items() if id(value) in replaced})
    # Not strict, because the weights of the encoder are not among these.
    module.load_state_dict(state, strict=False)
    return module.eval()


def _head_state(host: nn.Module, name: str) -> dict[str, Tensor]:
    """Returns the weights of a module without those of its encoder, under whatever name the module has them."""
    # `keep_vars` returns the tensors themselves: tied weights have one id under all their names.
    inside = {id(value) for value in host.get_submodule(name).state_dict(keep_vars=True).values()}
    return {key: value for key, value in host.state_dict(keep_vars=True).items() if id(value) not in inside}


def _forms(state: dict[str, Tensor]) -> set[tuple[str, torch.Size, bool]]:
    """Returns the name, the shape and the kind of number of each weight. The precision may differ."""
    return {(key, value.shape, value.is_floating_point()) for key, value in state.items()}


def how_to_load(model: nn.Module, name: str, source: str) -> str | None:
    """Returns instructions in Markdown for a model that no Auto class can load as a whole; None for other models.

    Args:
        model: the pruned model.
        name: where its encoder is; "" for the model itself.
        source: the folder or repository that it will be loaded from.
    """
    own = dense_class_of(type(model))
    config: Any = getattr(model, "config", None)
    auto_map = {} if name else config.auto_map
    by_auto = [auto for auto, made in auto_map.items() if made.rpartition(".")[2] == f"KPrune{own.__name__}"]
    if by_auto and not is_of_transformers(own):
        return (
            f"The code of `{own.__name__}`, which transformers does not have, lies in this folder, and with it the "
            f"code that loads the pruned model:\n\n```python\nfrom transformers import {by_auto[0]}\n\n"
            f"model = {by_auto[0]}.from_pretrained({source!r}, trust_remote_code=True)\n```"
        )
    if name:
        load = f"module = {own.__name__}(...)  # as it was built when it was pruned\n"
        load += f"optimum_kprune.load_into(module, {source!r})"
        rest = f"the other weights lie beside it, in `{HEAD_NAME}`"
    elif not is_of_transformers(own):
        load = f"model = optimum_kprune.pruned_class({own.__name__}).from_pretrained({source!r})"
        rest = "the head needs its class"
    else:
        return None
    return (
        f"With the code of `{own.__name__}`, which is not part of this folder, and the package "
        f"`optimum-kprune`:\n\n```python\nimport optimum_kprune\n\n{load}\n```\n\n"
        f"Without the code of `{own.__name__}`, the encoder alone can be loaded; {rest}:\n\n"
        f"```python\nimport optimum_kprune\nfrom transformers import AutoModel\n\n"
        f"encoder = AutoModel.from_pretrained({source!r})\n```"
    )
