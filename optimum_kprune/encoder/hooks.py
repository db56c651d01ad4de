"""Context managers that record or stop forward passes, and always remove their hooks from the model."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Literal

from torch import Tensor, nn

from .sublayers import Encoder, Place, Sublayer


class Stop(Exception):
    """Raised by hooks to end a forward pass whose rest is not needed."""


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Puts a model in evaluation mode, and restores the mode of every module at the end."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            # Not by `train()`, which would set the modules inside, too.
            module.training = training


def first_input(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """Returns the hidden states among the arguments of a module, by convention the first one."""
    return args[0] if args else next(iter(kwargs.values()))


def states_in(output: Any) -> Tensor:
    """Returns the hidden states in what a block returns: the first item, if it is a tuple."""
    states = output[0] if isinstance(output, tuple) and output else output
    if not isinstance(states, Tensor):
        raise ValueError(
            "A block must return hidden states, or a tuple that begins with them. Got "
            f"{type(states).__name__}. Such a model cannot be pruned."
        )
    return states


@contextmanager
def hooks(*handles: Any) -> Iterator[None]:
    """Removes hooks at the end, given the handles that registering them returned."""
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class SublayerRecord:
    """The tensors of a sublayer in the last forward pass.

    Attributes:
        residual: X, (rows, tokens, d), the residual stream that enters.
        features: A, (rows, tokens, features), the input of the output projection.
        output: (rows, tokens, d), the output of the output projection. Not set if the pass stops before it.
        added: Sub(X), (rows, tokens, d), what is added to X: the output, scaled or normalised where the architecture
            does so. Not set if the pass stops before it.
    """

    residual: Tensor
    features: Tensor
    output: Tensor
    added: Tensor


@contextmanager
def recorded(sublayer: Sublayer, until: Literal["features", "output"] | None = None) -> Iterator[SublayerRecord]:
    """Records a sublayer during the forward passes in the context.

    Args:
        sublayer: the sublayer.
        until: where to stop the forward passes: before the output projection ("features"), after the output is known
            as it is added ("output"), or nowhere (None).

    Yields:
        the record. It holds the last forward pass.
    """
    record = SublayerRecord()

    def at_residual(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        record.residual = first_input(args, kwargs)

    def at_features(module: nn.Module, args: tuple[Any, ...]) -> None:
        record.features = args[0]
        if until == "features":
            raise Stop

    def at_output(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        record.output = output

    def at_added(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        scale = sublayer.scale
        record.added = output * scale if isinstance(scale, Tensor) or scale != 1 else output
        if until == "output":
            raise Stop

    with hooks(
        sublayer.residual.register_forward_pre_hook(at_residual, with_kwargs=True),
        sublayer.output.register_forward_pre_hook(at_features),
        sublayer.output.register_forward_hook(at_output),
        (sublayer.normaliser or sublayer.output).register_forward_hook(at_added),
    ):
        yield record


@contextmanager
def recorded_states(encoder: Encoder, place: Place, stop: bool = True) -> Iterator[list[Tensor]]:
    """Records the hidden states that enter a place, and stops the forward passes there. Not for the bottom."""
    # As the output of the block below, because there is no module to enter after the last block.
    if not place.position:
        with recorded_output(encoder.blocks[place.layer - 1], stop) as outputs:
            yield outputs
        return
    with recorded_input(encoder.sublayer(place).residual, stop) as inputs:
        yield inputs


@contextmanager
def recorded_input(module: nn.Module, stop: bool = True) -> Iterator[list[Tensor]]:
    """Records the hidden states that enter a module. If `stop` is true, stops the forward passes there."""
    inputs: list[Tensor] = []

    def at_input(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        inputs.append(first_input(args, kwargs))
        if stop:
            raise Stop

    with hooks(module.register_forward_pre_hook(at_input, with_kwargs=True)):
        yield inputs


@contextmanager
def recorded_output(block: nn.Module, stop: bool = False) -> Iterator[list[Tensor]]:
    """Records the hidden states that leave a block. If `stop` is true, stops the forward passes there."""
    outputs: list[Tensor] = []

    def at_output(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        outputs.append(states_in(output))
        if stop:
            raise Stop

    with hooks(block.register_forward_hook(at_output)):
        yield outputs


@contextmanager
def observed_units(
    sublayers: list[Sublayer], on_features: Callable[[int, Tensor], None], on_gradients: Callable[[int, Tensor], None]
) -> Iterator[None]:
    """Calls functions with the features of sublayers, and with the gradients of masks on them, in a backward pass.

    The gradient of the loss in a mask m on a feature, at m = 1, is the sum over tokens of feature x gradient of the
    feature. So one backward pass gives it for every row, sublayer and feature. The features of the lowest sublayer
    become leaves, so that the backward pass ends there.

    Args:
        sublayers: the sublayers, bottom to top.
        on_features: called with the index of a sublayer and its features, (rows, tokens, features).
        on_gradients: called with the index of a sublayer and the gradients, (rows, features).
    """

    def before_projection(index: int) -> Callable[..., tuple[Tensor, ...]]:
        def hook(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            features = args[0] if args[0].requires_grad else args[0].detach().requires_grad_()
            values = features.detach()

            # Both functions are called here, and not in the forward pass: a block of `weights_let_go` runs forward
            # twice, and would give its features twice.
            def at_gradient(gradient: Tensor) -> None:
                on_features(index, values)
                # Float32 times a narrower type is float32, so that no float32 copy of the gradient is needed.
                on_gradients(index, (values.float() * gradient).sum(dim=1))

            features.register_hook(at_gradient)
            return (features, *args[1:])

        return hook

    with ExitStack() as stack:
        for index, sublayer in enumerate(sublayers):
            stack.enter_context(hooks(sublayer.output.register_forward_pre_hook(before_projection(index))))
        yield


@contextmanager
def constant_features(sublayers: list[Sublayer], features: dict[Place, Tensor]) -> Iterator[None]:
    """Makes what the output projections of sublayers read the same for all tokens, in the passes in the context.

    Args:
        sublayers: the sublayers.
        features: what is read instead, (features,), by the place of the sublayer.
    """

    def replacing(constant: Tensor) -> Callable[..., tuple[Tensor, ...]]:
        def hook(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            return (constant.to(args[0]).expand_as(args[0]), *args[1:])

        return hook

    with hooks(*(each.output.register_forward_pre_hook(replacing(features[each.place])) for each in sublayers)):
        yield
