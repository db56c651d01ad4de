"""Checks that an adapter describes a model: what a prune relies on is tried on two rows of data.

A prune removes units by the names in an adapter. If these are not what the model does, such as heads that share keys,
a block that runs twice or a table of biases that nobody named, then the pruned model would be wrong without a word.
"""

import logging
import reprlib
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..kprune_map import check_adapter_form, check_structure
from ..kprune_shrink import shrink_sublayer
from ..modeling_kprune import is_of_transformers
from ..result import SublayerResult
from .adapters import EncoderAdapter
from .config_field import adapter_of, kprune_field
from .conversion import dense_class_of
from .custom_modules import find_encoder, with_encoder
from .hooks import first_input, hooks, recorded, recorded_input, recorded_output
from .offloading import is_placed, own_weights, pruned_model_of, sharing_copy
from .partial_forward import find_entries, run
from .residual_streams import require_residual_streams
from .rounding import difference, is_close, is_same_change
from .sublayers import BOTTOM, Encoder, Place, Sublayer
from .unsharing import private_copy

logger = logging.getLogger(__name__)

Batch = dict[str, Tensor]
# The units that each sublayer keeps, by its place.
Kept = dict[Place, list[int]]

# Rows of a batch that are run. One row would not show what is mixed up between rows.
ROWS = 2

# What has passed in this process: classes of models, their adapters and configs.
_checked: set[tuple[Any, ...]] = set()


def check_adapter(
    model: nn.Module, batch: Mapping[str, Tensor], adapter: EncoderAdapter | None = None, encoder: str | None = None
) -> None:
    """Checks on one small batch that an adapter describes a model; returns nothing if it does.

    A prune does so by itself when it meets a class and an adapter for the first time. The model is not changed.

    Args:
        model: the model, with or without a head; or a module that holds one.
        batch: inputs of its forward without labels, with padding if the model knows any. The first two rows are run.
        adapter: the adapter; None takes the registered one.
        encoder: see `KPruner`.

    Raises:
        ValueError: if the adapter does not describe the model: names that do not exist, blocks that run more than
            once, units that depend on each other, tensors of units that the adapter does not name, and so on. The
            message says which sublayer, what was expected and what was found.
    """
    if adapter is None:
        name = find_encoder(model, encoder)
        adapter = adapter_of(model.get_submodule(name))  # type: ignore[arg-type]
    else:
        name = encoder or ""
        check_adapter_form(adapter.to_dict())
    if getattr(model.get_submodule(name).config, "kprune", None) is None:
        check_structure(model.get_submodule(name), adapter.to_dict())
    are_tensors = isinstance(batch, Mapping) and all(isinstance(values, Tensor) for values in batch.values())
    if not are_tensors or not batch or not all(values.numel() for values in batch.values()):
        found = reprlib.repr(batch)
        raise ValueError(f"`batch` must be inputs of the model: a mapping of tensors with rows. Got {found}.")
    require_contract(Encoder(model, adapter, name), dict(batch))


def require_contract_once(dense: Encoder, batch: Batch) -> None:
    """Does `require_contract` if no model of this class, config and adapter has passed it in this process."""
    # With all modules: one may have been replaced, hooked or given another forward after the model was loaded.
    built = tuple(
        (name, type(module), len(module._forward_hooks) + len(module._forward_pre_hooks), "forward" in vars(module))
        for name, module in dense.model.named_modules()
    )
    key = built, str(dense.adapter), dense.config.to_json_string(use_diff=False)
    if key in _checked:
        return
    started = time.perf_counter()
    require_contract(dense, batch)
    # Two modules of a class of the user's own can differ in more than a config.
    if is_of_transformers(dense_class_of(type(dense.model))):
        _checked.add(key)
    seconds = time.perf_counter() - started
    logger.info("The adapter of %r describes the model: checked in %.1f s.", dense.config.model_type, seconds)


@torch.no_grad()
def require_contract(dense: Encoder, batch: Batch) -> None:
    """Raises a ValueError if the adapter does not describe a model; see `check_adapter`."""
    if dense.pretrained.dtype in (torch.bfloat16, torch.float16) and not is_placed(dense.model):
        # What is wrong by a few percent would be taken for rounding.
        dense = dense.of(sharing_copy(dense.model).float())
        batch = {name: values.float() if values.is_floating_point() else values for name, values in batch.items()}
    encoder = private_copy(dense)
    batch = encoder.to_device({name: values[:ROWS] for name, values in batch.items()})
    sublayers = encoder.targets()
    _require_rows_of_tokens(encoder, batch)
    _require_same_outputs(dense, encoder, batch)
    _require_one_call(encoder, sublayers, batch)
    require_residual_streams(encoder, sublayers, batch)
    encoder.entries = find_entries(encoder, batch)
    trial = _Trial(dense, encoder, batch)
    # Units are changed below, for which weights must be in memory.
    if not is_placed(dense.model):
        for sublayer in sublayers:
            _require_own_features(trial, sublayer)
    for sublayer in sublayers:
        if not sublayer.least_units:
            told = f"without the units of a whole sublayer, {sublayer.name}"
            _require_shrunk_is_masked(trial, {sublayer.place: []}, told, sublayer)
    for told, kept in _trials(sublayers):
        _require_shrunk_is_masked(trial, kept, told)
    if not is_placed(dense.model):
        _require_saved_is_shrunk(trial, _half(sublayers))


