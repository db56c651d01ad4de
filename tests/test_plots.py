"""Pictures: what is drawn where, and that they are files like others."""

import sys
from dataclasses import replace

import matplotlib
import pytest
from frontiers import frontier, result_with

from optimum_kprune.frontier import Frontier
from optimum_kprune.plots import AXES, BLUE, GREY, draw_frontier, draw_kept

TIMES = [10.0, 8.0, 4.0]


def lines_of(axes):
    """The places of what is drawn, by its label."""
    return {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in axes.lines}


# Quality against size


def test_models_the_floor_and_the_chosen_one_are_where_they_are_measured():
    (axes,) = draw_frontier(frontier(), "flops").axes
    lines = lines_of(axes)
    assert lines["dense"] == ([100], [0.9])
    assert lines["pruned"] == ([80], [0.85])
    assert lines["chosen: 40% flops"] == ([40], [0.75])
    assert set(lines["least allowed: 0.8"][1]) == {0.8}
    assert axes.get_xlabel() == "FLOPs of heads and neurons left [%]" and axes.get_xlim()[0] == 0
    # One curve through all, from the smallest to the dense model.
    assert ([40, 80, 100], [0.75, 0.85, 0.9]) in lines.values()


def test_every_cost_that_was_measured_has_a_panel_in_its_unit():
    figure = draw_frontier(frontier(milliseconds=TIMES, conditions="batch 1, a laptop"))
    labels = [AXES[name].label for name in ("flops", "parameters", "megabytes")]
    assert [axes.get_xlabel() for axes in figure.axes] == [*labels, "forward pass [ms]\nbatch 1, a laptop"]
    places = [lines_of(axes)["chosen: 40% flops"][0][0] for axes in figure.axes]
    assert places == pytest.approx([40, 400e-6, 1.6, 4])
    assert len(draw_frontier(frontier()).axes) == 3
    assert [axes.get_xlabel() for axes in draw_frontier(frontier(), ["megabytes", "flops"]).axes] == [
        AXES["megabytes"].label,
        AXES["flops"].label,
    ]


def test_what_is_not_known_is_not_drawn():
    lines = lines_of(draw_frontier(frontier(floor=None, chosen=None), "flops").axes[0])
    assert lines["pruned"] == ([40, 80], [0.75, 0.85])
    assert not [label for label in lines if "allowed" in label or "chosen" in label]
    loss = draw_frontier(frontier(greater_is_better=False), "flops").axes[0]
    assert "greatest allowed: 0.8" in lines_of(loss)


def test_bars_are_standard_errors_of_one_draw_and_deviations_of_several():
    def heights(one):
        (axes,) = draw_frontier(one, "flops").axes
        bars = [segment for lines in axes.collections for segment in lines.get_segments()]
        tall = [(bar[1][1] - bar[0][1]) / 2 for bar in bars if bar[0][1] != bar[1][1]]
        return axes.get_ylabel(), tall

    assert heights(frontier()) == ("accuracy ± standard error", pytest.approx([0.02, 0.02, 0.02]))
    joined = Frontier.joined([frontier(0.86), frontier(0.84)])
    deviation = 0.02 / 2**0.5
    # The quality of the dense model is the same in every draw.
    assert heights(joined) == ("accuracy ± SD of 2 draws", pytest.approx([deviation, deviation]))


@pytest.mark.parametrize("against", ["milliseconds", "seconds", [], ["flops", "latency"]])
def test_what_was_not_measured_is_refused(against, tmp_path):
    with pytest.raises(ValueError, match=r"against what was measured: flops, parameters, megabytes\. Got "):
        frontier().plot(tmp_path / "frontier.png", against)
    assert not list(tmp_path.iterdir())


def test_a_frontier_without_quality_is_refused(tmp_path):
    dense, *points = (replace(point, quality=None) for point in (frontier().dense, *frontier().points))
    with pytest.raises(ValueError, match="nothing, without any quality"):
        Frontier(dense, points, "accuracy").plot(tmp_path / "frontier.png")


# What is left of every layer


def bars_of(axes, color):
    """(place, length) of the bars of a colour, from the bottom."""
    drawn = [bar for bar in axes.patches if matplotlib.colors.to_hex(bar.get_facecolor()) == color.lower()]
    return sorted((bar.get_y() + bar.get_height() / 2, bar.get_width()) for bar in drawn)


