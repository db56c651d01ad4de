"""Context managers that record a forward pass, or stop it, and always take their hooks off the model again."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Literal

from torch import Tensor, nn

from .sublayers import Encoder, Place, Sublayer


class Stop(Exception):
    """Ends a forward pass whose rest is not needed."""


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Puts a model in evaluation mode and every module back into the mode it was in."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


def first_input(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """The hidden states among the arguments of a module, by convention the first."""
    return args[0] if args else next(iter(kwargs.values()))


@contextmanager
def hooks(*handles: Any) -> Iterator[None]:
    """Removes the given hooks at the end."""
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class SublayerRecord:
    """What one forward pass showed of a sublayer.

    Attributes:
        residual: X, (rows, tokens, d): the residual stream that enters.
        features: A, (rows, tokens, features): the input of the output projection.
        output: Sub(X), (rows, tokens, d): the output of the output projection; not set where the pass stops before.
    """

    residual: Tensor
    features: Tensor
    output: Tensor


@contextmanager
def recorded(sublayer: Sublayer, until: Literal["features", "output"] | None = None) -> Iterator[SublayerRecord]:
    """Records a sublayer in the forward passes inside.

    Args:
        sublayer: the sublayer.
        until: where to stop the forward passes: before the output projection ("features"), after it ("output"), or
            not at all (None).
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
        if until == "output":
            raise Stop

    with hooks(
        sublayer.residual.register_forward_pre_hook(at_residual, with_kwargs=True),
        sublayer.output.register_forward_pre_hook(at_features),
        sublayer.output.register_forward_hook(at_output),
    ):
        yield record


@contextmanager
def recorded_states(encoder: Encoder, place: Place) -> Iterator[list[Tensor]]:
    """Records the hidden states that enter a place (not the first of all), and stops the forward passes there."""
    if not place.position:
        with recorded_output(encoder.blocks[place.layer - 1], stop=True) as outputs:
            yield outputs
        return
    with recorded_input(encoder.sublayer(place).residual) as inputs:
        yield inputs


@contextmanager
def recorded_input(module: nn.Module) -> Iterator[list[Tensor]]:
    """Records the hidden states that enter a module, and stops the forward passes there."""
    inputs: list[Tensor] = []

    def at_input(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        inputs.append(first_input(args, kwargs))
        raise Stop

    with hooks(module.register_forward_pre_hook(at_input, with_kwargs=True)):
        yield inputs


@contextmanager
def recorded_output(block: nn.Module, stop: bool = False) -> Iterator[list[Tensor]]:
    """Records the hidden states that leave a block, and stops the forward passes there if asked."""
    outputs: list[Tensor] = []

    def at_output(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        outputs.append(output)
        if stop:
            raise Stop

    with hooks(block.register_forward_hook(at_output)):
        yield outputs


@contextmanager
def observed_units(
    sublayers: list[Sublayer], on_features: Callable[[int, Tensor], None], on_gradients: Callable[[int, Tensor], None]
) -> Iterator[None]:
    """Shows the features of sublayers and the gradients of masks on them, in the backward pass.

    The gradient of the loss in a mask m on a feature, at m = 1, is the sum over tokens of feature x gradient of
    the feature, so that one backward pass gives it for every row, sublayer and feature. The lowest sublayer's
    features become leaves: the backward pass ends there.

    Args:
        sublayers: bottom to top.
        on_features: called with the index of a sublayer and its features, (rows, tokens, features).
        on_gradients: called with the index of a sublayer and the gradients, (rows, features).
    """

    def before_projection(index: int) -> Callable[..., tuple[Tensor, ...]]:
        def hook(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            features = args[0] if args[0].requires_grad else args[0].detach().requires_grad_()
            values = features.detach()

            # Features are shown here too: blocks that are run again in the backward pass must not show them twice.
            def at_gradient(gradient: Tensor) -> None:
                on_features(index, values)
                # Float32 times a narrower type is float32, so that the gradient need not be copied.
                on_gradients(index, (values.float() * gradient).sum(dim=1))

            features.register_hook(at_gradient)
            return (features, *args[1:])

        return hook

    with ExitStack() as stack:
        for index, sublayer in enumerate(sublayers):
            stack.enter_context(hooks(sublayer.output.register_forward_pre_hook(before_projection(index))))
        yield
