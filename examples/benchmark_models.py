"""What the benchmark prunes: models and calibration data made without any download, and their FLOPs."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoConfig, AutoModelForSequenceClassification, BertConfig, PreTrainedConfig, PreTrainedModel

from optimum_kprune import KPruner
from optimum_kprune.encoder.config_field import adapter_of
from optimum_kprune.encoder.hooks import evaluating, hooks
from optimum_kprune.encoder.sublayers import Encoder

# Layers, width, heads; a neuron layer is four times as wide.
SIZES = {"small": (6, 384, 12), "base": (12, 768, 12), "large": (24, 1024, 16)}
# Shortest and longest text in tokens, and the two exponents of the beta distribution between them: mean 25 and 170.
LENGTHS = {"sst2": (5, 60, 2.0, 3.5), "squad": (100, 384, 2.0, 6.1)}


def model_config(name: str) -> PreTrainedConfig:
    """Returns the config of a size, or of a checkpoint in a local folder.

    Raises:
        ValueError: if there is neither.
    """
    if name in SIZES:
        layers, width, heads = SIZES[name]
        return BertConfig(
            num_hidden_layers=layers, hidden_size=width, num_attention_heads=heads, intermediate_size=4 * width
        )
    if not (Path(name) / "config.json").is_file():
        raise ValueError(f"--model must be {', '.join(SIZES)} or the folder of a checkpoint. Got {name!r} instead.")
    return AutoConfig.from_pretrained(name)


def resized(config: PreTrainedConfig, layers: int | None = None, width: int | None = None) -> PreTrainedConfig:
    """Returns a config with other layers or another width: as many heads and neurons per dimension as before.

    Raises:
        ValueError: if the width is no multiple of the dimension of a head.
    """
    config = type(config).from_dict(config.to_dict())
    config.num_hidden_layers = layers or config.num_hidden_layers
    if width:
        head = config.hidden_size // config.num_attention_heads
        if width % head:
            raise ValueError(f"--widths must be multiples of {head}, the dimension of a head. Got {width} instead.")
        neurons = "hidden_dim" if config.model_type == "distilbert" else "intermediate_size"
        setattr(config, neurons, getattr(config, neurons) * width // config.hidden_size)
        config.hidden_size, config.num_attention_heads = width, width // head
    return config


def load(model: PreTrainedConfig | str, seed: int) -> KPruner:
    """Returns a pruner of the checkpoint in a folder, or of a classifier with random weights if given a config."""
    if isinstance(model, str):
        pruner = KPruner.from_pretrained(model)
    else:
        torch.manual_seed(seed)
        pruner = KPruner(AutoModelForSequenceClassification.from_config(model))
    pruner.teacher.eval()
    return pruner


def save(model: PreTrainedConfig | str, seed: int, folder: str) -> str:
    """Saves a model with random weights; returns the folder of the checkpoint, which may have been one before."""
    if isinstance(model, str):
        return model
    load(model, seed).teacher.save_pretrained(folder)
    return folder


def load_offloaded(path: str, offload_folder: str) -> KPruner:
    """Returns a pruner of the checkpoint in a folder; accelerate leaves its weights on disk between their uses."""
    return KPruner.from_pretrained(path, device_map={"": "disk"}, offload_folder=offload_folder)


@torch.no_grad()
def make_uneven(model: PreTrainedModel, seed: int) -> None:
    """Scales what the units of a model with random weights add, so that a prune leaves uneven shapes.

    Random units all know alike: a prune would keep about as many of each sublayer, which no real model does. Their
    columns of the output projection get factors here that differ widely between units, and less between sublayers.
    """
    generator = np.random.default_rng(seed)
    for sublayer in Encoder(model, adapter_of(model)).sublayers():
        factors = generator.lognormal(0.0, 0.5) * generator.lognormal(0.0, 1.0, sublayer.units)
        columns = torch.from_numpy(factors.repeat(sublayer.unit_size))
        sublayer.output.weight *= columns.to(sublayer.output.weight)


def draw_lengths(kind: str, num_tokens: int, longest: int, seed: int) -> list[int]:
    """Draws lengths of texts that sum up to `num_tokens`; in a mixture, half of the tokens are of either kind.

    Args:
        kind: a key of `LENGTHS`, or `"mixed"`.
        num_tokens: sum of the lengths; the last text is cut to meet it.
        longest: limit of the model, to which longer texts are cut.
        seed: seed of the draw.
    """
    if kind == "mixed":
        half = num_tokens // 2
        return [
            *(draw_lengths("sst2", half, longest, seed) if half else []),
            *draw_lengths("squad", num_tokens - half, longest, seed),
        ]
    low, high, *exponents = LENGTHS[kind]
    shares = np.random.default_rng(seed).beta(*exponents, size=num_tokens // min(low, longest) + 1)
    lengths = np.minimum(np.rint(low + (high - low) * shares).astype(int), longest)
    ends = lengths.cumsum()
    count = int(np.searchsorted(ends, num_tokens)) + 1
    return [*lengths[: count - 1].tolist(), int(lengths[count - 1] - ends[count - 1] + num_tokens)]


def calibration_rows(config: PreTrainedConfig, kind: str, num_tokens: int, seed: int) -> Dataset:
    """Draws texts of random tokens for a model."""
    # Positions of the RoBERTa family start at 2.
    longest = getattr(config, "max_position_embeddings", 512) - 2
    generator = np.random.default_rng(seed)
    lengths = draw_lengths(kind, num_tokens, longest, seed)
    return Dataset.from_dict({"input_ids": [generator.integers(config.vocab_size, size=n) for n in lengths]})


def collate(samples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Pads samples on the right."""
    ids = [torch.tensor(sample["input_ids"]) for sample in samples]
    masks = [torch.ones_like(row) for row in ids]
    return {"input_ids": pad_sequence(ids, True), "attention_mask": pad_sequence(masks, True)}


def count_flops(model: PreTrainedModel, length: int) -> float:
    """Returns the FLOPs of a model on one sequence of that many tokens, at 2 per multiply-accumulate.

    What counts: the units that the model has, with what `KPruneResult` counts for them, at this length (projections
    of heads and neurons, and the products of attention); and all linear layers outside the blocks (pooler, head,
    projections of embeddings), each on as many tokens as it really gets. What does not: looking up embeddings, and
    all that is no product of matrices (biases, sums, norms, activations, softmax).
    """
    encoder = Encoder(model, adapter_of(model))
    flops = sum(sublayer.units * sublayer.unit_flops(length) for sublayer in encoder.sublayers())

    def add(module: nn.Linear, args: Any, output: torch.Tensor) -> None:
        nonlocal flops
        flops += 2 * module.in_features * output.numel()

    inside = {module for block in encoder.blocks for module in block.modules()}
    outside = [module for module in model.modules() if isinstance(module, nn.Linear) and module not in inside]
    handles = [module.register_forward_hook(add) for module in outside]
    with hooks(*handles), evaluating(model), torch.inference_mode():
        model(input_ids=torch.zeros(1, length, dtype=torch.long, device=model.device))
    return flops
