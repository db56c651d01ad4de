"""Tables of latency as data: curves, sums, files, and what a table belongs to."""

import json
from dataclasses import asdict, replace

import pytest

from optimum_kprune.latency_table import LatencyCurve, LatencyTable, SublayerShape

HEADS = LatencyCurve(0, 8, 32, (0, 1, 4), (0.0, 0.5, 2.0))
NEURONS = LatencyCurve(1, 1, 32, (0, 8, 16, 64), (0.0, 0.4, 0.2, 1.0), multiple=8)
SHAPES = tuple(
    SublayerShape(layer, position, kind, units, size, 32)
    for layer in range(2)
    for position, (kind, units, size) in enumerate([("attention", 4, 8), ("ffn", 64, 1)])
)
TABLE = LatencyTable(
    machine="a processor",
    device="cpu",
    threads=1,
    dtype="float32",
    runtime="pytorch",
    batch_size=1,
    sizes=(128,),
    versions={"torch": "2.13"},
    model_class="BertForSequenceClassification",
    model_type="bert",
    sublayers=SHAPES,
    dense=7.0,
    base=1.0,
    curves=(HEADS, NEURONS),
)
MODEL = dict(model_class=TABLE.model_class, model_type=TABLE.model_type, sublayers=SHAPES)
CONDITIONS = ("machine", "device", "threads", "dtype", "runtime", "batch_size", "sizes")


def test_a_curve_is_straight_between_measurements_and_0_where_the_sublayer_is_emptied():
    assert TABLE.curve((1, 0), 4) == pytest.approx([0, 0.5, 1.0, 1.5, 2.0])
    assert TABLE.curve((0, 0), 2) == pytest.approx([0, 0.5, 1.0])
    assert TABLE.curve((0, 0), 0) == [0]


def test_a_curve_never_falls_and_is_the_closest_that_does_not():
    rising = TABLE.curve((0, 1), 64)
    assert len(rising) == 65 and rising == sorted(rising)
    # The two that fall become their mean.
    assert [rising[units] for units in (0, 4, 8, 12, 16, 40, 64)] == pytest.approx([0, 0.15, 0.3, 0.3, 0.3, 0.65, 1])


def test_a_sublayer_that_must_keep_a_unit_costs_nothing_more_with_it():
    curve = LatencyCurve(0, 8, 32, (1, 3), (0.0, 1.0))
    assert replace(TABLE, curves=(curve._replace(units=(1, 4)), NEURONS)).curve((0, 0), 4)[:2] == [0, 0]


def test_the_milliseconds_of_a_model_are_its_base_and_its_sublayers():
    assert TABLE.milliseconds([0, 0, 0, 0]) == 1
    assert TABLE.milliseconds([4, 64, 1, 16]) == pytest.approx(1 + 2 + 1 + 0.5 + 0.3)
    with pytest.raises(ValueError):
        TABLE.milliseconds([4, 64])


def test_sublayers_of_many_widths_share_a_curve_and_emptied_ones_need_none():
    pruned = (SHAPES[0]._replace(units=3), SHAPES[1], SHAPES[2]._replace(units=0, unit_size=1), SHAPES[3])
    table = replace(TABLE, sublayers=pruned)
    assert table.curve((0, 0), 3) == TABLE.curve((0, 0), 3) and table.curve((1, 0), 0) == [0]
    assert table.milliseconds([1, 0, 0, 64]) == pytest.approx(1 + 0.5 + 1)
    with pytest.raises(ValueError, match="at most 3"):
        table.curve((0, 0), 4)


def test_the_multiple_is_that_of_the_curve():
    assert [TABLE.multiple((1, 0)), TABLE.multiple((1, 1))] == [1, 8]
    with pytest.raises(ValueError, match=r"Got \(2, 0\)"):
        TABLE.multiple((2, 0))