class _Trial:
    """A model that is tried on a batch, from the block of a sublayer on where it can be entered there.

    Args:
        dense: the model.
        encoder: its private copy, with its entries.
        batch: the inputs.

    Attributes:
        after: the hidden states after every block, (rows, tokens, d).
    """

    def __init__(self, dense: Encoder, encoder: Encoder, batch: Batch) -> None:
        self.dense, self.encoder, self.batch = dense, encoder, batch
        self._starts = [place for place in encoder.entries.modules if not place.position]
        with ExitStack() as stack:
            outputs = [stack.enter_context(recorded_output(block)) for block in encoder.blocks]
            run(encoder, batch)
        self.after = [states[0] for states in outputs]

    def run(self, encoder: Encoder, layer: int) -> Any:
        """Runs a model like this one from a block on, or from the last one below that it can be entered at."""
        place = max((start for start in self._starts if start.layer <= layer), default=BOTTOM)
        return run(encoder, self.batch, place, self.after[place.layer - 1] if place > BOTTOM else None)

    def features(self, sublayer: Sublayer) -> Tensor:
        """Returns the features of a sublayer, (rows, tokens, features)."""
        with recorded(sublayer, until="features") as record:
            self.run(self.encoder, sublayer.layer)
        return record.features

    def states_after(self, encoder: Encoder, alone: Sublayer | None) -> Tensor:
        """Returns the hidden states after the block of a sublayer, (rows, tokens, d).

        Without a sublayer, returns those after the last block, and runs the head, too, which may fail.
        """
        layer = len(encoder.blocks) - 1 if alone is None else alone.layer
        with recorded_output(encoder.blocks[layer], stop=alone is not None) as outputs:
            self.run(encoder, 0 if alone is None else alone.layer)
        return outputs[0]


def _trials(sublayers: list[Sublayer]) -> Iterator[tuple[str, Kept]]:
    """Yields choices of units for all sublayers at once, with what is left in words."""
    yield "with half of all units", _half(sublayers)
    some = {each.place: [unit for unit in (0, 2) if unit < each.units] for each in sublayers}
    yield "with the first and the third unit of every sublayer", some
    yield "with the last unit of every sublayer", {each.place: [each.units - 1] for each in sublayers}
    nothing: Kept = {each.place: list(range(each.least_units)) for each in sublayers}
    yield "without the units of a whole sublayer, which is tried with all sublayers", nothing


