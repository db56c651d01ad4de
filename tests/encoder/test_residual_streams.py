"""Residual streams: what a sublayer adds is read by a later module, and is not held longer than that."""

from dataclasses import replace

import pytest
import torch
from tiny import FAMILIES, encoder_of, pad, ragged_samples, tiny_model

from optimum_kprune.encoder import residual_streams
from optimum_kprune.encoder.hooks import SublayerRecord
from optimum_kprune.encoder.residual_streams import READERS, require_residual_streams
from optimum_kprune.encoder.sublayers import Encoder


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_streams_are_read_and_few_are_held_at_once(family, monkeypatch):
    held, most = [], []

    class Watched(residual_streams._Stream):
        def __init__(self, *args):
            super().__init__(*args)
            held.append(self)
            most.append(sum(stream._sum is not None for stream in held))

    monkeypatch.setattr(residual_streams, "_Stream", Watched)
    encoder = encoder_of(tiny_model(family).eval())
    require_residual_streams(encoder, encoder.sublayers(), pad(ragged_samples(2)))
    assert len(held) == len(encoder.sublayers()) and max(most) == 1
    assert not any(stream._sum is not None for stream in held)


@torch.no_grad()
def test_a_sublayer_that_adds_something_else_is_named():
    encoder = encoder_of(tiny_model().eval())
    attention, ffn = encoder.adapter.sublayers
    other = replace(encoder.adapter, sublayers=(attention, replace(ffn, scale=0.5)))
    wrong = Encoder(encoder.model, other)
    with pytest.raises(ValueError, match="The output of layer 0 ffn must be added to the residual stream"):
        require_residual_streams(wrong, wrong.sublayers(), pad(ragged_samples(2)))


@pytest.mark.parametrize("others", [0, READERS - 1, READERS])
def test_a_stream_must_be_read_soon(others):
    record = SublayerRecord()
    record.residual, record.added = torch.ones(1, 2, 4), torch.full((1, 2, 4), 2.0)
    stream = residual_streams._Stream(encoder_of(tiny_model()).sublayers()[0], record)
    for value in [*[torch.zeros(1, 2, 4)] * others, torch.full((1, 2, 4), 3.0)]:
        stream.compare(value)
    assert stream.is_read == (others < READERS) and stream._sum is None
