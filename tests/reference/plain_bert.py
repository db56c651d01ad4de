"""A tiny BERT written out in plain torch: its weights, texts for it and its forward pass, one sample at a time.

Sublayers are numbered from the bottom: attention is even, feed-forward is odd.
"""

import math
import random
from typing import NamedTuple

import torch
from torch.nn import functional

LAYERS, HIDDEN, HEADS, NEURONS, VOCABULARY, POSITIONS = 2, 16, 4, 32, 40, 16
HEAD_SIZE = HIDDEN // HEADS
SUBLAYERS = range(2 * LAYERS)
PAD, CLS, SEP = 0, 1, 2
OUTPUTS = {"classification": 3, "regression": 1, "question answering": 2}


class Sample(NamedTuple):
    """Token ids, padded to the width of the batch, and which of them are real, (tokens,) each."""

    ids: torch.Tensor
    real: torch.Tensor


# The model and its data: numbers of Python's generator, which are the same on every machine


def make_weights(task, seed=0):
    """The state dict of a transformers BERT, in float32."""
    shapes = {
        "bert.embeddings.word_embeddings.weight": (VOCABULARY, HIDDEN),
        "bert.embeddings.position_embeddings.weight": (POSITIONS, HIDDEN),
        "bert.embeddings.token_type_embeddings.weight": (2, HIDDEN),
        **_norm("bert.embeddings.LayerNorm"),
    }
    for layer in range(LAYERS):
        block = f"bert.encoder.layer.{layer}"
        for name in ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"):
            shapes |= _linear(f"{block}.{name}", HIDDEN, HIDDEN)
        shapes |= _norm(f"{block}.attention.output.LayerNorm") | _norm(f"{block}.output.LayerNorm")
        shapes |= _linear(f"{block}.intermediate.dense", NEURONS, HIDDEN)
        shapes |= _linear(f"{block}.output.dense", HIDDEN, NEURONS)
    if task == "question answering":
        shapes |= _linear("qa_outputs", OUTPUTS[task], HIDDEN)
    else:
        shapes |= _linear("bert.pooler.dense", HIDDEN, HIDDEN) | _linear("classifier", OUTPUTS[task], HIDDEN)
    return {name: _numbers(f"{seed} {name}", shape) for name, shape in shapes.items()}


def _linear(name, outputs, inputs):
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def _norm(name):
    return {f"{name}.weight": (HIDDEN,), f"{name}.bias": (HIDDEN,)}


def _numbers(name, shape):
    generator = random.Random(name)
    # A head of large weights, so that predictions count beside the sizes of features.
    largest = 4.0 if "classifier" in name or "qa_outputs" in name else 0.6
    values = [generator.uniform(-largest, largest) for _ in range(math.prod(shape))]
    return torch.tensor(values).view(shape) + ("LayerNorm.weight" in name)


def make_batches(count=4, size=8, seed=0):
    """Lists of samples of 3 to 12 tokens, padded to the longest of each list."""
    generator = random.Random(seed)
    lengths = [generator.randint(1, 10) for _ in range(count * size)]
    rows = [[CLS, *generator.choices(range(3, VOCABULARY), k=length), SEP] for length in lengths]
    return [batch_of(rows[start : start + size]) for start in range(0, len(rows), size)]


def batch_of(rows):
    """The samples of lists of token ids, padded to the longest of them."""
    width = max(map(len, rows))
    padded = [torch.tensor(row + [PAD] * (width - len(row))) for row in rows]
    return [Sample(ids, torch.arange(width) < len(row)) for ids, row in zip(padded, rows, strict=True)]


# The forward pass


def prefix(index):
    """Names of the output projection of a sublayer and of the norm after it."""
    block = f"bert.encoder.layer.{index // 2}."
    return block + ("output" if index % 2 else "attention.output")


def inputs_of(index):
    """Names of the input projections of a sublayer."""
    block = f"bert.encoder.layer.{index // 2}."
    return [block + name for name in (["intermediate.dense"] if index % 2 else _ATTENTION)]


_ATTENTION = ["attention.self.query", "attention.self.key", "attention.self.value"]


def unit_size(index):
    return 1 if index % 2 else HEAD_SIZE


def linear(weights, name, values):
    return values @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


def norm(weights, name, values):
    return functional.layer_norm(values, (HIDDEN,), weights[f"{name}.weight"], weights[f"{name}.bias"], 1e-12)


def embed(weights, sample):
    tables = [weights[f"bert.embeddings.{name}_embeddings.weight"] for name in ("word", "position", "token_type")]
    found = tables[0][sample.ids] + tables[1][: len(sample.ids)] + tables[2][0]
    return norm(weights, "bert.embeddings.LayerNorm", found)


def features_at(weights, index, hidden, sample):
    """What the output projection of a sublayer reads, (tokens, features)."""
    if index % 2:
        return functional.gelu(linear(weights, inputs_of(index)[0], hidden))
    query, key, value = (
        linear(weights, name, hidden).unflatten(1, (-1, HEAD_SIZE)).transpose(0, 1) for name in inputs_of(index)
    )
    attended = query @ key.transpose(1, 2) / HEAD_SIZE**0.5
    shares = attended.masked_fill(~sample.real, -math.inf).softmax(dim=2)
    return (shares @ value).transpose(0, 1).flatten(1)


def add(weights, index, hidden, features):
    """X + Sub(X), of the features of a sublayer."""
    return hidden + linear(weights, f"{prefix(index)}.dense", features)


def stream_after(weights, index, hidden, sample):
    """X + Sub(X), where a sublayer without units adds its bias."""
    if not weights[f"{prefix(index)}.dense.weight"].numel():
        return hidden + weights[f"{prefix(index)}.dense.bias"]
    return add(weights, index, hidden, features_at(weights, index, hidden, sample))


def after(weights, index, hidden, sample):
    """The hidden states that enter the next sublayer."""
    return norm(weights, f"{prefix(index)}.LayerNorm", stream_after(weights, index, hidden, sample))


def head(weights, hidden):
    """(distributions, classes): one of the classes or the value; over the tokens those of start and end."""
    if "qa_outputs.weight" in weights:
        return linear(weights, "qa_outputs", hidden).T
    return linear(weights, "classifier", linear(weights, "bert.pooler.dense", hidden[:1]).tanh())


def outputs_of(weights, sample):
    """What the model predicts, (distributions, classes)."""
    hidden = embed(weights, sample)
    for index in SUBLAYERS:
        hidden = after(weights, index, hidden, sample)
    return head(weights, hidden)


def real_tokens(sample):
    return int(sample.real.sum())
