"""Runs a model from any sublayer on. Skips what lies below, without a copy of the model's forward method."""

import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .adapters import SublayerAdapter
from .hooks import Stop, first_input, hooks, recorded_output
from .sublayers import BOTTOM, Encoder, Place, Sublayer

logger = logging.getLogger(__name__)

Forward = Callable[..., Any]


def run(encoder: Encoder, batch: dict[str, Tensor], place: Place = BOTTOM, hidden: Tensor | None = None) -> Any:
    """Runs a model from a place on. Returns its outputs, or None if a recording hook stopped the forward pass."""
    with entered_at(encoder, place, hidden):
        try:
            return encoder.model(**batch, **encoder.options)
        except Stop:
            return None


@contextmanager
def entered_at(encoder: Encoder, place: Place, hidden: Tensor | None) -> Iterator[None]:
    """Makes the stack of blocks start at a place, with the given hidden states (rows, tokens, d).

    The blocks below the place return the hidden states and compute nothing. What comes before and after the stack
    (embeddings, masks, positions, head) runs as usual. If the place is inside of a block, the sublayers below it in
    the block add 0, and a norm after them returns the hidden states.
    """
    replacements: list[tuple[nn.Module, Forward]] = [
        (block, _returning(hidden)) for block in encoder.blocks[: place.layer]
    ]
    with ExitStack() as stack:
        if place.position and hidden is not None:
            block = encoder.blocks[place.layer]
            for position, adapter in enumerate(encoder.adapter.sublayers[: place.position]):
                entry = encoder.entries.get(Place(place.layer, position + 1), "")
                replacements += _skipping(block, adapter, entry, hidden)
            # In block 0, no block below hands the hidden states on, so that they are put in by a hook.
            stack.enter_context(hooks(block.register_forward_pre_hook(_entering(hidden), with_kwargs=True)))
        stack.enter_context(_replaced_forwards(replacements))
        yield


@torch.no_grad()
def find_entries(encoder: Encoder, batch: dict[str, Tensor]) -> dict[Place, str]:
    """Finds the places inside of blocks at which a model can be entered, by running it on a batch and trying each.

    Returns:
        the entry of every place: the name, in the block, of the module whose output enters the sublayer there, such as
        the norm after the sublayer below. It is "" where a plain sum enters. A place is left out if a run from it does
        not give what a plain forward pass gives.
    """
    # A sublayer without units is never a target, so that nothing is run from it.
    inside = [sublayer for sublayer in encoder.sublayers() if sublayer.place.position and sublayer.units]
    entries: dict[Place, str] = {}
    entering: dict[Place, Tensor] = {}
    with ExitStack() as stack:
        for sublayer in inside:
            stack.enter_context(_recorded_entry(sublayer, entries, entering))
        leaving = [stack.enter_context(recorded_output(block)) for block in encoder.blocks]
        run(encoder, batch)
    trial = Encoder(encoder.model, encoder.adapter, encoder.name, entries)
    for place, hidden in entering.items():
        with recorded_output(encoder.blocks[place.layer], stop=True) as outputs:
            run(trial, batch, place, hidden)
        expected = leaving[place.layer][0]
        # `not <=` instead of `>`: both comparisons are false for values that are not finite. Rounding is tolerated.
        if not bool((outputs[0] - expected).abs().max() <= 1e-3 * expected.abs().max()):
            del entries[place]
    if len(entries) < len(entering):
        logger.warning(
            f"{len(entering) - len(entries)} of {len(entering)} sublayers of this {encoder.config.model_type} "
            "cannot be entered inside of their block: what lies below them there is computed again, which takes time."
        )
    return entries


@torch.no_grad()
def reads_below(encoder: Encoder, batch: dict[str, Tensor], predict: Callable[[Any], Tensor]) -> bool:
    """Returns whether a head reads other hidden states than those after the last block.

    Runs the model from these hidden states alone, and compares the prediction with that of a plain forward pass.
    """
    with recorded_output(encoder.blocks[-1]) as outputs:
        expected = predict(run(encoder, batch))
    try:
        entered = predict(run(encoder, batch, Place(len(encoder.blocks)), outputs[0]))
    except Exception as error:
        error.add_note(
            "The model was run from the hidden states after its last block, to see what its head reads. A head that "
            "needs the attention of the blocks below cannot be pruned for: leave it out of `forward`."
        )
        raise
    return not torch.allclose(entered, expected)


@contextmanager
def _recorded_entry(sublayer: Sublayer, entries: dict[Place, str], entering: dict[Place, Tensor]) -> Iterator[None]:
    """Records, by place, the hidden states that enter a sublayer and the name of the module that they come from."""
    outputs: dict[int, tuple[str, Any]] = {}

    def at_residual(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        entering[sublayer.place] = hidden = first_input(args, kwargs)
        entries[sublayer.place], _ = outputs.get(id(hidden), ("", None))

    def remember(name: str) -> Forward:
        def at_output(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            # The tensor is stored with the name, because the id of a freed tensor can be given to a later one. Of
            # modules that return the same tensor, the first to return it is the innermost.
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
    replacements = [
        (block.get_submodule(adapter.bypass), _returning((nothing, None) if adapter.returns_tuple else nothing)),
        (block.get_submodule(adapter.output), _returning(nothing)),
    ]
    return [*replacements, (block.get_submodule(entry), _returning(hidden))] if entry else replacements


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
