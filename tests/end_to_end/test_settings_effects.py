"""Every setting does what it says, through `KPruner.prune`: most of them as in `reference/equations.py`."""

import os
import tempfile
from functools import cache

import equations
import plain_bert
import pytest
import torch
import vocabularies
from datasets import Dataset
from tiny import same_state
from torch.nn import functional
from transformers_bert import dense_model, tensors_of

from optimum_kprune import KPruneConfig, KPruner
from optimum_kprune.configuration import SETTINGS
from optimum_kprune.encoder.hooks import hooks

CLASSES, VALUE, SPAN = plain_bert.OUTPUTS
PAPER = equations.PAPER
BATCHES = plain_bert.make_batches()
# What decides on single neurons shows only where they are not rounded.
FINE = {"neuron_multiple": 1}
PREDICTIVE = FINE | {"lambda_rep": 1e-3}
DIVERGENCE = PREDICTIVE | {"knowledge": "divergence"}
# Of the settings that the equations hold: the task, what else is set, and values that are not the default.
EQUATIONS = {
    "compression_rate": [(CLASSES, {}, 0.2), (CLASSES, {}, 0.8)],
    "temperature": [(CLASSES, PREDICTIVE, 0.1), (CLASSES, DIVERGENCE, 0.3), (SPAN, PREDICTIVE, 30.0)],
    "knowledge": [(task, PREDICTIVE, "divergence") for task in plain_bert.OUTPUTS],
    "lambda_rep": [(CLASSES, FINE, 0.0), (CLASSES, FINE, 100.0)],
    "mu": [(CLASSES, FINE, 0.3), (CLASSES, FINE, 100.0)],
    "head_weight": [(CLASSES, FINE, 0.3), (CLASSES, FINE, 30.0)],
    "gradient": [(CLASSES, PREDICTIVE, "batch"), (VALUE, DIVERGENCE, "batch")],
    "measure_every": [(CLASSES, PREDICTIVE, 2), (CLASSES, PREDICTIVE, 3)],
    "sequence_length": [(CLASSES, FINE, 1), (CLASSES, FINE, 500)],
    "neuron_multiple": [(CLASSES, {}, 1), (CLASSES, {}, 5), (CLASSES, {}, 1000)],
    "tuning": [(CLASSES, {}, False)],
    "ridge": [(CLASSES, {}, 0.0), (CLASSES, {}, 1.0), (CLASSES, {"bias": "keep"}, 1.0)],
    "token_weights": [(CLASSES, {}, "equal"), (CLASSES, {"bias": "keep"}, "equal")],
    "correct_inputs": [(CLASSES, {}, False)],
    "bias": [(CLASSES, {}, "keep"), (CLASSES, {"compression_rate": 0.95}, "drop")],
    "published_targets": [(SPAN, DIVERGENCE, True), (VALUE, DIVERGENCE | {"gradient": "batch"}, True)],
    "seed": [(CLASSES, PREDICTIVE, 1), (SPAN, PREDICTIVE, 2)],
}
CASES = [(name, *case) for name, cases in EQUATIONS.items() for case in cases]
# Of the others, how the names of their tests begin.
APART = {
    "budget": "test_the_budget_is_what_may_be_kept",
    "vocabulary": "test_the_vocabulary_is_what_the_pruned_model_has",
    "num_tokens": "test_the_budget_of_tokens",
    "heldout_share": "test_the_share_that_is_held_out",
    "measure_tokens": "test_knowledge_is_measured_on_as_many_tokens",
    "measure_precision": "test_knowledge_is_measured_in_the_precision",
    "memory_budget": "test_states_beyond_the_budget_of_memory",
    "recovery_tokens": "test_a_recovery_learns_from_as_many_tokens",
    "recovery_learning_rate": "test_weights_move_by_at_most_the_learning_rate",
    "recovery_precision": "test_a_recovery_runs_in_the_precision",
}
DENSE = "bert.encoder.layer.0"


