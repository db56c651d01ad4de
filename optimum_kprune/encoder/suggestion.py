"""Suggests an adapter for a model of an unknown type: runs the model, and looks at what its modules do."""

import logging
from collections.abc import Iterator
from dataclasses import MISSING, fields, replace
from typing import Any, get_args

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from .adapters import EncoderAdapter, SublayerAdapter
from .block_trace import traced
from .contract import check_adapter
from .hooks import evaluating
from .offloading import execution_device
from .sample_batch import sample_batch
from .sublayer_search import Counting, find_sublayers

Batch = dict[str, Tensor]

logger = logging.getLogger(__name__)


def suggest_adapter(model: PreTrainedModel, batch: Batch | None = None) -> EncoderAdapter:
    """Finds where the prunable sublayers of a model are, for `register_adapter`.

    Looks for the largest stack of equal blocks, and runs the model to see which linear layers of a block write to its
    residual stream, and which feed them. `check_adapter` has verified what is returned. A sublayer that cannot be
    verified is left out, and a warning says why.

    Args:
        model: a loaded model of transformers, with or without a head. It is not changed.
        batch: inputs of the model, of two rows or more; None makes some from the config.

    Raises:
        ValueError: if nothing can be verified, or the model cannot be run. The message says what was looked at.
    """
    if not isinstance(model, PreTrainedModel):
        raise ValueError(f"`model` must be a loaded transformers model. Got {type(model).__name__} instead.")
    given = sample_batch(model) if batch is None else batch
    device = execution_device(model)
    inputs = {name: values.to(device) for name, values in given.items()}
    _require_runs(model, inputs)
    refusals: dict[str, str] = {}
    for name, blocks in _stacks(model):
        try:
            found = _found_in(model, inputs, name, blocks)
        except torch.OutOfMemoryError:
            raise
        # Autograd cannot go back through everything, such as what a model computes in place.
        except RuntimeError as error:
            refusals[name] = f"it cannot be looked at: {error}"
            continue
        adapter = _verified(model, inputs, found, refusals)
        if adapter is not None:
            for left_out, reason in refusals.items():
                logger.warning(f"Left out of the adapter of {model.config.model_type!r}: {left_out}: {reason}")
            return adapter
    raise _nothing_found(model, refusals)


def adapter_code(model_type: str, adapter: EncoderAdapter) -> str:
    """Returns the lines of Python that register an adapter."""
    sublayers = ",\n".join(_call(sublayer, " " * 12) for sublayer in adapter.sublayers)
    call = _call(adapter, " " * 4, sublayers=f"(\n{sublayers},\n{' ' * 8})")
    return f'register_adapter(\n    "{model_type}",\n{call},\n)'


def unknown_type(model: PreTrainedModel) -> ValueError:
    """Returns the error for a model whose type has no adapter. It proposes one, if one is found."""
    model_type = model.config.model_type
    told = (
        f"No adapter for the model type {model_type!r}. `optimum-cli kprune --list_models` lists the supported ones."
    )
    logger.info(f"Looking for an adapter of {model_type!r}, which is not supported.")
    try:
        code = adapter_code(model_type, suggest_adapter(model))
    except ValueError as error:
        return ValueError(f"{told} {error}")
    return ValueError(
        f"{told} This one was found by looking at the modules, and `check_adapter` accepts it for this model. Run it "
        "and try again:\n\nfrom optimum_kprune import EncoderAdapter, SublayerAdapter, register_adapter\n\n"
        f"{code}\n"
    )


def _require_runs(model: PreTrainedModel, batch: Batch) -> None:
    """Raises a ValueError if a model cannot be run on a batch."""
    try:
        with evaluating(model), torch.no_grad():
            model(**batch)
    except torch.OutOfMemoryError:
        raise
    # A model of an unknown type, on a batch that may not be right for it, can raise anything.
    except Exception as error:
        shapes = ", ".join(f"{name} {tuple(values.shape)}" for name, values in batch.items())
        raise ValueError(
            f"The {type(model).__name__} cannot be run on a batch of {shapes}: {type(error).__name__}: {error}. Give "
            "one that it takes: `suggest_adapter(model, batch)`."
        ) from error


def _call(adapter: Any, indent: str, **written: str) -> str:
    """Returns the call that makes an adapter, or that of a sublayer, without what is left at its default."""
    told = adapter.to_dict()
    names = [item.name for item in fields(adapter) if told.get(item.name) or _is_needed(item)]
    # Names of modules have no quotes in them.
    texts = {name: written.get(name, repr(getattr(adapter, name)).replace("'", '"')) for name in names}
    lines = [f"{indent}    {name}={text},\n" for name, text in texts.items()]
    return f"{indent}{type(adapter).__name__}(\n{''.join(lines)}{indent})"


def _is_needed(item: Any) -> bool:
    return item.default is MISSING and item.default_factory is MISSING


def _found_in(model: PreTrainedModel, batch: Batch, name: str, blocks: list[nn.Module]) -> list[EncoderAdapter]:
    """Returns what describes a stack of blocks, not verified yet: one adapter for each way to find counts."""
    found = []
    # The highest block shows what is handed to a block by those below, the lowest what it hands on.
    with traced(model, blocks[0], batch) as low, traced(model, blocks[-1], batch) as high:
        for counting in get_args(Counting):
            lowest, highest = find_sublayers(low, counting), find_sublayers(high, counting)
            handed_on = dict(item for pair in zip(lowest, highest, strict=False) for item in _handed_on(*pair))
            found.append(EncoderAdapter(name, tuple(lowest if handed_on else highest), handed_on=handed_on))
    return found


