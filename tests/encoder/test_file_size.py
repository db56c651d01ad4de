"""Bytes of a file of weights, against files that were written."""

import pytest
import torch
from tiny import tiny_model
from zoo import build

from optimum_kprune.encoder.file_size import file_size, saved_tensors

MODELS = {
    "bert": lambda: tiny_model(),
    "tied": lambda: tiny_model(head="masked language model"),
    "no biases": lambda: build("t5"),
    "repeated": lambda: build("albert"),
    "buffers": lambda: build("swin"),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", MODELS)
def test_the_size_is_that_of_the_file(name, dtype, tmp_path):
    model = MODELS[name]().to(dtype)
    # With the names of the modules, as pruned models are saved.
    model.save_pretrained(tmp_path, save_original_format=False)
    written = (tmp_path / "model.safetensors").stat().st_size
    assert file_size(saved_tensors(model)) == written


def test_parameters_can_be_counted_in_another_dtype(tmp_path):
    model = build("swin")
    sizes = [file_size(saved_tensors(model, dtype)) for dtype in (torch.float32, torch.float64)]
    assert sizes[1] - sizes[0] == pytest.approx(4 * model.num_parameters(), rel=0.01)


def test_weights_on_no_device_have_a_size():
    model = tiny_model(head="masked language model")
    size = file_size(saved_tensors(model))
    assert file_size(saved_tensors(model.to("meta"))) == size
