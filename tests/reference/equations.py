"""K-prune by its equations alone, on a tiny BERT: plain torch in float64, one sample at a time.

It shares no code with the library, which the tests hold to it. Nothing is clever here: the forward pass is written
out, every mask is a leaf of autograd, the threshold is found by bisection, and the fits are solved by `lstsq` on all
tokens at once. Sublayers are numbered from the bottom: attention is even, feed-forward is odd.
"""

import math
import random
import zlib
from typing import NamedTuple

import torch
from torch.nn import functional

LAYERS, HIDDEN, HEADS, NEURONS, VOCABULARY, POSITIONS = 2, 16, 4, 32, 40, 16
HEAD_SIZE = HIDDEN // HEADS
SUBLAYERS = range(2 * LAYERS)
PAD, CLS, SEP = 0, 1, 2
OUTPUTS = {"classification": 3, "regression": 1, "question answering": 2}

DEFAULT = {
    "compression_rate": 0.5,
    "temperature": 2.0,
    "knowledge": "fisher",
    "lambda_rep": 0.1,
    "mu": HEAD_SIZE,
    "head_weight": 3.0,
    "gradient": "sample",
    "measure_every": 1,
    "sequence_length": None,
    "neuron_multiple": 8,
    "tuning": True,
    "ridge": 0.01,
    "token_weights": "scale",
    "correct_inputs": True,
    "bias": "refit",
    "published_targets": False,
    "seed": 0,
}
PAPER = DEFAULT | {
    "knowledge": "divergence",
    "lambda_rep": 2.5e-4,
    "head_weight": 1.0,
    "gradient": "batch",
    "neuron_multiple": 1,
    "ridge": 0.0,
    "token_weights": "equal",
    "correct_inputs": False,
    "bias": "drop",
    "published_targets": True,
}


class Sample(NamedTuple):
    """Token ids, padded to the width of the batch, and which of them are real, (tokens,) each."""

    ids: torch.Tensor
    real: torch.Tensor


class Pruned(NamedTuple):
    """Kept units by sublayer, the weights, and the least relative gap between a kept score and one that is not."""

    kept: list[list[int]]
    weights: dict[str, torch.Tensor]
    margin: float


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
    values = [generator.uniform(-0.6, 0.6) for _ in range(math.prod(shape))]
    return torch.tensor(values).view(shape) + ("LayerNorm.weight" in name)


def make_batches(count=4, size=8, seed=0):
    """Lists of samples of 3 to 12 tokens, padded to the longest of each list."""
    generator = random.Random(seed)
    rows = [
        [CLS, *generator.choices(range(3, VOCABULARY), k=generator.randint(1, 10)), SEP] for _ in range(count * size)
    ]
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
    return norm(
        weights, "bert.embeddings.LayerNorm", tables[0][sample.ids] + tables[1][: len(sample.ids)] + tables[2][0]
    )


def features_of(weights, index, hidden, real):
    """What the output projection of a sublayer reads, (tokens, features)."""
    if index % 2:
        return functional.gelu(linear(weights, inputs_of(index)[0], hidden))
    query, key, value = (
        linear(weights, name, hidden).unflatten(1, (-1, HEAD_SIZE)).transpose(0, 1) for name in inputs_of(index)
    )
    attended = query @ key.transpose(1, 2) / HEAD_SIZE**0.5
    shares = attended.masked_fill(~real, -math.inf).softmax(dim=2)
    return (shares @ value).transpose(0, 1).flatten(1)


def add(weights, index, hidden, features):
    """X + Sub(X)."""
    return hidden + linear(weights, f"{prefix(index)}.dense", features)


def after(weights, index, hidden, real):
    """The hidden states that enter the next sublayer."""
    if not weights[f"{prefix(index)}.dense.weight"].numel():
        stream = hidden + weights[f"{prefix(index)}.dense.bias"]
    else:
        stream = add(weights, index, hidden, features_of(weights, index, hidden, real))
    return norm(weights, f"{prefix(index)}.LayerNorm", stream)


