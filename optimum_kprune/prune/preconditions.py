"""What is checked before a prune: the model, the settings, the amount of data."""

import inspect
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..calibration.prepare import CalibrationBatches
from ..calibration.spec import Batch, main_input
from ..configuration import KPruneConfig
from ..encoder.conversion import pruned_class
from ..encoder.hooks import hooks, recorded_output, states_in
from ..encoder.offloading import is_placed, named_tensors, require_known_hooks
from ..encoder.partial_forward import run
from ..encoder.sublayers import Encoder, has_decoder
from ..encoder.tasks import Task
from ..kprune_map import check_structure
from ..result import KPruneResult

logger = logging.getLogger(__name__)

# Calibration tokens per feature of the widest sublayer. With fewer, a fit follows the peculiarities of its tokens.
TOKENS_PER_FEATURE = 10


def require_prunable(encoder: Encoder) -> None:
    """Raises a ValueError if no folder could hold the pruned model, or its sublayers cannot be observed and cut."""
    model = encoder.pretrained
    # It raises the error of a class that has no pruned class.
    pruned_class(type(model))
    _require_built_by_config(type(model))
    if getattr(model.config, "chunk_size_feed_forward", 0):
        raise ValueError(
            "A model that computes its feed-forward sublayers in chunks cannot be observed. Load it with "
            "chunk_size_feed_forward=0."
        )
    if getattr(model, "hf_quantizer", None) is not None:
        raise ValueError(
            "Quantized weights cannot be pruned: heads and neurons are cut out of plain matrices. Load the checkpoint "
            "without a quantization config, and quantize the pruned model."
        )
    if not len(encoder.blocks):
        raise ValueError(f"The {type(model).__name__} has no layers, and nothing to prune. Start from a larger model.")
    require_known_hooks(encoder.model)
    if encoder.name and is_placed(encoder.model):
        raise ValueError(
            f"A {type(encoder.model).__name__} that accelerate placed cannot be pruned: only models of transformers "
            "can. Load it without a `device_map`, onto one device."
        )
    _require_weights(encoder.model)
    _require_plain_projections(encoder)
    # A pruned model was checked against its map when it was loaded; its units no longer fill the dense structure.
    if getattr(model.config, "kprune", None) is None:
        check_structure(model, encoder.adapter.to_dict())


def _require_built_by_config(model_class: type) -> None:
    """Raises a ValueError if a class needs more than its config: then no folder could build the model."""
    needed = [
        parameter.name
        for parameter in list(inspect.signature(model_class).parameters.values())[1:]
        if parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    ]
    if needed:
        raise ValueError(
            f"A {model_class.__name__} must be built from its config alone, as `from_pretrained` does. It needs "
            f"{', '.join(needed)} too: put that into the config; or prune the encoder that it holds, with "
            "`KPruner(model, encoder=...)`, the name of that submodule."
        )


def _require_weights(model: nn.Module) -> None:
    """Raises a ValueError if weights have no values: they are on the meta device, and no hook loads them."""
    for name, module in model.named_modules():
        is_offloaded = getattr(getattr(module, "_hf_hook", None), "offload", False)
        if not is_offloaded and any(parameter.is_meta for parameter in module.parameters(recurse=False)):
            raise ValueError(
                f"The weights of {name or 'the model'!r} are on the meta device: there are none. Load the model with "
                "`from_pretrained(...)`, outside of `torch.device('meta')`."
            )


def _require_plain_projections(encoder: Encoder) -> None:
    """Raises a ValueError if a projection that the adapter names is anything but a plain matrix."""
    for layer, block in enumerate(encoder.blocks):
        modules = dict(block.named_modules())
        for adapter in encoder.adapter.sublayers:
            # An earlier prune took all units of this sublayer: a `Constant` stands there, and nothing is cut.
            if getattr(modules.get(adapter.output), "in_features", None) == 0:
                continue
            for name in (*adapter.inputs, adapter.output):
                module = modules.get(name)
                weight = getattr(module, "weight", None)
                # Exactly these types: subclasses and parametrizations compute the weight from something else.
                plain = type(module) is nn.Linear and type(weight) is nn.Parameter and weight.is_floating_point()
                if not plain:
                    weights = f" with a weight of {_type_name(weight)}" if isinstance(weight, Tensor) else ""
                    raise ValueError(
                        f"The projection {name!r} of layer {layer} must be a plain `nn.Linear`, out of which heads "
                        f"and neurons are cut. Got {_type_name(module)}{weights}. Prune first; quantize, parametrize "
                        "or replace layers of the pruned model."
                    )


def _type_name(value: object) -> str:
    """Returns the type of a module or tensor in words, for a message."""
    kind = f"{type(value).__module__}.{type(value).__qualname__}" if value is not None else "no such module"
    return f"{kind} of {value.dtype}" if isinstance(value, Tensor) else kind


