"""A model that is entered at or inside any block gives the same outputs."""

import pytest
import torch
from prunes import prune
from tiny import FAMILIES, LAYERS, encoder_of, pad, ragged_samples, samples_for, tiny_model
from torch import nn

from optimum_kprune.encoder.hooks import recorded_states
from optimum_kprune.encoder.partial_forward import find_entries, run
from optimum_kprune.encoder.sublayers import Place


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_entered_at_any_block_gives_the_same_outputs(family):
    model = tiny_model(family, "token classification").eval()
    encoder, batch = encoder_of(model), pad(samples_for(model, 5))
    with torch.no_grad():
        whole = model(**batch, output_hidden_states=True)
        for index in range(LAYERS + 1):
            entered = run(encoder, batch, Place(index), whole.hidden_states[index])
            assert torch.equal(entered.logits, whole.logits)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_entered_inside_any_block_gives_the_same_outputs(family):
    model = tiny_model(family, "token classification").eval()
    encoder, batch = encoder_of(model), pad(samples_for(model, 5))
    encoder.entries = find_entries(encoder, batch)
    assert list(encoder.entries) == [Place(layer, 1) for layer in range(LAYERS)]
    with torch.no_grad():
        whole = model(**batch)
        for place in encoder.entries:
            with recorded_states(encoder, place) as states:
                run(encoder, batch)
            entered = run(encoder, batch, place, states[0])
            assert torch.equal(entered.logits, whole.logits)


def test_where_a_block_cannot_be_entered_inside_the_result_is_the_same(monkeypatch):
    expected = prune(tiny_model(), compression_rate=0.6)
    monkeypatch.setattr("optimum_kprune.prune.sweep.find_entries", lambda *_: {})
    found = prune(tiny_model(), compression_rate=0.6)
    assert found.result.kept == expected.result.kept
    assert [entry.error for entry in found.result.sublayers] == pytest.approx(
        [entry.error for entry in expected.result.sublayers], rel=1e-4
    )


def test_a_way_in_that_gives_something_else_is_not_taken(caplog):
    """Here the block adds something between its sublayers, behind the norm, that no module returns."""

    class Odd(nn.Module):
        def __init__(self, block):
            super().__init__()
            self.attention, self.intermediate, self.output = block.attention, block.intermediate, block.output

        def forward(self, hidden, *args, **kwargs):
            attended = self.attention(hidden, *args, **kwargs)[0]
            scaled = 1.5 * attended + hidden
            return self.output(self.intermediate(scaled), scaled)

    model = tiny_model().eval()
    model.bert.encoder.layer[1] = Odd(model.bert.encoder.layer[1])
    entries = find_entries(encoder_of(model), pad(ragged_samples(3)))
    assert list(entries) == [Place(0, 1), Place(2, 1)]
    assert "1 of 3 sublayers of this bert cannot be entered" in caplog.text
