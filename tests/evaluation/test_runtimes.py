"""How models are run where they are timed: on which runtime, on which inputs, by how many threads."""

import importlib.util
import logging
import time

import pytest
import torch
from shrunk import pruned_model
from tiny import outputs_of, tiny_model
from zoo import batch_of, build

from optimum_kprune.evaluation import runtimes
from optimum_kprune.evaluation.runtimes import Bench, Timing, conditions_here

TEXT = "text-classification"


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(1, 9), (3, 5)])
def test_onnx_runtime_runs_what_pytorch_runs(shape, capsys, caplog):
    model = pruned_model(tiny_model())
    bench = Bench(model, TEXT, Timing(*shape, threads=2, runtime="onnxruntime"))
    run = bench.runnable(model)
    assert bench.inputs["input_ids"].shape == shape
    torch.testing.assert_close(run()["logits"], outputs_of(model, bench.inputs)[0], rtol=1e-4, atol=1e-5)
    assert run.func.runners["model"].session.get_session_options().intra_op_num_threads == 2
    # What an exporter tells is kept from standard output and the log.
    assert not capsys.readouterr().out
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_a_runtime_that_is_not_installed_is_named_before_any_work(monkeypatch):
    there = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if "onnx" in name else there(name))
    monkeypatch.setattr(runtimes, "timed_inputs", None)
    with pytest.raises(ValueError, match=r"needs onnx, onnxscript, onnxruntime.*'optimum-kprune\[onnx\]'"):
        Bench(tiny_model(), TEXT, Timing(runtime="onnxruntime"))


REFUSED = {
    "`runtime` must be one of pytorch, onnxruntime. Got 'javascript'": Timing(runtime="javascript"),
    "`batch_size` must be a whole number": Timing(batch_size=0),
    "`threads` must be a whole number": Timing(threads=-1),
    "`length` must be a whole number": Timing(length=2.5),
    "`length` must be at most 40, the longest input of the model. Got 41": Timing(length=41),
}


@pytest.mark.parametrize("message", REFUSED)
def test_options_that_cannot_be_used_are_refused(message):
    with pytest.raises(ValueError, match=message):
        Bench(tiny_model(), TEXT, REFUSED[message])


def test_a_length_is_for_texts():
    with pytest.raises(ValueError, match=r"`length` is for texts\. Got 9 for a model that reads `pixel_values`"):
        Bench(build("vit"), TEXT, Timing(length=9))


def test_onnx_runtime_is_timed_in_float32():
    with pytest.raises(ValueError, match=r"in float32\. Got a model in bfloat16"):
        Bench(tiny_model().to(torch.bfloat16), TEXT, Timing(runtime="onnxruntime"))


def test_offloaded_weights_are_not_timed():
    with pytest.raises(ValueError, match="whose weights are offloaded"):
        Bench(tiny_model().to("meta"), TEXT, Timing())


def test_images_are_those_of_the_calibration_data_or_of_the_config():
    model, sample = build("vit"), batch_of("vit")
    inputs = Bench(model, "image-classification", Timing(batch_size=3), sample).inputs
    assert torch.equal(inputs["pixel_values"], sample["pixel_values"][:1].repeat(3, 1, 1, 1))
    bench = Bench(model, "image-classification", Timing(batch_size=3))
    assert bench.inputs["pixel_values"].shape == (3, 3, 16, 16) and bench.conditions["sizes"] == (3, 16, 16)


def test_texts_are_as_long_as_asked_for_and_none_of_it_is_padding():
    inputs = Bench(tiny_model(), TEXT, Timing(4, 7)).inputs
    assert inputs["input_ids"].shape == (4, 7) and bool(inputs["attention_mask"].all())
    # 128 tokens are more than this model can read.
    assert Bench(tiny_model(), TEXT, Timing()).inputs["input_ids"].shape == (1, 40)
    assert Bench(tiny_model(head="multiple choice"), "multiple-choice", Timing(2, 7)).conditions["sizes"] == (2, 7)


def test_threads_are_set_while_models_run_and_restored():
    before, seen = torch.get_num_threads(), []
    bench = Bench(tiny_model(), TEXT, Timing(threads=before + 1))
    assert bench.in_turns([lambda: seen.append(torch.get_num_threads())], 2, 0.0)[0] > [0.0, 0.0]
    assert set(seen) == {before + 1} == {bench.conditions["threads"]}
    with pytest.raises(ZeroDivisionError):
        bench.in_turns([lambda: 1 / 0], 1, 0.0)
    assert torch.get_num_threads() == before


def test_one_thread_is_timed_while_it_runs_and_several_by_the_time_of_day():
    """A thread that sleeps, or that another process keeps from running, takes no time of its own."""
    for threads, is_counted in ((1, False), (2, True)):
        bench = Bench(tiny_model(), TEXT, Timing(threads=threads))
        assert (bench.in_turns([lambda: time.sleep(0.05)], 1, 0.0)[0][0] >= 0.05) is is_counted


def test_the_threads_of_this_process_do_not_matter_to_onnx_runtime():
    here = {"machine", "device", "dtype"}
    assert set(conditions_here(tiny_model(), "onnxruntime")) == here
    assert set(conditions_here(tiny_model(), "pytorch")) == here | {"threads"}