def test_every_layer_has_its_share_from_bottom_to_top():
    heads, neurons = draw_kept(result_with([(12, 25), (3, 0), (0, 100)])).axes
    assert bars_of(heads, BLUE) == [(0, 100), (1, 25), (2, 0)]
    assert bars_of(neurons, BLUE) == [(0, 25), (1, 0), (2, 100)]
    assert bars_of(neurons, GREY) == [(0, 100), (1, 100), (2, 100)]
    assert [text.get_text() for text in heads.texts] == ["12 of 12", "3 of 12", "none of 12"]
    assert (heads.get_title(), neurons.get_title()) == ("attention heads", "feed-forward neurons")
    assert list(heads.get_yticks()) == [0, 1, 2] and heads.get_ylim()[0] < 0 < 2 < heads.get_ylim()[1]


def test_blocks_of_one_and_of_three_sublayers_are_drawn():
    (neurons,) = draw_kept(result_with([(50,), (0,)], kinds=("ffn",))).axes
    assert bars_of(neurons, BLUE) == [(0, 50), (1, 0)]
    heads, neurons = draw_kept(result_with([(10, 6, 90), (20, 6, 80)], kinds=("ffn", "attention", "ffn"))).axes
    assert bars_of(heads, BLUE) == [(0, 50), (1, 50)]
    places, shares = zip(*bars_of(neurons, BLUE), strict=True)
    assert shares == (10, 90, 20, 80) and -0.5 < places[0] < 0 < places[1] < 0.5 < places[2] < 1 < places[3] < 1.5


def test_a_sublayer_that_was_empty_before_is_drawn_as_empty():
    assert bars_of(draw_kept(result_with([(0, 5)], totals=(0, 10))).axes[0], BLUE) == [(0, 0)]


def test_many_layers_have_room():
    few, many = (draw_kept(result_with([(6, 50)] * layers)).get_figheight() for layers in (2, 48))
    assert few < 2 and 48 * 0.12 < many < 48 * 0.25


# Files


@pytest.mark.parametrize("ending, start", [("png", b"\x89PNG"), ("svg", b"<?xml"), ("PDF", b"%PDF")])
def test_the_same_picture_is_the_same_file(ending, start, tmp_path):
    for name in ("one", "two"):
        frontier(milliseconds=TIMES).plot(tmp_path / f"{name}.{ending}")
        result_with([(6, 50)]).plot(tmp_path / f"kept-{name}.{ending}")
    for prefix in ("", "kept-"):
        one, two = ((tmp_path / f"{prefix}{name}.{ending}").read_bytes() for name in ("one", "two"))
        assert one == two and one.startswith(start)
        assert b"CreationDate" not in one and b"dc:date" not in one
    assert len(list(tmp_path.iterdir())) == 4


@pytest.mark.parametrize("name", ["frontier.jpg", "frontier", "png"])
def test_another_ending_is_refused(name, tmp_path):
    with pytest.raises(ValueError, match=r"must end with .png, .svg, .pdf\. Got"):
        frontier().plot(tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_the_style_of_the_user_neither_shows_nor_changes(tmp_path):
    frontier().plot(tmp_path / "plain.svg")
    with matplotlib.rc_context({"font.size": 30, "axes.facecolor": "black", "svg.hashsalt": "own"}):
        before = dict(matplotlib.rcParams)
        frontier().plot(tmp_path / "styled.svg")
        assert dict(matplotlib.rcParams) == before
    assert (tmp_path / "plain.svg").read_bytes() == (tmp_path / "styled.svg").read_bytes()


def test_a_picture_that_is_there_is_replaced_when_the_new_one_is_whole(tmp_path):
    path = tmp_path / "kept.png"
    path.write_bytes(b"old")
    with pytest.raises(ValueError, match="was measured"):
        frontier().plot(path, "milliseconds")
    assert path.read_bytes() == b"old"
    result_with([(6, 50)]).plot(path)
    assert path.read_bytes().startswith(b"\x89PNG") and list(tmp_path.iterdir()) == [path]


def test_without_matplotlib_it_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.delitem(sys.modules, "optimum_kprune.plots")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    for draw in (frontier().plot, result_with([(6, 50)]).plot):
        with pytest.raises(ImportError, match="pip install matplotlib"):
            draw(tmp_path / "picture.png")
