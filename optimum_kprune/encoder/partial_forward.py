"""Runs a model from any sublayer on. Skips what lies below, without a copy of the model's forward method."""

import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ..kprune_shrink import tuple_items
from .adapters import SublayerAdapter
from .hooks import Stop, first_input, hooks, recorded_input, recorded_output, recorded_states
from .sublayers import BOTTOM, Encoder, Entries, Place, Sublayer

logger = logging.getLogger(__name__)

Forward = Callable[..., Any]


def run(encoder: Encoder, batch: dict[str, Tensor], place: Place = BOTTOM, hidden: Tensor | None = None) -> Any:
    """Runs a model from a place on. Returns its outputs, or None if a recording hook stopped the forward pass."""
    with entered_at(encoder, place, hidden):
        try:
            return encoder.running(**batch, **encoder.options)
        except Stop:
            return None


@contextmanager
def entered_at(encoder: Encoder, place: Place, hidden: Tensor | None) -> Iterator[None]:
    """Makes the stack of blocks start at a place, with the given hidden states (rows, tokens, d).

    The blocks below the place return the hidden states and compute nothing. What comes before and after the stack
    (embeddings, masks, positions, head) runs as usual, but for the modules that the adapter names as its front. If the
    place is inside of a block, the sublayers below it in the block add 0, and a norm after them returns the hidden
    states.
    """
    handed = (hidden, *[None] * (encoder.entries.items - 1)) if encoder.entries.items else hidden
    replacements: list[tuple[nn.Module, Forward]] = [
        (block, _returning(handed)) for block in encoder.blocks[: place.layer]
    ]
    if place > BOTTOM:
        replacements += _front_skipped(encoder)
    with ExitStack() as stack:
        if place.position and hidden is not None:
            block = encoder.blocks[place.layer]
            for position, adapter in enumerate(encoder.adapter.sublayers[: place.position]):
                entry = encoder.entries.modules.get(Place(place.layer, position + 1), "")
                replacements += _skipping(block, adapter, entry, hidden)
            # In block 0, no block below hands the hidden states on, so that they are put in by a hook.
            stack.enter_context(hooks(block.register_forward_pre_hook(_entering(hidden), with_kwargs=True)))
        stack.enter_context(_replaced_forwards(replacements))
        yield


@torch.no_grad()
def find_entries(encoder: Encoder, batch: dict[str, Tensor]) -> Entries:
    """Finds the places at which a model can be entered, by running it on a batch and trying each.

    A place is left out if a run from it does not give what a plain forward pass gives, bit for bit. The run goes up to
    the next block that the model can be entered at: from there on, hidden states alone are known to be enough.
    """
    # A sublayer without units is never a target, so that nothing is run from it.
    inside = [sublayer for sublayer in encoder.sublayers() if sublayer.place.position and sublayer.units]
    starts = [Place(layer) for layer in range(1, len(encoder.blocks))]
    modules: dict[Place, str] = dict.fromkeys(starts, "")
    entering: dict[Place, Tensor] = {}
    items: list[int] = []
    with ExitStack() as stack:
        for sublayer in inside:
            stack.enter_context(_recorded_entry(sublayer, modules, entering))
        below = [stack.enter_context(recorded_states(encoder, place, stop=False)) for place in starts]
        bottom = stack.enter_context(recorded_input(encoder.blocks[0], stop=False))
        stack.enter_context(hooks(encoder.blocks[0].register_forward_hook(_counting_items(items))))
        top = stack.enter_context(recorded_output(encoder.blocks[-1], stop=True))
        run(encoder, batch)
    entering |= {place: states[0] for place, states in zip(starts, below, strict=True)}
    found = Entries(modules, items[0])
    # With other states, so that nothing is left of the right ones that a model may keep from run to run.
    other = encoder.blocks[0].register_forward_pre_hook(_entering(-bottom[0].flip(-1)), with_kwargs=True)
    with hooks(other), recorded_output(encoder.blocks[-1], stop=True):
        run(encoder, batch)
    tried = encoder.of(encoder.model, found)
    failed: list[Place] = []
    end, expected = len(encoder.blocks), top[0]
    # From the top, because a run from below leaves right states for the places above it.
    for place, hidden in sorted(entering.items(), reverse=True):
        if not _gives(tried, batch, place, hidden, end, expected):
            failed.append(place)
        elif not place.position:
            end, expected = place.layer, hidden
    if failed:
        logger.warning(
            f"{len(failed)} of {len(entering)} sublayers of this {encoder.config.model_type} cannot be entered: what "
            "lies below them is computed again, which takes time."
        )
    return replace(found, modules={place: name for place, name in modules.items() if place not in failed})


def _gives(
    encoder: Encoder, batch: dict[str, Tensor], place: Place, hidden: Tensor, end: int, expected: Tensor
) -> bool:
    """Whether a run from a place gives the expected hidden states before the block of index `end`."""
    try:
        with recorded_output(encoder.blocks[end - 1], stop=True) as outputs:
            run(encoder, batch, place, hidden)
    except torch.OutOfMemoryError:
        raise
    # Where blocks hand on more than hidden states, a forward without that can fail in any way.
    except Exception as error:
        logger.debug("Place %s cannot be entered: %r", place, error)
        return False
    return torch.equal(outputs[0], expected)


