"""K-prune by its equations alone, on the BERT of `plain_bert`: plain torch in float64, one sample at a time.

It shares no code with the library, which the tests hold to it. Nothing is clever here: every mask is a leaf of
autograd, the threshold is found by bisection, and the fits are solved by `lstsq` on all tokens at once.
"""

import math
import zlib
from functools import partial
from typing import NamedTuple

import torch
from plain_bert import (
    HEAD_SIZE,
    HEADS,
    HIDDEN,
    LAYERS,
    NEURONS,
    SUBLAYERS,
    add,
    after,
    embed,
    features_at,
    head,
    inputs_of,
    norm,
    outputs_of,
    prefix,
    real_tokens,
    stream_after,
    unit_size,
)
from torch.nn import functional

DEFAULT = {
    "compression_rate": 0.5,
    "temperature": 2.0,
    "knowledge": "fisher",
    "lambda_rep": 0.1,
    "mu": HEAD_SIZE,
    "head_weight": 2.0,
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


class Pruned(NamedTuple):
    """Kept units by sublayer, the weights, and the least relative gap between a kept score and one that is not."""

    kept: list[list[int]]
    weights: dict[str, torch.Tensor]
    margin: float


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
    spans = len(student) == 2
    if spans and not settings["published_targets"]:
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


@torch.enable_grad()
def measure(student, first, batches, states, teacher, settings):
    """K_pred + lambda K_rep of every unit of the sublayers from the first upward."""
    squares = dict.fromkeys(SUBLAYERS[first:], 0.0)
    strengths = dict.fromkeys(SUBLAYERS[first:], 0.0)
    for batch, hidden, outputs in zip(batches, states, teacher, strict=True):
        gradients = []
        for row, sample in enumerate(batch):
            masks, features, prediction = masked(student, first, hidden[row], sample)
            for index in features:
                strengths[index] += features[index][sample.real].square().sum(dim=0).detach()
            loss = lost(outputs, prediction, batch, row, settings)
            gradients.append(torch.autograd.grad(loss, list(masks.values())))
        for index, found in zip(squares, map(torch.stack, zip(*gradients, strict=True)), strict=True):
            found = found.mean(dim=0, keepdim=True) if settings["gradient"] == "batch" else found
            squares[index] += found.square().sum(dim=0)
    samples = [sample for batch in batches for sample in batch]
    scores = {}
    for index in squares:
        rows = student[f"{prefix(index)}.dense.weight"].square().sum(dim=0)
        predictive = squares[index] / (2 * len(samples))
        representational = strengths[index] * rows / (sum(map(real_tokens, samples)) * HIDDEN)
        knowledge = predictive + settings["lambda_rep"] * representational
        scores[index] = knowledge.view(-1, unit_size(index)).mean(dim=1)
    return scores


def masked(student, first, hidden, sample):
    """Masks of 1 and features by sublayer, from the first upward, and what the student predicts with them."""
    masks, features = {}, {}
    for index in SUBLAYERS[first:]:
        features[index] = features_at(student, index, hidden, sample)
        masks[index] = torch.ones(features[index].shape[1], dtype=torch.float64, requires_grad=True)
        stream = add(student, index, hidden, masks[index] * features[index])
        hidden = norm(student, f"{prefix(index)}.LayerNorm", stream)
    return masks, features, head(student, hidden)


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
        found = for_each(partial(features_at, student, index), states, batches)
        features = real_rows(found, batches) if kept else hidden[:, :0]
        weights = 1 / (wanted.var(dim=1, correction=0) + 1e-5) if settings["token_weights"] == "scale" else None
        start = solve(features, wanted - hidden, start, settings["ridge"], settings["bias"] == "refit", weights)
    student[f"{name}.weight"], student[f"{name}.bias"] = start[0].T, start[1]


def real_rows(states, batches):
    """What belongs to the real tokens of all samples, one after the other."""
    found = for_each(lambda state, sample: state[sample.real], states, batches)
    return torch.cat([rows for batch in found for rows in batch])


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
    outputs = for_each(partial(outputs_of, teacher), batches)
    before = now = for_each(partial(embed, teacher), batches)
    length = settings["sequence_length"] or mean_length(batches)
    total = LAYERS * (HEADS * unit_flops(0, length) + NEURONS * unit_flops(1, length))
    budget = total - math.ceil(settings["compression_rate"] * total)
    for index in SUBLAYERS:
        if index and settings["tuning"] and settings["correct_inputs"]:
            correct(student, index, batches, before, now, settings)
        if index % settings["measure_every"] == 0:
            numbers = range(len(batches)) if measured is None else measured
            seen = [[values[number] for number in numbers] for values in (batches, now, outputs)]
            scores = measure(student, index, *seen, settings)
        units, gap = select(scores, index, length, budget, settings)
        kept, gaps, budget = [*kept, units], [*gaps, gap], budget - len(units) * unit_flops(index, length)
        cut(student, index, units)
        streams = for_each(partial(stream_after, teacher, index), before, batches)
        tune(student, index, batches, units, streams, now, settings)
        before = for_each(partial(after, teacher, index), before, batches)
        now = for_each(partial(after, student, index), now, batches)
    return Pruned(kept, student, min(gaps))


def for_each(function, *lists):
    """What a function returns for every sample of every batch."""
    return [[function(*values) for values in zip(*batches, strict=True)] for batches in zip(*lists, strict=True)]


def mean_length(batches):
    lengths = [real_tokens(sample) for batch in batches for sample in batch]
    return max(1, round(sum(lengths) / len(lengths)))


def cut(student, index, units):
    """Removes the units that are not kept."""
    rows = [unit * unit_size(index) + row for unit in units for row in range(unit_size(index))]
    for name in inputs_of(index):
        for part in ("weight", "bias"):
            student[f"{name}.{part}"] = student[f"{name}.{part}"][rows]
    name = f"{prefix(index)}.dense.weight"
    student[name] = student[name][:, rows]
