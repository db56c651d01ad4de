"""KPruner.sweep: every rate as from a prune of its own, for less work; what is written, refused and left alone."""

import gc
import weakref

import numpy as np
import pytest
import torch
from prunes import untouchable
from tiny import (
    LAYERS,
    batches_of,
    encoder_of,
    ragged_samples,
    same_state,
    samples_for,
    task_of,
    texts_of,
    tiny_model,
    tiny_tokenizer,
)
from transformers import AutoModelForSequenceClassification

from optimum_kprune import KPruneConfig, KPruner, order
from optimum_kprune.calibration.prepare import CalibrationBatches
from optimum_kprune.prune import scores
from optimum_kprune.prune import sweep as sweeping
from optimum_kprune.prune.hidden_states import HiddenStates
from optimum_kprune.prune.pair import Pair
from optimum_kprune.prune.sweep import Sweep
from optimum_kprune.publish import save as publishing

pytestmark = pytest.mark.slow

slow = pytest.mark.slow
RATES = [0.8, 0.0, 0.45]
SAMPLES = ragged_samples()
SUBLAYERS = 2 * LAYERS


def settings(**overrides):
    return KPruneConfig(**{"num_tokens": None, "measure_tokens": 60, **overrides})


def sweep(model=None, rates=RATES, **arguments):
    return KPruner(model or tiny_model(), tiny_tokenizer()).sweep(rates, settings(), texts_of(SAMPLES), **arguments)


def errors_of(result):
    return [entry.error for entry in result.sublayers]


@pytest.mark.parametrize(
    ("family", "head", "overrides"),
    [
        ("bert", "single label", {}),
        ("bert", "single label", {"measure_every": 4, "memory_budget": 5000}),
        pytest.param("roberta", "masked language model", {"memory_budget": 0, "tuning": False}, marks=slow),
        pytest.param("distilbert", "question answering", {"gradient": "batch", "knowledge": "divergence"}, marks=slow),
        pytest.param("electra", "multiple choice", {"published_targets": True, "correct_inputs": False}, marks=slow),
    ],
)
def test_without_shared_knowledge_every_rate_is_that_of_a_prune_of_its_own_bit_for_bit(family, head, overrides):
    dense = tiny_model(family, head)
    calibration = batches_of(samples_for(dense), 5)
    found = KPruner(dense).sweep(RATES, settings(**overrides), calibration, share_knowledge=False)
    for rate, swept in zip(RATES, found, strict=True):
        alone = KPruner(dense)
        result = alone.prune(settings(compression_rate=rate, **overrides), batches_of(samples_for(dense), 5))
        assert swept.config.to_dict() == alone.config.to_dict()
        assert swept.result.kept == result.kept and errors_of(swept.result) == errors_of(result)
        assert same_state(swept.model, alone.model)


@pytest.mark.parametrize("rates", [(0.3, 0.7), (0.7, 0.3)])
def test_a_model_without_units_at_the_bottom_can_be_swept(rates):
    once = KPruner(tiny_model())
    once.prune(settings(compression_rate=0.95), batches_of(SAMPLES))
    assert not once.result.kept[0]["kept"]
    found = KPruner(once.model).sweep(rates, settings(), batches_of(SAMPLES), share_knowledge=False)
    for rate, swept in zip(rates, found, strict=True):
        alone = KPruner(once.model)
        alone.prune(settings(compression_rate=rate), batches_of(SAMPLES))
        assert same_state(swept.model, alone.model)


@pytest.mark.parametrize("share_knowledge", [True, False])
def test_what_does_not_depend_on_the_rate_is_done_once(share_knowledge, monkeypatch):
    calls = []

    def counting(module, name):
        original = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *args, **kwargs: calls.append(name) or original(*args, **kwargs))

    counting(order, "prepare_batches")
    counting(sweeping, "find_entries")
    counting(sweeping, "Predictions")
    counting(scores, "measure_knowledge")
    found = sweep(share_knowledge=share_knowledge)
    assert [calls.count(name) for name in ("prepare_batches", "find_entries", "Predictions")] == [1, 1, 1]
    targets = len(found[0].result.sublayers)
    assert calls.count("measure_knowledge") == 1 + (1 if share_knowledge else len(RATES)) * (targets - 1)
    assert len({str(swept.result.stages) for swept in found}) == 1 and found[0].result.stages["teacher"] > 0