def _half(sublayers: list[Sublayer]) -> Kept:
    """Returns a random half of the units of every sublayer, always the same, and at least one."""
    generator = torch.Generator().manual_seed(0)
    chosen = [torch.randperm(each.units, generator=generator)[: max(1, each.units // 2)] for each in sublayers]
    return {each.place: sorted(units.tolist()) for each, units in zip(sublayers, chosen, strict=True)}


def _require_rows_of_tokens(encoder: Encoder, batch: Batch) -> None:
    """Checks that hidden states are (rows, tokens, d): as many rows for a sample, whatever the number of samples."""
    shapes = []
    for samples in (1, 2):
        repeated = {name: torch.cat([values[:1]] * samples) for name, values in batch.items()}
        try:
            with recorded_input(encoder.blocks[0]) as states:
                run(encoder, repeated)
        except torch.OutOfMemoryError:
            raise
        # Models fail in many ways on inputs that are not theirs.
        except Exception as error:
            raise ValueError(
                f"The model cannot be run on the batch: {type(error).__name__}: {error}. Give inputs that it takes."
            ) from error
        shapes += [tuple(state.shape) for state in states]
    fits = len(shapes) == 2 and len(shapes[0]) == 3 and shapes[1] == (2 * shapes[0][0], *shapes[0][1:])
    if shapes and not fits:
        raise ValueError(
            "Hidden states must have the shape (rows, tokens, d) where they enter the first block. Got "
            f"{' and '.join(map(str, shapes))} for one sample and for two."
        )


def _require_same_outputs(dense: Encoder, encoder: Encoder, batch: Batch) -> None:
    """Checks that blocks with weights of their own give what the model gives."""
    if not (dense.adapter.handed_on or dense.adapter.repeated):
        return
    plain = dense.of(sharing_copy(dense.model))
    # The last of several passes through a block that repeats.
    with recorded_output(plain.blocks[-1]) as outputs:
        run(plain, batch)
    expected, found = outputs[-1], _last_states(encoder, batch)
    if not is_close(found, expected):
        raise ValueError(
            "The model must give the same outputs when every block has weights of its own. Check `handed_on` and "
            f"`repeated` of the adapter. Got hidden states that differ by {difference(found, expected):.2g}."
        )


def _require_one_call(encoder: Encoder, sublayers: list[Sublayer], batch: Batch) -> None:
    """Checks that a pass calls every block and every module of the sublayers once."""
    watched: dict[str, nn.Module] = {f"block {layer}": block for layer, block in enumerate(encoder.blocks)}
    for each in sublayers:
        called = {*each.adapter.inputs, each.adapter.output, each.adapter.residual, each.adapter.bypass}
        for name in called - {*each.adapter.uncorrected, ""}:
            watched[f"{name} of {each.name}"] = each.block.get_submodule(name)
    compared = {f"{name} of {each.name}" for each in sublayers for name in each.adapter.inputs}
    calls: Counter[str] = Counter()
    read: dict[str, Tensor] = {}

    def counting(name: str) -> Callable[..., None]:
        def at_call(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            calls.update([name])
            if name in compared:
                read[name] = first_input(args, kwargs)

        return at_call

    with hooks(*(m.register_forward_pre_hook(counting(name), with_kwargs=True) for name, m in watched.items())):
        run(encoder, batch)
    wrong = [name for name in watched if calls[name] != 1]
    if wrong:
        advice = "A block that runs several times must be named in `repeated`, an input that is also called on "
        advice += "something else in `uncorrected`; a projection that is used without a call cannot be pruned."
        raise ValueError(
            f"A forward pass must call every block and projection once. Got {calls[wrong[0]]} calls of {wrong[0]}"
            f"{f' and {len(wrong) - 1} other modules with other numbers' if len(wrong) > 1 else ''}. {advice}"
        )
    for each in sublayers:
        alike = [
            read[f"{name} of {each.name}"] for name in each.adapter.inputs if name not in each.adapter.uncorrected
        ]
        if any(not torch.equal(states, alike[0]) for states in alike):
            raise ValueError(
                f"All inputs of {each.name} must read the same hidden states, which a prune corrects. Got others for "
                "some. Name these in `uncorrected`."
            )


def _require_own_features(trial: _Trial, sublayer: Sublayer) -> None:
    """Checks that the rows of a unit change the features of that unit and of no other.

    Every second unit is changed. A single neuron may be dead on a small batch, so that some must change, and not all.
    """
    changed = list(range(0, sublayer.units, 2))
    before = trial.features(sublayer)
    with ExitStack() as stack:
        for name, parts in sublayer.adapter.inputs.items():
            module = sublayer.block.get_submodule(name)
            for own, parameter in list(module.named_parameters()):
                values = parameter.detach().clone(memory_format=torch.contiguous_format)
                rows = values.view(parts, sublayer.units, -1)
                rows[:, changed] = rows[:, changed] * 1.5 + 0.5 * values.abs().mean()
                stack.callback(module._parameters.__setitem__, own, parameter)
                module._parameters[own] = nn.Parameter(values, requires_grad=False)
        after = trial.features(sublayer)
    before, after = (each.unflatten(-1, (sublayer.units, sublayer.unit_size)) for each in (before, after))
    kept = [unit for unit in range(sublayer.units) if unit not in changed]
    if not is_close(after[..., kept, :], before[..., kept, :]) or torch.equal(after, before):
        found = "no features changed" if torch.equal(after, before) else "those of other units changed, too"
        raise ValueError(
            f"The rows of a unit in the inputs of {sublayer.name} must change the features of that unit alone. Got "
            f"rows of every second of {sublayer.units} units changed, and {found}. Check `inputs` of the adapter, "
            "with the number of projections that are fused in each. Units that are mixed, such as talking heads, "
            "cannot be pruned."
        )


def _require_shrunk_is_masked(trial: _Trial, kept: Kept, told: str, alone: Sublayer | None = None) -> None:
    """Checks that a model without units gives what it gives with their features set to zero.

    Args:
        trial: the model.
        kept: the units that sublayers keep.
        told: what is left of the model, in words.
        alone: the sublayer, if it is one. Then the states after its block are compared, and else those after all.
    """
    encoder = trial.encoder
    shrunk = _shrunk(trial, kept)
    whole = trial.after[alone.layer if alone else -1]
    with _masked(encoder, kept):
        expected = trial.states_after(encoder, alone)
    try:
        found = trial.states_after(shrunk, alone)
    except torch.OutOfMemoryError:
        raise
    # Whatever fails is the model's own code, which does not expect what is left.
    except Exception as error:
        raise ValueError(
            f"The model cannot run {told}: {type(error).__name__}: {error}. {_suspects(encoder, kept)} A head that "
            "reads the attention of the blocks cannot be pruned for: leave it out of `forward`."
        ) from error
    if found.shape != expected.shape or not is_same_change(found, expected, whole):
        raise ValueError(
            f"A pruned model must give what the model gives with the same units set to zero. Got hidden states that "
            f"differ by {difference(found, expected):.2g} of their maximum {told}. {_suspects(encoder, kept)}"
        )


def _shrunk(trial: _Trial, kept: Kept) -> Encoder:
    """Returns a copy of a model that has lost all units but those that are kept, and can be entered like it."""
    copied = private_copy(trial.dense)
    for place, units in kept.items():
        target = copied.sublayer(place)
        with own_weights(target.block):
            shrink_sublayer(target.block, target.adapter.to_dict(), units, target.units)
    copied.entries = trial.encoder.entries
    return copied


@contextmanager
def _masked(encoder: Encoder, kept: Kept) -> Iterator[None]:
    """Sets the features of all units to zero but of those that are kept, during the forward passes in the context."""

    def masking(sublayer: Sublayer, units: list[int]) -> Callable[..., Any]:
        mask = torch.zeros(sublayer.units, device=encoder.device)
        mask[units] = 1
        columns = mask.repeat_interleave(sublayer.unit_size)
        return lambda module, args: (args[0] * columns.to(args[0]), *args[1:])

    with ExitStack() as stack:
        for place, units in kept.items():
            sublayer = encoder.sublayer(place)
            stack.enter_context(hooks(sublayer.output.register_forward_pre_hook(masking(sublayer, units))))
        yield


def _require_saved_is_shrunk(trial: _Trial, kept: Kept) -> None:
    """Checks that the pruned class of a model builds what was pruned."""
    dense, batch, shrunk = trial.dense, trial.batch, _shrunk(trial, kept)
    expected = _last_states(shrunk, batch)
    results = [
        SublayerResult(each.layer, each.adapter.kind, kept.get(each.place, []), each.units, 0, 0, 0, 0, 0)
        for each in trial.encoder.sublayers()
    ]
    kprune = kprune_field(dense.pretrained, dense.adapter, results)
    built = with_encoder(dense.model, dense.name, pruned_model_of(shrunk.pretrained, kprune))
    try:
        found = _last_states(dense.of(built), batch)
    except torch.OutOfMemoryError:
        raise
    # Whatever fails is the model's own code, which was built in another way than the model that is loaded.
    except Exception as error:
        raise ValueError(
            f"The pruned class of a {type(dense.pretrained).__name__} must give what was pruned. It cannot run: "
            f"{type(error).__name__}: {error}. Its config does not say all that builds the model."
        ) from error
    if not is_close(found, expected):
        raise ValueError(
            f"The pruned class of a {type(dense.pretrained).__name__} must give what was pruned. Got hidden states "
            f"that differ by {difference(found, expected):.2g}: its config does not say all that builds the model."
        )


def _last_states(encoder: Encoder, batch: Batch) -> Tensor:
    """Returns the hidden states after the last block, (rows, tokens, d)."""
    with recorded_output(encoder.blocks[-1], stop=True) as outputs:
        run(encoder, batch)
    return outputs[0]


def _suspects(encoder: Encoder, kept: Kept) -> str:
    """Returns which tensors of the sublayers' modules may have entries of units that the adapter does not name."""
    places = list(kept)
    found: list[str] = []
    for sublayer in (encoder.sublayer(place) for place in places[: len(encoder.adapter.sublayers)]):
        adapter, modules = sublayer.adapter, dict(sublayer.block.named_modules())
        named = {*adapter.tensors, *(f"{name}." for name in (*adapter.inputs, adapter.output))}
        inside = modules[adapter.bypass] if adapter.bypass else nn.Module()
        for name, tensor in (*inside.named_parameters(), *inside.named_buffers()):
            path = f"{adapter.bypass}.{name}"
            is_named = path in named or any(path.startswith(own) for own in named if own.endswith("."))
            if not is_named and {sublayer.units, sublayer.features} & {*tensor.shape}:
                found.append(f"{path} {tuple(tensor.shape)}")
    listed = f" Tensors that may have entries of units: {', '.join(found)}." if found else ""
    return (
        "Check the adapter: parameters and buffers of units belong in `tensors`, arguments of the bypass with entries "
        f"of units in `arguments`, numbers of units in `counts`.{listed}"
    )
