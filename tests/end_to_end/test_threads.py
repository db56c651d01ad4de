"""The caller's model while it is pruned: other threads use it, prunes share it, interruptions leave no trace in it."""

import inspect
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from repeated import repeated
from tiny import batches_of, outputs_of, pad, ragged_samples, same_state, tiny_model, tiny_tokenizer

import optimum_kprune
from optimum_kprune import KPruneConfig, KPruner

PACKAGE = str(Path(optimum_kprune.__file__).parent)
SAMPLES = ragged_samples(48)


def prune(model, **overrides):
    one = KPruner(model, tiny_tokenizer())
    one.prune(KPruneConfig(num_tokens=None, measure_tokens=None, **overrides), batches_of(SAMPLES))
    return one


def prunes_while(model, found):
    """Prunes a model at least three times, and until other threads have found something: they may be slow."""
    pruned = [prune(model) for _ in range(3)]
    while len(found) < 10:
        pruned.append(prune(model))
    return pruned


def traces(model):
    """What a prune could leave in a model: hooks, forwards, modes, gradients."""
    found = {}
    for name, module in model.named_modules():
        own = {key: dict(value) for key, value in vars(module).items() if key.endswith("_hooks")}
        found[name] = (own, "forward" in vars(module), module.training)
    weights = {name: (weight.requires_grad, weight.grad) for name, weight in model.named_parameters()}
    return found, weights


def test_the_dtype_of_the_process_is_not_touched(monkeypatch):
    """Loads in other threads set it for a while: to set it too, and back, would leave theirs in place for good."""
    model = tiny_model().double()
    expected = prune(model).model
    with monkeypatch.context() as patch:
        patch.setattr(torch, "set_default_dtype", pytest.fail)
        found = prune(model).model
    assert same_state(found, expected)
    assert found.dtype == found.config.dtype == torch.float64


@pytest.mark.slow
def test_inference_in_another_thread_and_a_prune_do_not_disturb_each_other():
    """Inputs of the calibration's shape: taken for those of the prune, they would give another model."""
    model = tiny_model().eval()
    batch = batches_of(SAMPLES)[0]
    expected, alone = outputs_of(model, batch), prune(model)

    @torch.no_grad()
    def request():
        return torch.equal(model(**batch).to_tuple()[0], expected[0])

    with repeated(request, threads=2) as requests:
        pruned = prunes_while(model, requests)
    assert set(requests) == {True}
    assert all(same_state(one.model, alone.model) for one in pruned)


@pytest.mark.slow
def test_prunes_of_one_model_in_several_threads_are_those_of_each_alone():
    model = tiny_model()
    before = traces(model)
    rates = [0.3, 0.5, 0.7]
    alone = [prune(model, compression_rate=rate) for rate in rates]
    found = {}

    def run(rate):
        found[rate] = prune(model, compression_rate=rate)

    threads = [threading.Thread(target=run, args=[rate]) for rate in rates]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(same_state(one.model, found[rate].model) for rate, one in zip(rates, alone, strict=True))
    assert traces(model) == before


@pytest.mark.slow
def test_models_that_other_threads_make_meanwhile_are_initialised():
    """transformers can switch initialisation off, but for all threads at once."""
    dense = tiny_model()
    config = dense.config
    with repeated(lambda: type(dense)(config).classifier.weight.detach()) as weights:
        prunes_while(dense, weights)
    assert all(0 < weight.std() < 10 * config.initializer_range and weight.isfinite().all() for weight in weights)


@pytest.mark.slow
def test_training_mode_may_change_while_a_model_is_pruned():
    model = tiny_model()
    alone = prune(model)

    def switch():
        time.sleep(1e-4)
        model.train(not model.training)

    with repeated(switch) as switched:
        pruned = prunes_while(model, switched)
    assert set(switched) == {None}
    assert all(same_state(one.model, alone.model) for one in pruned)


@contextmanager
def interrupted_at(number=None):
    """Counts the calls of and in functions of the package; at the given one, this thread is interrupted.

    Generators do not count: Python ignores what is raised in one that it closes because nobody needs it any more.
    """
    count = 0

    def at_event(frame, event, _):
        nonlocal count
        code = frame.f_code
        is_counted = code.co_filename.startswith(PACKAGE) and not code.co_flags & inspect.CO_GENERATOR
        if is_counted and event in ("call", "c_call"):
            count += 1
            if count == number:
                raise KeyboardInterrupt

    sys.setprofile(at_event)
    try:
        yield lambda: count
    finally:
        sys.setprofile(None)


@pytest.mark.slow
def test_an_interruption_at_any_time_leaves_no_trace():
    """Spread evenly over what a prune does: as a signal raises it, in the middle of anything."""
    model = tiny_model()
    before, state = traces(model), {name: value.clone() for name, value in model.state_dict().items()}
    # The first prune makes what later ones find.
    for _ in range(2):
        with interrupted_at() as count:
            prune(model)
    for part in range(1, 21):
        with pytest.raises(KeyboardInterrupt), interrupted_at(count() * part // 21):
            prune(model)
        assert traces(model) == before
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(output.isfinite().all() for output in outputs_of(model, pad(SAMPLES)))