def head(weights, hidden):
    """(distributions, classes): one of the classes or the value; over the tokens those of start and end."""
    if "qa_outputs.weight" in weights:
        return linear(weights, "qa_outputs", hidden).T
    return linear(weights, "classifier", linear(weights, "bert.pooler.dense", hidden[:1]).tanh())


def outputs_of(weights, sample):
    """What the model predicts, (distributions, classes)."""
    hidden = embed(weights, sample)
    for index in SUBLAYERS:
        hidden = after(weights, index, hidden, sample.real)
    return head(weights, hidden)


# Knowledge


def lost(teacher, student, batch, row, settings):
    """K_pred of one sample of a batch, or the probe whose squared gradients are its curvature.

    Args:
        teacher: what the teacher predicts for every sample of the batch.
        student: what the student predicts for the sample.
        batch: the samples.
        row: which of them.
        settings: the settings.
    """
    sample, target, gamma = batch[row], teacher[row], settings["temperature"]
    if student.shape[1] == len(sample.ids) and not settings["published_targets"]:
        student, target = student[:, sample.real], target[:, sample.real]
    weight = 1 / len(student)
    if settings["knowledge"] == "fisher":
        signs = draw_signs(sample, student.shape, settings["seed"])
        if student.shape == (1, 1):
            return 2**0.5 * (signs * student).sum()
        likely = (target / gamma).softmax(dim=1)
        root = likely.sqrt() * signs
        return weight**0.5 * ((root - likely * root.sum(dim=1, keepdim=True)) * student).sum()
    if student.shape == (1, 1):
        others = torch.stack(teacher) if settings["published_targets"] else target
        return (others - student).square().mean()
    before, now = (target / gamma).log_softmax(dim=1), (student / gamma).log_softmax(dim=1)
    return weight * gamma**2 * (before.exp() * (before - now)).sum()


def draw_signs(sample, shape, seed):
    """+1 or -1, drawn from a seed and the tokens of a sample."""
    content = zlib.crc32(sample.ids[sample.real].numpy().tobytes(), seed)
    drawn = torch.randint(2, (math.prod(shape),), generator=torch.Generator().manual_seed(content))
    return (2.0 * drawn - 1).double().view(shape)


def measure(student, first, batches, states, teacher, settings):
    """Scores without the FLOPs: K_pred + lambda K_rep of every unit of the sublayers from the first upward."""
    squares = {index: 0.0 for index in SUBLAYERS[first:]}
    strengths = {index: 0.0 for index in SUBLAYERS[first:]}
    for number, batch in enumerate(batches):
        gradients = []
        for row, sample in enumerate(batch):
            masks = {index: torch.ones(width_of(student, index), dtype=torch.float64) for index in SUBLAYERS[first:]}
            hidden = states[number][row]
            for index, mask in masks.items():
                features = features_of(student, index, hidden, sample.real)
                strengths[index] += features[sample.real].square().sum(dim=0).detach()
                stream = add(student, index, hidden, mask.requires_grad_() * features)
                hidden = norm(student, f"{prefix(index)}.LayerNorm", stream)
            loss = lost(teacher[number], head(student, hidden), batch, row, settings)
            gradients.append(torch.autograd.grad(loss, list(masks.values())))
        for index, found in zip(squares, zip(*gradients, strict=True), strict=True):
            found = torch.stack(found)
            found = found.mean(dim=0, keepdim=True) if settings["gradient"] == "batch" else found
            squares[index] += found.square().sum(dim=0)
    samples, tokens = (
        sum(map(count, (s for batch in batches for s in batch))) for count in (lambda s: 1, real_tokens)
    )
    scores = {}
    for index in squares:
        weight = student[f"{prefix(index)}.dense.weight"]
        rep = strengths[index] * weight.square().sum(dim=0) / (tokens * HIDDEN)
        knowledge = squares[index] / (2 * samples) + settings["lambda_rep"] * rep
        scores[index] = knowledge.view(-1, unit_size(index)).mean(dim=1)
    return scores


