"""The caller's model while it is pruned: other threads use it, prunes share it, interruptions leave no trace in it."""

import signal
import threading
import time

import pytest
import torch
from tiny import batches_of, outputs_of, pad, ragged_samples, same_state, tiny_model, tiny_tokenizer

from optimum_kprune import KPruneConfig, KPruner

SAMPLES = ragged_samples(48)


def prune(model, **overrides):
    one = KPruner(model, tiny_tokenizer())
    one.prune(KPruneConfig(num_tokens=None, measure_tokens=None, **overrides), batches_of(SAMPLES))
    return one


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
    is_over, requests, failures = threading.Event(), [], []

    def serve():
        while not is_over.is_set():
            try:
                with torch.no_grad():
                    outputs = model(**batch).to_tuple()
                requests.append(torch.equal(outputs[0], expected[0]))
            # Whatever a request fails with is what this test is about.
            except BaseException as error:
                failures.append(error)

    threads = [threading.Thread(target=serve) for _ in range(2)]
    for thread in threads:
        thread.start()
    pruned = [prune(model) for _ in range(3)]
    is_over.set()
    for thread in threads:
        thread.join()
    assert len(requests) > 20 and all(requests) and not failures
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
    models, is_over = [], threading.Event()
    config = tiny_model().config

    def make():
        while not is_over.is_set():
            models.append(type(tiny_model())(config).classifier.weight.detach())

    dense = tiny_model()
    thread = threading.Thread(target=make)
    thread.start()
    for _ in range(3):
        prune(dense)
    is_over.set()
    thread.join()
    assert len(models) > 10
    assert all(0 < weight.std() < 10 * config.initializer_range and weight.isfinite().all() for weight in models)


def test_training_mode_may_change_while_a_model_is_pruned():
    model = tiny_model()
    alone, is_over = prune(model), threading.Event()

    def switch():
        while not is_over.is_set():
            model.train(not model.training)
            time.sleep(1e-4)

    thread = threading.Thread(target=switch)
    thread.start()
    pruned = prune(model)
    is_over.set()
    thread.join()
    assert same_state(pruned.model, alone.model)


@pytest.mark.slow
def test_an_interruption_at_any_time_leaves_no_trace():
    """Real signals, spread evenly over the time that a prune takes."""
    model = tiny_model()
    before, state = traces(model), {name: value.clone() for name, value in model.state_dict().items()}
    seconds, interrupted, is_pruning = prune(model).result.seconds, 0, threading.Event()

    def interrupt(*_):
        if is_pruning.is_set():  # a signal that comes after the prune must not stop the test
            raise KeyboardInterrupt

    previous = signal.signal(signal.SIGALRM, interrupt)
    try:
        for part in range(1, 21):
            is_pruning.set()
            try:
                signal.setitimer(signal.ITIMER_REAL, seconds * part / 20)
                prune(model)
                is_pruning.clear()
            except KeyboardInterrupt:
                interrupted += 1
            assert traces(model) == before
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    assert interrupted >= 10
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(output.isfinite().all() for output in outputs_of(model, pad(SAMPLES)))