@pytest.mark.parametrize("overrides", [{}, {"measure_every": 4}, {"gradient": "batch"}])
def test_shared_knowledge_is_that_of_the_student_that_keeps_the_most(overrides, monkeypatch):
    """Every rate is pruned as it is alone when it is given the scores of that student, sublayer by sublayer."""
    dense, rates = tiny_model(), [0.8, 0.3, 0.45]
    found = KPruner(dense).sweep(rates, settings(**overrides), batches_of(SAMPLES, 5))
    leader, measured = KPruner(dense), {}
    measure = scores.Scores.measure

    def recording(own, states, students):
        measure(own, states, students)
        measured[len(students)] = own.latest

    monkeypatch.setattr(scores.Scores, "measure", recording)
    leader.prune(settings(compression_rate=0.3, **overrides), batches_of(SAMPLES, 5))

    def given(own, states, students):
        own.latest = measured[len(students)]

    monkeypatch.setattr(scores.Scores, "measure", given)
    others = [KPruner(dense), leader, KPruner(dense)]
    for rate, swept, alone in zip(rates, found, others, strict=True):
        if alone is not leader:
            alone.prune(settings(compression_rate=rate, **overrides), batches_of(SAMPLES, 5))
        assert swept.result.kept == alone.result.kept and same_state(swept.model, alone.model)


def test_published_knowledge_is_not_shared():
    config = KPruneConfig.paper(num_tokens=None, heldout_share=0)
    found = KPruner(tiny_model()).sweep([0.4, 0.6], config, batches_of(SAMPLES))
    for swept in found:
        alone = KPruner(tiny_model())
        alone.prune(swept.config, batches_of(SAMPLES))
        assert same_state(swept.model, alone.model)


def test_budgets_in_other_units_do_not_share_knowledge():
    """A score is knowledge per cost: what a unit costs in bytes is no answer to a question for FLOPs."""
    found = KPruner(tiny_model()).sweep([0.6, "28000 parameters"], settings(), batches_of(SAMPLES))
    for swept in found:
        alone = KPruner(tiny_model())
        alone.prune(swept.config, batches_of(SAMPLES))
        assert same_state(swept.model, alone.model)


def test_the_teacher_goes_through_the_sublayers_once(monkeypatch):
    moved = []
    original = Pair.advance_teacher
    monkeypatch.setattr(Pair, "advance_teacher", lambda pair, *args: moved.append(args) or original(pair, *args))
    one, several = (sweep(rates=rates) and moved.copy() for rates in ([0.5], RATES))
    assert len(several) == 2 * len(one)


def test_the_pruner_stays_as_it_was():
    one = KPruner(tiny_model(), tiny_tokenizer())
    assert len(one.sweep([0.5], settings(), texts_of(SAMPLES))) == 1
    assert (one.model, one.result, one.config) == (one.teacher, None, None)
    result, model = one.prune(settings(), texts_of(SAMPLES)), one.model
    config = settings(compression_rate=0.3)
    found = one.sweep((rate for rate in RATES), config, texts_of(SAMPLES))
    assert one.model is model and one.result is result and config.compression_rate == 0.3
    assert all(swept.teacher is one.teacher for swept in found) and one.teacher.training
    assert len({id(parameter) for swept in found for parameter in swept.model.parameters()}) == sum(
        len(list(swept.model.parameters())) for swept in found
    )


def test_every_rate_has_its_folder(tmp_path):
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / "mine.txt").write_text("precious")
    found = sweep(save_directory=tmp_path / "sweep")
    assert {path.name for path in (tmp_path / "sweep").iterdir()} == {"0.8", "0.0", "0.45", "mine.txt"}
    for rate, swept in zip(RATES, found, strict=True):
        folder = tmp_path / "sweep" / str(rate)
        assert same_state(AutoModelForSequenceClassification.from_pretrained(folder), swept.model)
        assert KPruneConfig.from_pretrained(folder).compression_rate == rate
        assert (folder / "kprune_report.json").is_file() and (folder / "tokenizer.json").is_file()