def width_of(weights, index):
    return weights[f"{prefix(index)}.dense.weight"].shape[1]


def real_tokens(sample):
    return int(sample.real.sum())


# Search


def unit_flops(index, length):
    if index % 2:
        return 4 * length * HIDDEN
    return 8 * length * HIDDEN * HEAD_SIZE + 4 * length**2 * HEAD_SIZE


def threshold(scores, costs, budget):
    """The smallest threshold above which the units cost no more than the budget, by bisection."""
    low, high = -1.0, float(scores.max())
    while True:
        middle = (low + high) / 2
        if middle in (low, high):
            return high
        fits = float(costs[scores > middle].sum()) <= budget
        low, high = (low, middle) if fits else (middle, high)


def select(scores, index, length, budget, settings):
    """The units of the lowest sublayer to keep, and the gap at which that was decided."""
    factors = {other: 1.0 if other % 2 else settings["mu"] * settings["head_weight"] for other in scores}
    scores = {other: values * factors[other] / unit_flops(other, length) for other, values in scores.items()}
    above = [other for other in scores if other >= index]
    pool = torch.cat([scores[other] for other in above])
    costs = torch.cat([torch.full_like(scores[other], unit_flops(other, length)) for other in above])
    nu = threshold(pool, costs, budget)
    own, count = scores[index], int((scores[index] > nu).sum())
    gaps = [gap_of(pool, int((pool > nu).sum()))]
    if index % 2 and settings["neuron_multiple"] > 1:
        most = budget / unit_flops(index, length)
        allowed = [n for n in {*range(0, NEURONS, settings["neuron_multiple"]), NEURONS} if n <= most]
        count = min(sorted(allowed), key=lambda n: abs(n - count))
        gaps.append(gap_of(own, count))
    return sorted(own.argsort(descending=True)[:count].tolist()), min(gaps)


def gap_of(scores, count):
    """How far apart the last score that is taken and the first that is not are, relative to each other."""
    ordered = scores.sort(descending=True).values
    return 1.0 if count in (0, len(ordered)) else float(1 - ordered[count] / ordered[count - 1])


# Fits


def solve(features, target, start, ridge, fit_bias, weights=None):
    """W, b = argmin ||D^(1/2) (Y - A W - 1 b)||^2 + rho mean(diag(A^T D A)) ||W - W0||^2, and least ||W - W0||^2.

    Args:
        features: A, (tokens, features).
        target: Y, (tokens, d).
        start: W0 and b0.
        ridge: rho.
        fit_bias: whether b is free, so that A and Y are centred, or stays b0.
        weights: the diagonal of D, (tokens,); None is 1.
    """
    weights = torch.ones(len(features), 1).double() if weights is None else weights[:, None]
    middles = torch.zeros(features.shape[1]).double(), start[1]
    if fit_bias:
        middles = tuple((weights * values).sum(dim=0) / weights.sum() for values in (features, target))
    rows, right = weights.sqrt() * (features - middles[0]), weights.sqrt() * (target - middles[1])
    change = torch.zeros_like(start[0])
    if features.shape[1]:
        pull = ridge * (weights * features.square()).sum(dim=0).mean()
        rows = torch.cat([rows, pull.sqrt() * torch.eye(features.shape[1]).double()])
        right = functional.pad(right - rows[: len(right)] @ start[0], (0, 0, 0, features.shape[1]))
        change = torch.linalg.lstsq(rows, right, driver="gelsd").solution
    weight = start[0] + change
    return weight, middles[1] - middles[0] @ weight


def correct(student, index, batches, teacher_states, student_states, settings):
    """Folds the affine map from what the student's sublayer reads to what the teacher's reads into its projections."""
    read, wanted = (real_rows(states, batches) for states in (student_states, teacher_states))
    identity = torch.eye(HIDDEN).double(), torch.zeros(HIDDEN).double()
    weight, bias = solve(read, wanted, identity, settings["ridge"], True)
    for name in inputs_of(index):
        student[f"{name}.bias"] = student[f"{name}.bias"] + student[f"{name}.weight"] @ bias
        student[f"{name}.weight"] = student[f"{name}.weight"] @ weight.T