def test_a_saved_table_is_read_as_it_was(tmp_path):
    TABLE.save(tmp_path / "table.json")
    read = LatencyTable.load(tmp_path / "table.json")
    assert read == TABLE and read.digest == TABLE.digest
    assert json.loads((tmp_path / "table.json").read_text())["format"] == 1


@pytest.mark.parametrize("name", list(asdict(TABLE)))
def test_a_digest_covers_every_field(name):
    changed = {"versions": {}, "sublayers": SHAPES[:3], "curves": (HEADS, NEURONS._replace(multiple=1))}
    changed |= {"threads": 2, "batch_size": 2, "sizes": (64,), "dense": 8.0, "base": 2.0, "runtime": "onnxruntime"}
    other = replace(TABLE, **{name: changed.get(name, "other")})
    assert other.digest != TABLE.digest and len(TABLE.digest) == 32


BROKEN = {
    "no JSON": "{",
    "another JSON": "[1, 2]",
    "an object": "{}",
    "another version": '{"format": 2}',
}


@pytest.mark.parametrize("text", BROKEN.values(), ids=BROKEN)
def test_a_file_that_is_no_table_is_refused(text, tmp_path):
    (tmp_path / "table.json").write_text(text)
    with pytest.raises(ValueError, match=r"table.json' is no latency table that can be read.*measure_latency"):
        LatencyTable.load(tmp_path / "table.json")


@pytest.mark.parametrize(
    "change",
    [
        {"format": 2},
        {"dense": "fast"},
        {"dense": -1},
        {"base": float("nan")},
        {"runtime": "javascript"},
        {"curves": []},
        {"curves": [HEADS._asdict(), NEURONS._asdict() | {"milliseconds": [1.0]}]},
        {"curves": [HEADS._asdict() | {"units": [0, 1, 3]}, NEURONS._asdict()]},
        {"curves": [HEADS._asdict() | {"units": [0, 4, 1]}, NEURONS._asdict()]},
        {"curves": [HEADS._asdict(), NEURONS._asdict() | {"multiple": 2.5}]},
        {"sizes": []},
        {"batch_size": "1"},
        {"colour": "red"},
    ],
    ids=str,
)
def test_a_table_whose_values_make_no_sense_is_refused(change, tmp_path):
    TABLE.save(tmp_path / "table.json")
    fields = json.loads((tmp_path / "table.json").read_text()) | change
    (tmp_path / "table.json").write_text(json.dumps(fields))
    with pytest.raises(ValueError, match="is no latency table that can be read"):
        LatencyTable.load(tmp_path / "table.json")


def test_no_file_is_no_table(tmp_path):
    with pytest.raises(FileNotFoundError):
        LatencyTable.load(tmp_path / "none.json")


def test_a_table_fits_what_it_was_measured_with():
    TABLE.require_fit(**MODEL)
    TABLE.require_fit(**MODEL, **{name: getattr(TABLE, name) for name in CONDITIONS})


@pytest.mark.parametrize("name", CONDITIONS)
def test_a_table_of_other_conditions_is_refused_by_name(name):
    with pytest.raises(ValueError, match=f"{name} is .* in the table and 'other' here"):
        TABLE.require_fit(**MODEL, **{name: "other"})


def test_a_table_of_another_model_is_refused_and_every_difference_is_named():
    with pytest.raises(ValueError) as refused:
        TABLE.require_fit(model_class="BertForMaskedLM", model_type="roberta", sublayers=SHAPES[:3], threads=4)
    for part in (
        "threads is 1 in the table and 4 here",
        "model_type is 'bert' in the table and 'roberta' here",
        "model_class is 'BertForSequenceClassification' in the table and 'BertForMaskedLM' here",
        "2 attention sublayers of 4 units of 8 (d = 32), 2 ffn sublayers of 64 units of 1 (d = 32), and the model has",
        "1 ffn sublayers of 64 units",
    ):
        assert part in str(refused.value)
