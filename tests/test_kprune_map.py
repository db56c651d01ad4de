"""The map `kprune`: how units are written in it, and what must hold before it is followed."""

import re
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny import tiny_model
from torch import nn

from optimum_kprune import EncoderAdapter, KPruner, SublayerAdapter, register_adapter
from optimum_kprune.encoder import adapters
from optimum_kprune.encoder.layouts import BERT
from optimum_kprune.kprune_map import check_structure, format_units, parse_units
from optimum_kprune.kprune_shrink import shrink_sublayer

# The units in the config


@pytest.mark.parametrize(
    ("units", "text"), [([], ""), ([0], "0"), ([0, 1, 2, 3, 7, 9, 10, 11], "0-3,7,9-11"), ([5, 7], "5,7")]
)
def test_units_round_trip(units, text):
    assert format_units(units) == text
    assert parse_units(text, 12) == units


@pytest.mark.parametrize("text", ["a", "3-1", "1,,2", "-1", "4,2", "1,1", "0-3,", "1-2-3", "0, 2"])
def test_units_that_are_no_ranges_are_refused(text):
    with pytest.raises(ValueError, match="Kept units must be"):
        parse_units(text, 12)


# Units


@pytest.mark.parametrize("text", ["0-20000000", "0-9999999999999999999", "9" * 5000, "0-11," * 100_000, "0-12", "٣"])
def test_ranges_are_bounded_before_they_are_expanded(text):
    with pytest.raises(ValueError, match="below 12"):
        parse_units(text, 12)


# Adapters of others


def changed(**fields):
    """BERT's adapter with another attention sublayer."""
    return EncoderAdapter("encoder.layer", (SublayerAdapter(**{**BERT.to_dict()["sublayers"][0], **fields}),))


@pytest.mark.parametrize(
    ("adapter", "message"),
    [
        (5, "EncoderAdapter"),
        (BERT.to_dict(), "EncoderAdapter"),
        (EncoderAdapter("x", 5), "SublayerAdapter"),
        (EncoderAdapter("x", (BERT.to_dict(),)), "SublayerAdapter"),
        (EncoderAdapter("x", ()), "at least one sublayer"),
        (EncoderAdapter(5, BERT.sublayers), r"adapter\.blocks` must be of type str\. Got 5"),
        (changed(kind="conv"), r"sublayers\[0\]\.kind` must be one of .*'attention'.*Got 'conv'"),
        (changed(inputs=["x"]), r"inputs` must be of type dict"),
        (changed(inputs={"x": 0}), r"inputs` must give the number of projections"),
        (changed(counts={"x": "heads"}), "'units' or 'features'"),
        (changed(returns_tuple="yes"), "of type bool or int"),
        (changed(returns_tuple=-1), "or a number of items"),
        (changed(tensors={"x": "0"}), r"tensors` must give the dimension"),
        (changed(arguments=["x"]), r"arguments` must be of type dict"),
        (changed(uncorrected=("x",)), r"uncorrected` must name inputs"),
        (changed(scale=None), "of type int or float or str"),
        (replace(BERT, handed_on={"x": 1}), r"handed_on` must map names to names"),
        (replace(BERT, front="x"), r"front` must be of type list"),
    ],
)
def test_an_adapter_of_the_wrong_form_is_refused(adapter, message, own_adapters):
    with pytest.raises(ValueError, match=message):
        register_adapter("mine", adapter)
    with pytest.raises(ValueError, match="No adapter"):
        adapters.get_adapter("mine")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"output": "attention.output.x"}, "projection 'attention.output.x' of layer 0 .* no such module"),
        ({"output": "attention.output"}, r"plain `nn\.Linear`.*Got .*BertSelfOutput"),
        ({"inputs": {"attention.self.query": 3}}, r"24 columns.*Got 'attention.output.dense' of shape \(32, 32\)"),
        ({"inputs": {"intermediate.dense": 1}}, "lie in 'attention.self'"),
        ({"inputs": {"attention.output.dense": 1}}, "lie in 'attention.self'"),
        ({"residual": "nothing"}, "residual of layer 0 attention` must name a submodule"),
        ({"bypass": "nothing"}, "bypass of layer 0 attention` must name a submodule"),
        ({"counts": {"attention.self.scaling": "units"}}, "number 4 of its units"),
    ],
)
def test_an_adapter_that_does_not_fit_the_model_is_told_before_any_work(fields, message, own_adapters, monkeypatch):
    monkeypatch.setitem(adapters._ADAPTERS, "bert", (changed(**fields),))
    with pytest.raises(ValueError, match=message):
        KPruner(tiny_model())


class Part(nn.ModuleDict):
    """Two projections and what else lies in the part."""

    def __init__(self, **modules):
        super().__init__({"in": nn.Linear(4, 4), "out": nn.Linear(4, 4), **modules})


def ffn(name):
    inside = SublayerAdapter("ffn", {f"{name}.in": 1}, f"{name}.out", f"{name}.in", name)
    return EncoderAdapter("blocks", (inside,)).to_dict()["sublayers"][0]


def test_counts_may_be_attributes_of_the_block_itself():
    block = nn.ModuleDict({"a": Part()})
    block.width = 4
    config = SimpleNamespace(num_attention_heads=2, hidden_size=4)
    model = SimpleNamespace(base_model=nn.ModuleDict({"blocks": nn.ModuleList([block])}), config=config)
    sublayer = ffn("a") | {"counts": {"width": "units"}}
    check_structure(model, {"blocks": "blocks", "sublayers": [sublayer]})
    shrink_sublayer(block, sublayer, [0, 3], 4)
    assert block.width == 2


@pytest.mark.parametrize(
    ("names", "message"), [("ac", None), ("aa", "not share submodules"), (("a", "a.b"), "not lie in one another")]
)
def test_sublayers_lie_apart(names, message):
    """What lies in another would be gone when that is emptied."""
    blocks = nn.ModuleList([nn.ModuleDict({"a": Part(b=Part()), "c": Part()})])
    config = SimpleNamespace(num_attention_heads=2, hidden_size=4)
    model = SimpleNamespace(base_model=nn.ModuleDict({"blocks": blocks}), config=config)
    adapter = {"blocks": "blocks", "sublayers": [ffn(name) for name in names]}
    with pytest.raises(ValueError, match=message) if message else nullcontext():
        check_structure(model, adapter)


# What is written


@given(st.sets(st.integers(0, 400)))
def test_units_are_read_as_they_were_written(units):
    assert parse_units(format_units(list(units)), 401) == sorted(units)


@given(st.text("0123,- ²٣", max_size=7))
def test_text_is_read_only_if_it_is_what_is_written(text):
    """Nothing else than whole ranges of ASCII digits, and of them only those that are written for these units."""
    ranges = re.fullmatch(r"(\d+(-\d+)?(,\d+(-\d+)?)*)?", text, re.ASCII) and re.findall(r"(\d+)(?:-(\d+))?", text)
    units = {unit for start, end in ranges or () for unit in range(int(start), min(int(end or start), 400) + 1)}
    if ranges is not None and units <= set(range(400)) and format_units(sorted(units)) == text:
        assert parse_units(text, 400) == sorted(units)
    else:
        with pytest.raises(ValueError, match="Kept units must be"):
            parse_units(text, 400)