def _counting_items(items: list[int]) -> Callable[..., None]:
    """Returns a hook that counts the items of the tuple that a module returns; 0 for a tensor."""

    def at_output(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        items.append(len(output) if isinstance(output, tuple) else 0)

    return at_output


@torch.no_grad()
def reads_below(encoder: Encoder, batch: dict[str, Tensor], predict: Callable[[Any], Tensor]) -> bool:
    """Returns whether a head reads other hidden states than those after the last block, or more than these.

    Runs the model from these hidden states alone, and compares the prediction with that of a plain forward pass.
    """
    with recorded_output(encoder.blocks[-1]) as outputs:
        expected = predict(run(encoder, batch))
    try:
        entered = predict(run(encoder, batch, Place(len(encoder.blocks)), outputs[0]))
    except torch.OutOfMemoryError:
        raise
    # A head that needs the attention of the blocks below, for example, can fail in any way without it.
    except Exception as error:
        logger.debug("The head cannot be run from the last hidden states alone: %r", error)
        return True
    return not torch.allclose(entered, expected)


@contextmanager
def _recorded_entry(sublayer: Sublayer, entries: dict[Place, str], entering: dict[Place, Tensor]) -> Iterator[None]:
    """Records, by place, the hidden states that enter a sublayer and the name of the module that they come from."""
    outputs: dict[int, tuple[str, Any]] = {}

    def at_residual(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        entering[sublayer.place] = hidden = first_input(args, kwargs)
        entries[sublayer.place], _ = outputs.get(id(hidden), ("", None))
        outputs.clear()

    def remember(name: str) -> Forward:
        def at_output(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            # The tensor is stored with the name, because the id of a freed tensor can be given to a later one. Of
            # modules that return the same tensor, the first to return it is the innermost.
            if sublayer.place not in entering:
                outputs.setdefault(id(output), (name, output))

        return at_output

    modules = [(name, module) for name, module in sublayer.block.named_modules() if name]
    with hooks(
        sublayer.residual.register_forward_pre_hook(at_residual, with_kwargs=True),
        *(module.register_forward_hook(remember(name)) for name, module in modules),
    ):
        yield


def _skipping(
    block: nn.Module, adapter: SublayerAdapter, entry: str, hidden: Tensor
) -> list[tuple[nn.Module, Forward]]:
    """Returns modules with new forward methods, by which a sublayer adds 0 to the hidden states."""
    # A single 0 in the shape of the hidden states, which takes no memory.
    nothing = hidden.new_zeros(()).expand_as(hidden)
    # The bypass would compute the units, and the output projection would add its bias.
    replacements = [(block.get_submodule(adapter.output), _returning(nothing))]
    if adapter.bypass:
        items = tuple_items(adapter.returns_tuple)
        value = (nothing, *[None] * (items - 1)) if items else nothing
        replacements.append((block.get_submodule(adapter.bypass), _returning(value)))
    return [*replacements, (block.get_submodule(entry), _returning(hidden))] if entry else replacements


def _front_skipped(encoder: Encoder) -> list[tuple[nn.Module, Forward]]:
    """Returns the modules of the front with forward methods that return zeros in the shapes of their outputs."""
    base = encoder.pretrained.base_model
    return [
        (module, _once(module, encoder.front_outputs)) for module in map(base.get_submodule, encoder.adapter.front)
    ]


def _once(module: Any, outputs: dict[Any, Any]) -> Forward:
    """Returns a forward method that returns zeros. It runs the module once per shape of inputs, to see theirs."""
    own = module.forward

    def forward(*args: Any, **kwargs: Any) -> Tensor:
        key = id(module), *(value.shape for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
        if key not in outputs:
            output = own(*args, **kwargs)
            # A single 0 in the shape of the output, which takes no memory.
            outputs[key] = output.new_zeros(()).expand_as(output)
        return outputs[key]

    return forward


def _returning(value: Any) -> Forward:
    """Returns a forward method that returns a value, whatever the input."""
    return lambda *args, **kwargs: value


def _entering(hidden: Tensor) -> Forward:
    """Returns a hook that replaces the first input of a module by the hidden states."""

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        return ((hidden, *args[1:]), kwargs) if args else (args, {**kwargs, next(iter(kwargs)): hidden})

    return hook


@contextmanager
def _replaced_forwards(replacements: list[tuple[nn.Module, Forward]]) -> Iterator[None]:
    """Replaces the forward methods of modules, and restores them at the end."""
    # Only what the instance itself has is stored, such as accelerate's wrapper. The method of its class comes back
    # when the replacement is deleted.
    replaced: list[tuple[nn.Module, Forward | None]] = []
    try:
        for module, forward in replacements:
            replaced.append((module, module.__dict__.get("forward")))
            module.__dict__["forward"] = forward
        yield
    finally:
        # In reverse order, because the forward of a module may have been replaced twice.
        for module, own in reversed(replaced):
            if own is None:
                module.__dict__.pop("forward", None)
            else:
                module.__dict__["forward"] = own