def tune(student, index, batches, kept, streams, states, settings):
    """Refits the output projection; `streams` are X_teacher + Sub_teacher(X_teacher)."""
    name = f"{prefix(index)}.dense"
    wanted, hidden = real_rows(streams, batches), real_rows(states, batches)
    start = student[f"{name}.weight"].T, student[f"{name}.bias"]
    if settings["bias"] == "drop" and not kept:
        start = start[0], torch.zeros(HIDDEN).double()
    if settings["tuning"]:
        found = [
            [features_of(student, index, state, sample.real) for state, sample in zip(*pair, strict=True)]
            for pair in zip(states, batches, strict=True)
        ]
        features = real_rows(found, batches) if kept else hidden[:, :0]
        weights = 1 / (wanted.var(dim=1, correction=0) + 1e-5) if settings["token_weights"] == "scale" else None
        start = solve(features, wanted - hidden, start, settings["ridge"], settings["bias"] == "refit", weights)
    student[f"{name}.weight"], student[f"{name}.bias"] = start[0].T, start[1]


def real_rows(states, batches):
    """What belongs to the real tokens of all samples, one after the other."""
    pairs = zip(states, batches, strict=True)
    return torch.cat([state[sample.real] for pair in pairs for state, sample in zip(*pair, strict=True)])


# The loop


@torch.no_grad()
def prune(weights, batches, settings, measured=None):
    """Prunes a model.

    Args:
        weights: its state dict.
        batches: lists of samples.
        settings: as in `DEFAULT`.
        measured: numbers of the batches on which knowledge is measured; None takes all.
    """
    teacher = {name: values.double() for name, values in weights.items()}
    student, kept, gaps = dict(teacher), [], []
    outputs = [[outputs_of(teacher, sample) for sample in batch] for batch in batches]
    before = now = [[embed(teacher, sample) for sample in batch] for batch in batches]
    samples = [sample for batch in batches for sample in batch]
    length = settings["sequence_length"] or max(1, round(sum(map(real_tokens, samples)) / len(samples)))
    total = LAYERS * (HEADS * unit_flops(0, length) + NEURONS * unit_flops(1, length))
    budget = total - math.ceil(settings["compression_rate"] * total)
    measured = range(len(batches)) if measured is None else measured
    for index in SUBLAYERS:
        if index and settings["tuning"] and settings["correct_inputs"]:
            correct(student, index, batches, before, now, settings)
        if index % settings["measure_every"] == 0:
            chosen = [[values[number] for number in measured] for values in (batches, now, outputs)]
            with torch.enable_grad():
                scores = measure(student, index, *chosen, settings)
        units, gap = select(scores, index, length, budget, settings)
        kept, gaps, budget = [*kept, units], [*gaps, gap], budget - len(units) * unit_flops(index, length)
        cut(student, index, units)
        streams = [
            [
                add(teacher, index, state, features_of(teacher, index, state, s.real))
                for state, s in zip(*p, strict=True)
            ]
            for p in zip(before, batches, strict=True)
        ]
        tune(student, index, batches, units, streams, now, settings)
        before, now = (
            [
                [after(model, index, state, s.real) for state, s in zip(*p, strict=True)]
                for p in zip(states, batches, strict=True)
            ]
            for model, states in ((teacher, before), (student, now))
        )
    return Pruned(kept, student, min(gaps))


def cut(student, index, units):
    """Removes the units that are not kept."""
    rows = [unit * unit_size(index) + row for unit in units for row in range(unit_size(index))]
    for name in inputs_of(index):
        for part in ("weight", "bias"):
            student[f"{name}.{part}"] = student[f"{name}.{part}"][rows]
    name = f"{prefix(index)}.dense.weight"
    student[name] = student[name][:, rows]