def test_budgets_are_swept_beside_rates(tmp_path):
    """The budgets here are shares of the FLOPs of the units, as rates are: both give the same."""
    found = KPruner(tiny_model()).sweep([0.4, "60% flops", "30000 parameters"], settings(), batches_of(SAMPLES))
    assert found[0].result.kept == found[1].result.kept
    assert same_state(found[0].model, found[1].model)
    assert 29_000 <= found[2].result.parameters_after <= 30_000


def test_a_folder_in_use_is_refused_before_any_work(tmp_path):
    (tmp_path / "0.45").mkdir()
    (tmp_path / "0.45" / "mine.txt").write_text("precious")
    with pytest.raises(FileExistsError, match=r"0\.45"):
        KPruner(tiny_model()).sweep(RATES, settings(), untouchable(), save_directory=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["0.45"]


@pytest.mark.parametrize(
    ("rates", "message"),
    [
        ([], r"list of compression rates or budgets.*Got \[\]"),
        (0.5, "list of compression rates or budgets.*Got 0.5"),
        ("0.5", "list of compression rates or budgets.*Got '0.5'"),
        ([0.4, 0.6, 0.4], "every rate once"),
        ([0, 0.0], "every rate once"),
        ([0.4, 1.0], r"'compression_rate'.*\[0, 1\).*Got 1.0"),
        ([0.4, "0.5"], "'budget'.*Got '0.5'"),
        (["40 MB", 0.4, "40mb"], "every rate once"),
    ],
)
def test_wrong_rates_are_refused_before_any_work(rates, message):
    with pytest.raises(ValueError, match=message):
        KPruner(tiny_model()).sweep(rates, settings(), untouchable())


def test_settings_that_are_none_are_refused():
    with pytest.raises(ValueError, match=r"`config` must be a KPruneConfig\. Got dict"):
        KPruner(tiny_model()).sweep([0.5], {}, untouchable())


def test_a_failure_leaves_the_pruner_as_it_was_and_the_rates_before_it_whole(tmp_path, monkeypatch):
    dense = tiny_model()
    one = KPruner(dense, tiny_tokenizer())
    before = {name: tensor.clone() for name, tensor in dense.state_dict().items()}
    original = publishing.write_report

    def fail_at_second(folder, *report):
        if (tmp_path / "0.8").exists():
            raise KeyboardInterrupt
        original(folder, *report)

    monkeypatch.setattr(publishing, "write_report", fail_at_second)
    with pytest.raises(KeyboardInterrupt):
        one.sweep(RATES, settings(), texts_of(SAMPLES), save_directory=tmp_path)
    assert (one.model, one.result, one.config) == (dense, None, None) and dense.training
    assert all(torch.equal(before[name], tensor) for name, tensor in dense.state_dict().items())
    assert [path.name for path in tmp_path.iterdir()] == ["0.8"]
    assert (tmp_path / "0.8" / "kprune_report.json").is_file()


def test_states_of_the_teacher_and_of_every_student_are_held(monkeypatch):
    """They count in the budget of memory, and are dropped in the end."""
    stores, most = [], []
    make, put = sweeping.StateStore, sweeping.StateStore.put

    def watching(store, tensor):
        held = put(store, tensor)
        most[-1] = max(most[-1], store.bytes_in_memory)
        return held

    monkeypatch.setattr(make, "put", watching)
    monkeypatch.setattr(sweeping, "StateStore", lambda budget: stores.append(make(budget)) or stores[-1])
    for rates in ([0.5], RATES):
        most.append(0)
        sweep(rates=rates)
    assert stores[0].bytes_in_memory == stores[1].bytes_in_memory == 0
    assert most[1] == (1 + len(RATES)) / 2 * most[0]


# Out of memory


def out_of_memory_above(monkeypatch, rows):
    """A device that has memory for so many rows; returns the numbers of rows that it was given."""
    given = []
    run = HiddenStates.run

    def run_or_fail(states, step):
        given.append(len(step.batch["input_ids"]))
        if given[-1] > rows:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return run(states, step)

    monkeypatch.setattr(HiddenStates, "run", run_or_fail)
    return given


@pytest.mark.parametrize("rows", [1, 5])
def test_out_of_memory_halves_the_batches_and_says_so(rows, monkeypatch, caplog):
    batches = batches_of(SAMPLES, 12)
    alone = KPruner(tiny_model())
    alone.prune(settings(measure_tokens=60), batches)
    given = out_of_memory_above(monkeypatch, rows)
    one = KPruner(tiny_model())
    one.prune(settings(measure_tokens=60), batches)
    sizes = {1: [12, 6, 3, 2], 5: [12, 6]}[rows]
    assert given[: len(sizes)] == sizes and max(given[len(sizes) :]) <= rows
    told = [f"again with batches of at most {most} samples" for most in (6, 3, 2, 1)[: len(sizes)]]
    warned = [message for message in caplog.messages if "out of memory" in message]
    assert all(part in message for part, message in zip(told, warned, strict=True))
    assert one.result.kept == alone.result.kept and one.result.tokens == alone.result.tokens
    for name, value in alone.model.state_dict().items():
        torch.testing.assert_close(one.model.state_dict()[name], value, rtol=0, atol=1e-4)


def test_out_of_memory_on_the_way_begins_again_with_all_rates(monkeypatch):
    """Nothing is left of the students that were pruned half: neither of their weights nor of their states."""
    expected, students = sweep(share_knowledge=False), []
    measure = scores.measure_knowledge

    def fails_once(predictions, states, *args):
        students.append(weakref.ref(states.encoder.model))
        if len(students) == SUBLAYERS + 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return measure(predictions, states, *args)

    monkeypatch.setattr(scores, "measure_knowledge", fails_once)
    halve = Sweep._halve

    def watched(own):
        halve(own)
        gc.collect()
        assert not any(student() for student in students) and own._store.bytes_in_memory == 0

    monkeypatch.setattr(Sweep, "_halve", watched)
    found = sweep(share_knowledge=False)
    assert len(students) > 2 * SUBLAYERS
    assert [swept.result.kept for swept in found] == [swept.result.kept for swept in expected]


def test_a_sweep_goes_on_with_other_rates():
    """Of what the first rates left, the teacher's predictions and the first scores serve the next ones."""
    dense = tiny_model()
    batches = batches_of(SAMPLES)
    configs = [settings(compression_rate=rate) for rate in RATES]
    with Sweep(encoder_of(dense), task_of(dense), CalibrationBatches(batches, [len(batches)])) as one:
        (first,) = one.prune_all(configs[:1])
        predictions = one._predictions
        found = [first, *one.prune_all(configs[1:])]
        assert one._predictions is predictions
    with Sweep(encoder_of(dense), task_of(dense), CalibrationBatches(batches, [len(batches)])) as other:
        for (model, _), (same, _) in zip(found, other.prune_all(configs), strict=True):
            assert same_state(model, same)


@pytest.mark.parametrize(("overrides", "given_at_last"), [({}, 1), ({"gradient": "batch"}, 12)])
def test_what_cannot_be_halved_is_told(overrides, given_at_last, monkeypatch):
    """Single samples; and batches whose mean gradient counts, which are not halved at all."""
    given = out_of_memory_above(monkeypatch, 0)
    with pytest.raises(torch.OutOfMemoryError) as caught:
        KPruner(tiny_model()).prune(settings(**overrides), batches_of(SAMPLES, 12))
    assert (given[0], given[-1]) == (12, given_at_last)
    assert any("batch_size" in note for note in caught.value.__notes__)


def test_halved_batches_leave_nothing_of_the_whole_ones(monkeypatch):
    """Of a vocabulary, the teacher's last hidden states are held: those of the whole batches are let go of."""
    stores = []
    make = sweeping.StateStore
    monkeypatch.setattr(sweeping, "StateStore", lambda budget: stores.append(make(budget)) or stores[-1])
    for rows in (12, 5):
        out_of_memory_above(monkeypatch, rows)
        KPruner(tiny_model(head="masked language model")).prune(settings(), batches_of(SAMPLES, 12))
    assert stores[0].bytes_in_memory == stores[1].bytes_in_memory


def test_rates_of_numpy_are_saved_as_plain_numbers():
    (swept,) = KPruner(tiny_model()).sweep(np.array([0.5], dtype=np.float32), settings(), batches_of(SAMPLES))
    assert type(swept.config.compression_rate) is float
