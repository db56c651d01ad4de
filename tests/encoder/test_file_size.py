"""Bytes of a file of weights, against files that were written."""

import pytest
import torch
from tiny import tiny_model
from torch import nn
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


def test_what_is_shared_is_counted_once_and_only_parameters_change_their_dtype():
    """In any module: transformers knows which tensors it ties, others do not say."""
    module = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    module[1].weight = module[0].weight
    module.register_buffer("saved", torch.zeros(3, dtype=torch.int64))
    module.register_buffer("not_saved", torch.zeros(5), persistent=False)
    assert list(saved_tensors(module, torch.bfloat16)) == [
        ("saved", (3,), torch.int64),
        ("0.weight", (4, 4), torch.bfloat16),
    ]


def test_weights_on_no_device_have_a_size():
    model = tiny_model(head="masked language model")
    size = file_size(saved_tensors(model))
    assert file_size(saved_tensors(model.to("meta"))) == size