def prune(task=CLASSES, batches=BATCHES, model=None, **settings):
    """A pruner that has pruned to settings; those that are not given are the defaults, on all of the data."""
    everything = {"num_tokens": None, "measure_tokens": None, "heldout_share": 0}
    pruner = KPruner(dense_model(task) if model is None else model)
    pruner.prune(KPruneConfig(**{**everything, **settings}), [tensors_of(batch) for batch in batches])
    return pruner


@cache
def by_equations(task=CLASSES, measured=None, **settings):
    """What the equations say of the same prune, on the batches with the numbers `measured` or on all."""
    return equations.prune(plain_bert.make_weights(task), BATCHES, equations.DEFAULT | settings, measured)


def kept(pruner):
    return [entry.kept for entry in pruner.result.sublayers]


def assert_equal(pruner, expected):
    """Whether a prune kept and fitted what the equations say."""
    assert expected.margin > 1e-4, "rounding could decide here: choose other values"
    assert kept(pruner) == expected.kept
    state = pruner.model.state_dict()
    for name, values in expected.weights.items():
        if values.numel():
            torch.testing.assert_close(state[name].double(), values, rtol=1e-3, atol=1e-3)


def differ(one, other):
    """Whether two prunes are far enough apart for one not to be taken for the other."""
    if one.kept != other.kept:
        return True
    return max(float((one.weights[name] - other.weights[name]).norm()) for name in one.weights) > 0.1


def test_every_setting_has_a_test():
    assert not EQUATIONS.keys() & APART.keys()
    assert EQUATIONS.keys() | APART.keys() == set(SETTINGS)
    assert all(any(test.startswith(name) for test in globals()) for name in APART.values())


@pytest.mark.parametrize(("name", "task", "others", "value"), CASES)
def test_a_prune_is_that_of_the_equations(name, task, others, value):
    expected = by_equations(task, **others, **{name: value})
    assert differ(expected, by_equations(task, **others)), "ignoring it would pass: choose another value"
    assert_equal(prune(task, **others, **{name: value}), expected)


# The same without the equations, of settings that decide most


@pytest.mark.parametrize("rate", [0.2, 0.7])
def test_the_budget_is_what_may_be_kept(rate):
    by_budget, by_rate = prune(budget=f"{100 - 100 * rate:g}% flops"), prune(compression_rate=rate)
    assert same_state(by_budget.model, by_rate.model) and kept(by_budget) == kept(by_rate)
    smaller = prune(budget="70% parameters").result
    assert 0.65 < smaller.parameters_after / smaller.parameters_before <= 0.7


@pytest.mark.parametrize("wanted", [80, 0.9])
def test_the_vocabulary_is_what_the_pruned_model_has(wanted):
    dense, own = vocabularies.model("WordPiece"), vocabularies.tokenizer("WordPiece")
    pruner = KPruner(dense, own)
    pruner.prune(KPruneConfig(vocabulary=wanted, num_tokens=2000), vocabularies.texts())
    size, fell_back = pruner.model.config.vocab_size, pruner.result.vocabulary.fell_back
    assert size == len(pruner.processing_class) == pruner.result.vocabulary.size < dense.config.vocab_size
    assert size == 80 if wanted == 80 else fell_back == pytest.approx(0.1, abs=0.05)


def strengths(model, samples):
    """K_rep of the heads of the lowest sublayer, from what its output projection reads, one sample at a time."""
    read = []
    projection = model.get_submodule(f"{DENSE}.attention.output.dense")
    handle = projection.register_forward_pre_hook(lambda module, args: read.append(args[0][0].double()))
    for sample in samples:
        model(input_ids=sample.ids[sample.real][None])
    handle.remove()
    heads = torch.cat(read).unflatten(1, (plain_bert.HEADS, -1))
    weights = projection.weight.double().T.unflatten(0, (plain_bert.HEADS, -1))
    return torch.einsum("nhi,nhi,hid,hid->h", heads, heads, weights, weights)


