"""How many tokens a batch may have, on devices that a stand-in tells of: there is no accelerator here."""

from types import SimpleNamespace

import pytest
import torch
from tiny import encoder_of, tiny_model

from optimum_kprune import KPruner
from optimum_kprune.defaults import FULL_BATCH
from optimum_kprune.encoder import batch_tokens as module
from optimum_kprune.encoder.batch_tokens import MOST_TOKENS, batch_tokens, held_bytes


def on_accelerator(monkeypatch, free, model=None):
    """The encoder of a model on an accelerator with so many bytes free; None for one that does not tell."""
    known = {} if free is None else {"mem_get_info": lambda device: (free, 2 * free)}
    monkeypatch.setattr(torch, "get_device_module", lambda device: SimpleNamespace(**known))
    encoder = encoder_of(tiny_model() if model is None else model)
    encoder.device = torch.device("cuda")
    return encoder


def test_a_cpu_takes_full_batches():
    assert batch_tokens(encoder_of(tiny_model())) == FULL_BATCH


@pytest.mark.parametrize("tokens", [100, 512, 1000, 1024, 5000, 10**6])
def test_an_accelerator_takes_what_half_of_its_free_memory_holds(tokens, monkeypatch):
    held = held_bytes(encoder_of(tiny_model()))
    found = batch_tokens(on_accelerator(monkeypatch, 2 * tokens * held))
    assert found == {100: FULL_BATCH, 512: 512, 1000: 512, 1024: 1024, 5000: 4096, 10**6: MOST_TOKENS}[tokens]


def test_a_device_that_does_not_tell_its_memory_takes_full_batches(monkeypatch):
    assert batch_tokens(on_accelerator(monkeypatch, None)) == FULL_BATCH


def test_processes_take_what_the_fullest_device_holds(monkeypatch):
    monkeypatch.setattr(module, "gather", lambda own: [own, 640])
    assert batch_tokens(on_accelerator(monkeypatch, 10**12)) == 640


@pytest.mark.parametrize("options", [{}, {"num_hidden_layers": 6}, {"intermediate_size": 512}, {"hidden_size": 64}])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_what_is_counted_is_at_least_what_a_backward_pass_holds(options, attention):
    """And at most five times as much, on rows of the length that is counted."""
    model = tiny_model(attn_implementation=attention, **options).eval().requires_grad_(False)
    encoder = encoder_of(model)
    rows = torch.full((2, encoder.config.max_position_embeddings), 7)
    held = {}

    def hold(tensor):
        held[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    hidden = model.bert.embeddings(input_ids=rows).requires_grad_()
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    with torch.autograd.graph.saved_tensors_hooks(hold, lambda tensor: tensor):
        model(inputs_embeds=hidden)
    saved = sum(size for pointer, size in held.items() if pointer not in weights) / rows.numel()
    assert saved <= held_bytes(encoder) <= 5 * saved


def test_batches_are_larger_where_weights_are_loaded_for_each(tmp_path):
    tiny_model().save_pretrained(tmp_path / "model")
    placed = KPruner.from_pretrained(tmp_path / "model", device_map={"": "disk"}, offload_folder=tmp_path / "weights")
    assert batch_tokens(placed._encoder(placed.teacher)) == 2 * FULL_BATCH
