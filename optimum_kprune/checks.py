"""What is checked before a prune: the model, the settings, the amount of data."""

import copy
import logging
from collections.abc import Iterable

from torch import nn
from transformers import PreTrainedModel

from .configuration import KPruneConfig
from .frontier import Frontier
from .modeling_kprune import pruned_class
from .placement import named_tensors, require_known_hooks
from .report import KPruneResult

logger = logging.getLogger(__name__)

# Of calibration data, per feature of the widest sublayer: with fewer, a fit follows what is peculiar to them.
TOKENS_PER_FEATURE = 10


def require_prunable(model: PreTrainedModel) -> None:
    """Raises a ValueError if no folder could hold the pruned model, or its sublayers cannot be observed."""
    try:
        pruned_class(type(model))
    except AttributeError as error:
        raise ValueError(
            f"The class {type(model).__name__} is not one that transformers loads for a task of encoders, so that no "
            "folder could load its pruned model again. Load the checkpoint with an Auto class."
        ) from error
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
    require_known_hooks(model)


def require_finite_weights(model: PreTrainedModel) -> None:
    """Raises a ValueError that names the weights that are not finite."""
    weights = ((name, tensor) for name, tensor in named_tensors(model) if isinstance(tensor, nn.Parameter))
    broken = [name for name, weight in weights if not weight.isfinite().all()]
    if broken:
        raise ValueError(
            f"The model has weights that are not finite: {', '.join(broken)}. Load an intact checkpoint, in a type "
            "that is wide enough."
        )


def check_config(config: KPruneConfig) -> None:
    """Raises a ValueError if these are no settings, or one of them is out of its range."""
    if not isinstance(config, KPruneConfig):
        raise ValueError(f"`config` must be a KPruneConfig. Got {type(config).__name__} instead.")
    config.check()


def configs_of(rates: Iterable[float], config: KPruneConfig) -> list[KPruneConfig]:
    """Returns the settings with each of the rates; raises a ValueError if one is out of range or given twice."""
    check_config(config)
    given = list(rates) if isinstance(rates, Iterable) and not isinstance(rates, str) else rates
    if not isinstance(given, list) or not given:
        raise ValueError(f"`rates` must be a list of compression rates, such as [0.4, 0.6]. Got {given!r} instead.")
    configs = []
    for rate in given:
        configs.append(copy.copy(config))
        configs[-1].compression_rate = rate
        configs[-1].check()
    if len(set(given)) < len(given):
        raise ValueError(f"`rates` must hold every rate once. Got {given!r} instead.")
    return configs


def warn_if_nothing_is_left(result: KPruneResult) -> None:
    """Warns if a prune took every head and every neuron."""
    if not result.flops_after:
        logger.warning(
            "All heads and all neurons were removed: no token sees another any more, and nothing can be computed from "
            "the text but averages. Choose a lower `compression_rate`."
        )


def warn_if_few_tokens(frontier: Frontier) -> None:
    """Warns if there are few tokens for the features to fit in the widest sublayer, or even fewer than features."""
    widest = max(sublayer.features for sublayer in frontier.teacher.sublayers())
    if frontier.tokens >= TOKENS_PER_FEATURE * widest:
        return
    consequence = "the fit is loose: more text makes a better model"
    if frontier.tokens < widest:
        consequence = "nothing but the pull towards the model's own weights determines the fit: expect a poor model"
    logger.warning(
        f"The calibration data has {frontier.tokens} tokens, but the widest sublayer has {widest} features to fit, so "
        f"that {consequence}. Use more calibration data: {TOKENS_PER_FEATURE * widest:,} tokens or more."
    )