@pytest.mark.parametrize(("paper", "mu"), [(True, 0.5), (False, 2)])
def test_a_head_weight_of_three_is_three_times_mu(paper, mu):
    base = PAPER if paper else {}
    settings = {name: value for name, value in base.items() if name not in ("mu", "head_weight")} | FINE
    tripled = prune(**settings, head_weight=3, mu=mu)
    plain = prune(**settings, head_weight=1, mu=3 * mu)
    assert same_state(tripled.model, plain.model) and kept(tripled) == kept(plain)
    assert kept(tripled) != kept(prune(**settings, head_weight=1, mu=mu))


@pytest.mark.parametrize("knowledge", ["fisher", "divergence"])
def test_with_a_huge_lambda_the_strongest_heads_are_kept(knowledge):
    found = kept(prune(knowledge=knowledge, lambda_rep=1e12, compression_rate=0.6, neuron_multiple=1))[0]
    with torch.no_grad():
        strength = strengths(dense_model(CLASSES), [sample for batch in BATCHES for sample in batch])
    assert 0 < len(found) < plain_bert.HEADS
    assert found == sorted(strength.argsort(descending=True)[: len(found)].tolist())
    assert found != kept(prune(knowledge=knowledge, lambda_rep=0.0, compression_rate=0.6, neuron_multiple=1))[0]


def recorded(model, *names):
    """What modules read and give at the real tokens of all batches, (tokens, d) each."""
    found = {name: ([], []) for name in names}
    real = {}

    def recording(name):
        def hook(module, args, output):
            for values, kept_values in zip((args[0], output), found[name], strict=True):
                kept_values.append(values[real["mask"]].double())

        return model.get_submodule(name).register_forward_hook(hook)

    handles = [recording(name) for name in names]
    with torch.no_grad():
        for batch in map(tensors_of, BATCHES):
            real["mask"] = batch["attention_mask"].bool()
            model(**batch)
    for handle in handles:
        handle.remove()
    return [tuple(map(torch.cat, found[name])) for name in names]