def require_comparable(encoder: Encoder, task: Task, calibration: CalibrationBatches) -> None:
    """Checks that predictions of a model can be compared, by running it on a sample of the shortest and longest batch.

    Args:
        encoder: a student, whose own weights take no gradient.
        task: what is to be preserved.
        calibration: the calibration data.

    Raises:
        ValueError: if the model does not run its encoder once over all tokens; if its prediction does not depend on
            the last hidden states; or if it gives one value per token without a dimension of its own.
    """
    shapes: dict[int, tuple[int, ...]] = {}
    for batch in (min(calibration.batches, key=_width), max(calibration.batches, key=_width)):
        first = {name: values[:1] for name, values in batch.items()}
        sample, mask = encoder.to_device(first), calibration.mask(first).to(encoder.device)
        with torch.enable_grad(), recorded_output(encoder.blocks[0]) as states, _leaving_a_leaf(encoder.blocks[-1]):
            prediction = task.predict(run(encoder, sample), encoder.config, mask)
        seen = [tuple(state.shape[:2]) for state in states]
        if seen != [tuple(mask.shape)]:
            raise ValueError(
                "The forward of the model must run its encoder once, on the rows and tokens of "
                f"`{next(iter(batch))}`. Got {tuple(mask.shape)} rows and tokens, and the encoder was run on "
                f"{' and '.join(map(str, seen)) or 'nothing'}. Prune the encoder in a module with such a forward."
            )
        # No weight takes a gradient: one can only come from the leaf after the last block.
        if not prediction.values.requires_grad:
            raise ValueError(
                "The prediction must be differentiable in the hidden states after the last block. Got one that does "
                "not depend on them: the head reads something else; or `forward` or `prediction` detaches them, takes "
                "an `argmax`, or runs under `torch.no_grad()`."
            )
        shapes[mask.shape[1]] = tuple(prediction.values.shape[1:])
    # Seen at two lengths, because classes can happen to be as many as the tokens of one sample.
    if len(shapes) > 1 and all(shape == (1, tokens) for tokens, shape in shapes.items()):
        raise ValueError(
            "The logits must be of the shape (samples, classes) or (samples, tokens, classes). Got as many columns as "
            "there are tokens, for every sample: one value per token. Give them a dimension of their own, as in "
            "`prediction=lambda outputs: outputs.logits[..., None]`."
        )


@contextmanager
def _leaving_a_leaf(block: nn.Module) -> Iterator[None]:
    """Makes the output of a block a leaf: gradients flow back into it, and no further."""

    def at_output(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        # A copy of the leaf, because a head may write into what it reads, and PyTorch forbids that for a leaf.
        leaf = states_in(output).detach().requires_grad_().clone()
        return (leaf, *output[1:]) if isinstance(output, tuple) else leaf

    with hooks(block.register_forward_hook(at_output)):
        yield


def _width(batch: Batch) -> int:
    return main_input(batch).shape[-1]


def require_finite_weights(model: nn.Module) -> None:
    """Raises a ValueError that names the weights that are not finite."""
    # Parameters only: buffers may hold infinities, with which a model masks.
    names = {name for name, _ in model.named_parameters()}
    broken = [name for name, weight in named_tensors(model) if name in names and not weight.isfinite().all()]
    if broken:
        raise ValueError(
            f"The model has weights that are not finite: {', '.join(broken)}. Load an intact checkpoint, in a type "
            "that is wide enough."
        )


def check_config(config: KPruneConfig) -> None:
    """Raises a ValueError if this is no `KPruneConfig`, or one of its settings is out of range."""
    if not isinstance(config, KPruneConfig):
        raise ValueError(f"`config` must be a KPruneConfig. Got {type(config).__name__} instead.")
    config.check()


def require_recovery(config: KPruneConfig, recovery_dataset: Any) -> None:
    """Raises a ValueError if there is data to recover on, and the settings ask for no recovery."""
    if recovery_dataset is not None and not config.recovery_tokens:
        raise ValueError(
            "`recovery_dataset` is for a recovery, and `recovery_tokens` is 0. Set it to the number of tokens to "
            "learn from, such as 1000000, or leave out the data."
        )


def require_recoverable(encoder: Encoder, is_held_out: bool) -> None:
    """Raises a ValueError if a student cannot learn from a model after the prune.

    Args:
        encoder: the model.
        is_held_out: whether calibration data is held out.
    """
    if getattr(encoder.config, "kprune", None) is not None:
        raise ValueError(
            "A recovery needs the dense model as the teacher. Got one that is pruned already, and a pruned folder "
            "does not hold the dense one. Prune the dense model with `recovery_tokens`, or leave them out."
        )
    if not is_held_out:
        raise ValueError(
            "A recovery needs calibration data that is held out: by it, the weights are chosen that are kept. Got "
            "none. Set `heldout_share` above 0, and give more data where it has too few samples; or leave out "
            "`recovery_tokens`."
        )


def warn_if_nothing_is_left(result: KPruneResult) -> None:
    """Warns if a prune took every head and every neuron."""
    if not result.flops_after:
        logger.warning(
            "All heads and all neurons were removed: no token sees another any more, and nothing can be computed from "
            "the text but averages. Choose a lower `compression_rate`, or a larger `budget`."
        )


def warn_if_decoder_stays(encoder: Encoder) -> None:
    """Warns if the model has a decoder, which is not pruned and not counted."""
    if has_decoder(encoder.pretrained):
        logger.warning(
            f"A {type(encoder.pretrained).__name__} has a decoder, which stays as it is: only the encoder is pruned, "
            "and `compression_rate` is a share of the FLOPs of its heads and neurons."
        )


def warn_if_few_tokens(encoder: Encoder, calibration: CalibrationBatches) -> None:
    """Warns if there are few calibration tokens for the number of features that the widest sublayer fits."""
    widest, tokens = max(sublayer.features for sublayer in encoder.sublayers()), calibration.tokens
    unit = calibration.summary.tokens_are if calibration.summary else "tokens"
    if tokens >= TOKENS_PER_FEATURE * widest:
        return
    consequence = "the fit is loose: more data makes a better model"
    if tokens < widest:
        consequence = "nothing but the pull towards the model's own weights determines the fit: expect a poor model"
    logger.warning(
        f"The calibration data has {tokens:,} {unit}, but the widest sublayer has {widest:,} features to "
        f"fit, so that {consequence}. Use more calibration data: {TOKENS_PER_FEATURE * widest:,} {unit} or more."
    )