def _handed_on(lowest: SublayerAdapter, highest: SublayerAdapter) -> Iterator[tuple[str, str]]:
    """Yields modules with entries of units that only block 0 has, with the argument by which their result comes."""
    for name in lowest.tensors.keys() - highest.tensors.keys():
        for argument in highest.arguments.keys() - lowest.arguments.keys():
            yield name.rpartition(".")[0], argument


def _stacks(model: PreTrainedModel) -> list[tuple[str, list[nn.Module]]]:
    """Returns the stacks of equal blocks of a model by name, the most likely to be the encoder's first.

    Of lists in the items of a list, such as the stages of a pyramid, all blocks are one stack.
    """
    # The blocks of a decoder, which is beside the encoder, are left out.
    root: Any = model.get_encoder() if model.config.is_encoder_decoder else model.base_model
    inside = set(root.modules())
    stacks: dict[str, list[nn.Module]] = {}
    for name, module in model.base_model.named_modules():
        if isinstance(module, nn.ModuleList) and module in inside:
            stacks.setdefault(_starred(model.base_model, name), []).extend(module)
    # An adapter cannot name the items of lists that are items of a list themselves.
    found = {name: blocks for name, blocks in stacks.items() if _are_equal(blocks) and not name.endswith("*")}
    sizes = {name: sum(p.numel() for block in blocks for p in block.parameters()) for name, blocks in found.items()}
    return sorted(found.items(), key=lambda item: (sizes[item[0]], item[0].count("*")), reverse=True)


def _starred(root: nn.Module, name: str) -> str:
    """Returns the name of a module with a `*` in place of every index in a list."""
    parts = name.split(".")
    for index, part in enumerate(parts):
        parts[index] = "*" if isinstance(root, nn.ModuleList) else part
        root = root.get_submodule(part)
    return ".".join(parts)


def _are_equal(blocks: list[nn.Module]) -> bool:
    """Returns whether blocks are modules of one class, with linear layers of the same names."""
    kinds = {(type(block), *_linears(block)) for block in blocks}
    return len(kinds) == 1 and len(*kinds) > 1 and not isinstance(blocks[0], nn.ModuleList)


def _linears(block: nn.Module) -> list[str]:
    return [name for name, module in block.named_modules() if isinstance(module, nn.Linear)]


def _verified(
    model: PreTrainedModel, batch: Batch, found: list[EncoderAdapter], refusals: dict[str, str]
) -> EncoderAdapter | None:
    """Returns the first adapter with the sublayers that `check_adapter` accepts; None if it accepts none.

    The reasons for those that are left out are put into `refusals`.
    """
    adapter = found[0]
    if not adapter.sublayers or _refusal(model, batch, adapter) is None:
        return adapter if adapter.sublayers else None
    kept: list[SublayerAdapter] = []
    for position, sublayer in enumerate(adapter.sublayers):
        ways = [each.sublayers[position] for each in found]
        # Or no module can be taken out in place of the sublayer: then one unit always stays.
        ways += [replace(way, bypass="", returns_tuple=False) for way in ways if not way.arguments]
        accepted = _accepted(model, batch, adapter, ways)
        if isinstance(accepted, SublayerAdapter):
            kept.append(accepted)
        else:
            refusals[f"{adapter.blocks}, {sublayer.kind} with the output {sublayer.output!r}"] = accepted
    rest = _only(adapter, *kept)
    reason = _refusal(model, batch, rest) if kept else None
    if reason is not None:
        refusals[f"{adapter.blocks}, {', '.join(way.output for way in kept)} together"] = reason
    return rest if kept and reason is None else None


def _accepted(
    model: PreTrainedModel, batch: Batch, adapter: EncoderAdapter, ways: list[SublayerAdapter]
) -> SublayerAdapter | str:
    """Returns the first way to describe a sublayer that `check_adapter` accepts; or why it refuses the last."""
    reason = ""
    for way in (way for index, way in enumerate(ways) if way not in ways[:index]):
        refusal = _refusal(model, batch, _only(adapter, way))
        if refusal is None:
            return way
        reason = refusal
    return reason


def _only(adapter: EncoderAdapter, *sublayers: SublayerAdapter) -> EncoderAdapter:
    """Returns an adapter with some of its sublayers, and with what is handed on to these."""
    tensors = [name for sublayer in sublayers for name in sublayer.tensors]
    handed_on = {
        module: argument
        for module, argument in adapter.handed_on.items()
        if any(name.startswith(f"{module}.") for name in tensors)
    }
    return replace(adapter, sublayers=sublayers, handed_on=handed_on)


def _refusal(model: PreTrainedModel, batch: Batch, adapter: EncoderAdapter) -> str | None:
    """Returns why `check_adapter` refuses an adapter; None if it accepts it."""
    try:
        check_adapter(model, batch, adapter)
    except ValueError as error:
        return str(error)
    return None


def _nothing_found(model: PreTrainedModel, refusals: dict[str, str]) -> ValueError:
    """Returns the error that says what was looked for, and what was found."""
    stacks = ", ".join(f"{name!r} ({len(blocks)} {type(blocks[0]).__name__})" for name, blocks in _stacks(model))
    tried = " ".join(f"Refused: {name}: {reason}" for name, reason in refusals.items())
    return ValueError(
        f"No sublayers to prune were found in this {type(model).__name__} of the type {model.config.model_type!r}. "
        "Looked for stacks of equal blocks; in a block, for linear layers whose output is added to what an earlier "
        "module reads, and for linear layers before them whose rows belong to their columns, head by head or neuron "
        f"by neuron. Stacks: {stacks or 'none'}. {tried or 'No such linear layers are in them.'} "
        "docs/custom_models.md says how to describe a model by hand, and what cannot be described."
    )
