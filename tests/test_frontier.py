"""Quality against size: the table, the file, and the means over several draws."""

import json
import math
import statistics
from dataclasses import replace
from html import escape

import pytest
from frontiers import frontier

from optimum_kprune.frontier import Frontier


def test_a_frontier_is_data_that_json_can_hold():
    found = json.loads(json.dumps(frontier().to_dict()))
    assert found["dense"]["quality"] == 0.9
    assert [point["parameters"] for point in found["points"]] == [800, 400]


def test_the_chosen_point_is_there_if_one_was_chosen():
    assert frontier().chosen_point.budget == "40% flops"
    assert frontier(chosen=0).chosen_point.budget == "80% flops"
    assert frontier(chosen=None).chosen_point is None
    assert repr(frontier()) == "Frontier(accuracy, 80% flops, 40% flops, chosen: 40% flops)"


# Tables


def test_the_table_has_a_row_per_model_and_the_columns_that_were_measured():
    heads, rows = frontier().table()
    assert heads == [
        "model", "FLOPs", "parameters", "MB", "accuracy", "agreement, held out", "divergence, held out"
    ]  # fmt: skip
    assert rows == [
        ["dense", "100.0%", "1,000", "4.0", "0.9000 ± 0.02", "", ""],
        ["80% flops", "80.0%", "800", "3.2", "0.8500 ± 0.02", "0.9000 ± 0.03", "0.500 ± 0.04"],
        ["40% flops (chosen)", "40.0%", "400", "1.6", "0.7500 ± 0.02", "0.8000 ± 0.03", "0.500 ± 0.04"],
    ]
    heads, rows = frontier(milliseconds=[10, 8, 4.5]).table()
    assert [row[heads.index("ms")] for row in rows] == ["10.00", "8.00", "4.50"]


def test_the_table_without_labels_has_the_agreement_once():
    heads, _ = replace(frontier(), measure="agreement").table()
    assert heads == ["model", "FLOPs", "parameters", "MB", "agreement", "divergence, held out"]


def test_a_console_shows_aligned_columns_and_what_belongs_to_them():
    shown = str(frontier(notes=["The data is small."], conditions="batch 1, a laptop"))
    header, *rows, floor, error, conditions, note = shown.splitlines()
    assert len(rows) == 3 and len({len(line) for line in [header, *rows[1:]]}) == 1
    assert floor == "Least accuracy allowed: 0.8." and error == "± gives one standard error."
    assert conditions == "Milliseconds: batch 1, a laptop." and note == "The data is small."
    assert "Greatest accuracy allowed: 0.8." in str(frontier(greater_is_better=False))
    assert "allowed" not in str(frontier(floor=None))


def test_a_notebook_shows_the_same_table_escaped():
    points = [replace(point, budget=f"<b>{point.budget}") for point in frontier().points]
    one = replace(frontier(notes=["a < b"]), measure="<b>f1</b>", points=points)
    html, (heads, rows) = one._repr_html_(), one.table()
    assert "<b>" not in html and "a &lt; b" in html and html.count("<tr>") == 1 + len(rows)
    assert [cell for row in [heads, *rows] for cell in row if escape(cell) not in html] == []


def test_a_data_frame_has_a_row_per_model():
    table = frontier().to_pandas()
    assert list(table["budget"]) == ["dense", "80% flops", "40% flops"]
    assert list(table["chosen"]) == [False, False, True]
    assert list(table["quality"]) == list(table["accuracy"]) == [0.9, 0.85, 0.75]
    assert list(table["closeness"][1:]) == pytest.approx([0.9, 0.8]) and math.isnan(table["closeness"][0])


# Files


@pytest.mark.parametrize(
    "one", [frontier(), frontier(chosen=None, floor=None), Frontier.joined([frontier(), frontier(0.8)])]
)
def test_saved_equals_loaded(one, tmp_path):
    one.save(tmp_path / "frontier.json")
    assert Frontier.load(tmp_path / "frontier.json") == one
    frontier(notes=["newer"]).save(tmp_path / "frontier.json")
    assert Frontier.load(tmp_path / "frontier.json").notes == ["newer"]
    assert [path.name for path in tmp_path.iterdir()] == ["frontier.json"]


def test_a_figure_that_is_not_finite_is_not_saved(tmp_path):
    frontier().save(tmp_path / "frontier.json")
    with pytest.raises(ValueError, match="JSON"):
        frontier(math.nan).save(tmp_path / "frontier.json")
    assert Frontier.load(tmp_path / "frontier.json") == frontier()


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", "{", '{"dense": 1, "points": [], "measure": "f1"}']
    + [
        json.dumps(frontier().to_dict() | change)
        for change in ({"points": 1}, {"more": 1}, {"chosen": 2}, {"chosen": -1})
    ]
    + [json.dumps(frontier().to_dict()).replace("0.85", '"0.85"')],
)
def test_another_file_is_refused(text, tmp_path):
    (tmp_path / "other.json").write_text(text)
    with pytest.raises(ValueError, match=r"other.json' must be a JSON file that `Frontier.save` wrote"):
        Frontier.load(tmp_path / "other.json")
    with pytest.raises(FileNotFoundError):
        Frontier.load(tmp_path / "none.json")


# Several draws


def test_several_draws_are_joined_to_their_means_and_standard_deviations():
    qualities = [0.85, 0.8, 0.87]
    joined = Frontier.joined([frontier(quality) for quality in qualities])
    point, mean = joined.points[0], statistics.fmean(qualities)
    assert point.quality == pytest.approx(mean) == point.figures["accuracy"]
    assert point.spread["quality"] == point.quality_range == pytest.approx(statistics.stdev(qualities))
    assert point.quality_error == pytest.approx(0.02) and point.draws == 3
    assert point.heldout.closeness == pytest.approx(mean + 0.05)
    assert point.heldout.closeness_error == pytest.approx(0.03 / math.sqrt(3)) and point.heldout.samples == 300
    assert point.spread["closeness"] == pytest.approx(point.spread["quality"]) and point.spread["divergence"] == 0
    assert point.parameters == 800 and point.megabytes == pytest.approx(3.2) and point.milliseconds is None
    assert joined.dense.quality == 0.9 and joined.dense.heldout is None
    assert (joined.chosen, joined.seconds) == (1, 60) and joined.floor == pytest.approx(0.8)
    assert "Means and standard deviations over 3 draws" in str(joined) and "standard error" not in str(joined)
    assert f"0.8400 ± {statistics.stdev(qualities):.2g}" in str(joined)


def test_what_differs_between_draws_is_not_said_of_their_mean():
    times = [10, 8, 4]
    joined = Frontier.joined([frontier(milliseconds=times), frontier(chosen=0, floor=None, notes=["a", "b"])])
    assert joined.chosen is joined.floor is None and joined.notes == ["a", "b"]
    assert all(point.milliseconds is None for point in [joined.dense, *joined.points])
    assert Frontier.joined([frontier(floor=0.8), frontier(floor=0.7)]).floor == pytest.approx(0.75)


@pytest.mark.parametrize("others", [
    [],
    [replace(frontier(), measure="f1")],
    [frontier(conditions="another machine")],
    [replace(frontier(), points=frontier().points[:1])],
    [Frontier.joined([frontier(), frontier()])],
])  # fmt: skip
def test_only_like_frontiers_are_joined(others):
    with pytest.raises(ValueError, match="`joined` takes two or more frontiers of one draw each, to the same budgets"):
        Frontier.joined([frontier(), *others])