@pytest.mark.parametrize("token_weights", ["scale", "equal"])
def test_the_lowest_fit_weighs_tokens(token_weights):
    """There the student still reads what the teacher reads: all that is missing is what the lost heads gave."""
    pruner = prune(token_weights=token_weights, ridge=0.0)
    projection = f"{DENSE}.attention.output.dense"
    (hidden, _), (_, given) = recorded(pruner.teacher, f"{DENSE}.attention.self.query", projection)
    ((read, _),) = recorded(pruner.model, projection)
    variance = (hidden + given).var(dim=1, correction=0)
    roots = (1 / (variance + 1e-5)).sqrt() if token_weights == "scale" else torch.ones_like(variance)
    solution = torch.linalg.lstsq(
        roots[:, None] * functional.pad(read, (0, 1), value=1), roots[:, None] * given
    ).solution
    fitted = pruner.model.get_submodule(projection)
    torch.testing.assert_close(fitted.weight.T.double(), solution[:-1], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(fitted.bias.double(), solution[-1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("correct_inputs", [True, False])
def test_inputs_are_corrected_by_the_map_from_the_student_to_the_teacher(correct_inputs):
    ridge = 0.01
    pruner = prune(correct_inputs=correct_inputs, ridge=ridge)
    name = f"{DENSE}.intermediate.dense"
    ((teacher, _),), ((student, _),) = recorded(pruner.teacher, name), recorded(pruner.model, name)
    weight, bias = torch.eye(plain_bert.HIDDEN).double(), torch.zeros(plain_bert.HIDDEN).double()
    if correct_inputs:
        pull = (ridge * student.square().sum(dim=0).mean()).sqrt() * weight
        rows = torch.cat([functional.pad(student, (0, 1), value=1), functional.pad(pull, (0, 1))])
        solution = torch.linalg.lstsq(rows, torch.cat([teacher, pull])).solution
        weight, bias = solution[:-1], solution[-1]
    before, after = (model.get_submodule(name) for model in (pruner.teacher, pruner.model))
    neurons = kept(pruner)[1]
    old = before.weight[neurons].double()
    torch.testing.assert_close(after.weight.double(), old @ weight.T, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(after.bias.double(), before.bias[neurons].double() + old @ bias, rtol=1e-4, atol=1e-4)


# The settings of the data


ROWS = [sample.ids[sample.real].tolist() for batch in BATCHES for sample in batch]


def collate(rows):
    return tensors_of(plain_bert.batch_of([row["input_ids"] for row in rows]))


def drawn(num_tokens=None, seed=0):
    """The rows of a draw, in its order."""
    data = Dataset.from_dict({"input_ids": ROWS})
    return KPruner(dense_model(CLASSES)).get_calibration_dataset(data, num_tokens=num_tokens, seed=seed)


def prune_rows(data, batch_size=32, **settings):
    pruner = KPruner(dense_model(CLASSES))
    config = KPruneConfig(**{"measure_tokens": None, "heldout_share": 0, **settings})
    pruner.prune(config, data, data_collator=collate, batch_size=batch_size)
    return pruner


@pytest.mark.parametrize("seed", [0, 3])
def test_the_budget_of_tokens_is_reached_by_the_last_sample_of_the_draw(seed):
    order = drawn(seed=seed)["input_ids"]
    assert sorted(order) == sorted(ROWS) and order != drawn(seed=seed + 1)["input_ids"]
    count = next(count for count in range(len(order)) if sum(map(len, order[:count])) >= 100)
    found = prune_rows(Dataset.from_dict({"input_ids": ROWS}), num_tokens=100, seed=seed)
    assert (found.result.samples, found.result.tokens) == (count, sum(map(len, order[:count])))
    alone = prune_rows(Dataset.from_dict({"input_ids": order[:count]}), num_tokens=None, seed=seed)
    assert same_state(found.model, alone.model)


def test_batches_are_in_the_order_of_the_draw_where_their_gradients_are_squared():
    """Elsewhere samples are sorted by length."""
    settings = {"gradient": "batch", "compression_rate": 0.4, **PREDICTIVE}

    def expected(rows):
        batches = [plain_bert.batch_of(rows[start : start + 6]) for start in range(0, len(rows), 6)]
        return equations.prune(plain_bert.make_weights(CLASSES), batches, equations.DEFAULT | settings)

    order = drawn()["input_ids"]
    assert differ(expected(order), expected(sorted(order, key=len)))
    assert_equal(prune_rows(drawn(), batch_size=6, **settings), expected(order))


@pytest.mark.parametrize("share", [0.2, 0.1])
def test_the_share_that_is_held_out_is_measured_and_nothing_else(share):
    """Of ready batches, every n-th."""
    batches, every = plain_bert.make_batches(10, 6), round(1 / share)
    found = prune(batches=batches, heldout_share=share)
    others = [batch for index, batch in enumerate(batches) if (index + 1) % every]
    assert same_state(found.model, prune(batches=others).model)
    lost = []
    for batch in map(tensors_of, batches[every - 1 :: every]):
        with torch.no_grad():
            dense, pruned = (model(**batch).logits.log_softmax(dim=1) for model in (found.teacher, found.model))
        lost += functional.kl_div(pruned, dense, log_target=True, reduction="none").sum(dim=1).tolist()
    assert found.result.heldout.samples == len(lost)
    assert found.result.heldout.divergence == pytest.approx(sum(lost) / len(lost), rel=1e-4)


def test_knowledge_is_measured_on_as_many_tokens():
    """A quarter of them is one batch of four; the fit takes all."""
    tokens = sum(int(sample.real.sum()) for batch in BATCHES for sample in batch)
    expected = by_equations(measured=(0,), **FINE)
    assert differ(expected, by_equations(**FINE))
    assert_equal(prune(measure_tokens=tokens // 4, **FINE), expected)


# The settings of the machine


@pytest.mark.parametrize(
    ("precision", "knowledge", "native", "expected"),
    [
        ("float32", "fisher", True, torch.float32),
        ("bfloat16", "divergence", False, torch.bfloat16),
        ("auto", "fisher", True, torch.bfloat16),
        ("auto", "fisher", False, torch.float32),
        ("auto", "divergence", True, torch.float32),
    ],
)
def test_knowledge_is_measured_in_the_precision(precision, knowledge, native, expected, monkeypatch):
    """Where gradients are taken, the projections read that type; the fit reads float32 always."""
    for feature in ("avx512_bf16", "amx_tile"):
        monkeypatch.setattr(torch.cpu, f"_is_{feature}_supported", lambda: native, raising=False)
    measured, fitted = set(), set()
    model = dense_model(CLASSES)

    def at_output(module, args, output):
        (measured if output.requires_grad else fitted).add(args[0].dtype)

    # Copies of the model have it too.
    model.get_submodule("bert.encoder.layer.1.output.dense").register_forward_hook(at_output)
    prune(model=model, measure_precision=precision, knowledge=knowledge)
    assert measured == {expected} and fitted == {torch.float32}


@pytest.mark.parametrize("share", [0, 0.5, 2])
def test_states_beyond_the_budget_of_memory_lie_in_a_file(share, monkeypatch):
    """Two states per token, teacher's and student's, padding included."""
    sizes, make = [], tempfile.TemporaryFile

    def watched(**options):
        file = make(**options)
        close = file.close
        file.close = lambda: (sizes.append(os.fstat(file.fileno()).st_size), close())
        return file

    monkeypatch.setattr(tempfile, "TemporaryFile", watched)
    states = [2 * len(batch) * len(batch[0].ids) * plain_bert.HIDDEN * 4 for batch in BATCHES]
    spilled = prune(memory_budget=int(share * sum(states)))
    assert same_state(spilled.model, prune().model)
    if share == 2:
        assert not sizes
    else:
        (size,) = sizes
        # What is left of a budget may be too small for a state.
        assert 0 <= size - (1 - share) * sum(states) <= share * 2 * max(states)


# The settings of a recovery


def recovered(**settings):
    """A pruner after a recovery on what it did not hold out of ten batches."""
    batches = plain_bert.make_batches(10, 6)
    return prune(batches=batches, heldout_share=0.2, **{"recovery_tokens": 700, "seed": 1, **settings})


@pytest.mark.parametrize("tokens", [0, 100, 700])
def test_a_recovery_learns_from_as_many_tokens(tokens):
    """But for a part of a batch, which has at most 72."""
    recovery = recovered(recovery_tokens=tokens).result.recovery
    assert recovery is None if tokens == 0 else abs(recovery.tokens - tokens) < 72


@pytest.mark.parametrize("rate", [1e-2, 1e-1])
def test_weights_move_by_at_most_the_learning_rate(rate):
    """Adam moves every weight by about its rate at most, in each step."""
    pruner = recovered(recovery_learning_rate=rate)
    before, after = recovered(recovery_tokens=0).model.state_dict(), pruner.model.state_dict()
    recovery = pruner.result.recovery
    steps, rate = recovery.kept_step, rate * (recovery.steps / 1000) ** 0.5
    moved = max((after[name] - before[name]).abs().max().item() for name in before)
    assert steps > 1 and rate / 5 < moved < steps * rate


@pytest.mark.parametrize(
    ("precision", "native", "expected"),
    [
        ("float32", True, torch.float32),
        ("bfloat16", False, torch.bfloat16),
        ("auto", True, torch.bfloat16),
        ("auto", False, torch.float32),
    ],
)
def test_a_recovery_runs_in_the_precision(precision, native, expected, monkeypatch):
    """Where weights learn, the projections give that type; the weights are float32 before and after."""
    for feature in ("avx512_bf16", "amx_tile"):
        monkeypatch.setattr(torch.cpu, f"_is_{feature}_supported", lambda: native, raising=False)
    given = set()

    def at_output(module, args, output):
        # The dense model and a student that is pruned take no gradients of weights.
        if isinstance(module, torch.nn.Linear) and module.weight.requires_grad and output.requires_grad:
            given.add(output.dtype)

    # Of all modules, because those of the pruned model are made by the prune.
    with hooks(torch.nn.modules.module.register_module_forward_hook(at_output)):
        pruner = recovered(recovery_precision=precision)
    assert given == {expected}
    assert {weight.dtype for weight in pruner.model.parameters()} == {torch.float32}
