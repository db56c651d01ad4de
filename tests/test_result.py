"""What a result tells, and what it looks like in a console, a notebook and a table."""

from dataclasses import asdict, replace
from html import escape

from prunes import TOTALS, prune
from tiny import LAYERS, sublayers_of, tiny_model

from optimum_kprune.result import HeldoutQuality, KPruneResult, RecoveryResult, SublayerResult

# The pruned model is the dense one with masks and with other weights in its projections


def test_parameters_are_counted():
    dense = tiny_model("roberta", "masked language model")
    pruner = prune(dense)
    result = pruner.result
    removed = sum(entry.parameters_before - entry.parameters for entry in result.sublayers)
    assert result.parameters_before == dense.num_parameters()
    assert result.parameters_after == pruner.model.num_parameters() == dense.num_parameters() - removed
    assert removed > 0
    for entry, sublayer in zip(result.sublayers, sublayers_of(pruner.model), strict=True):
        assert entry.parameters == sublayer.parameters


# Saved and loaded


def test_what_was_kept_is_told_from_bottom_to_top():
    kept = prune(tiny_model()).result.kept
    assert [(entry["layer"], entry["kind"]) for entry in kept] == [
        (layer, kind) for layer in range(LAYERS) for kind in ("attention", "ffn")
    ]
    for entry in kept:
        assert list(entry) == ["layer", "kind", "kept", "total"]
        assert entry["total"] == TOTALS[entry["kind"]]
        assert entry["kept"] == sorted(set(entry["kept"])) and set(entry["kept"]) <= set(range(entry["total"]))
        assert all(type(unit) is int for unit in entry["kept"])


def test_the_result_prints_as_a_table():
    result = prune(tiny_model()).result
    header, *rows, total, lost = str(result).splitlines()
    assert header.split() == ["layer", "kind", "kept", "MFLOPs", "parameters", "error", "seconds"]
    for row, entry in zip(rows, result.kept, strict=True):
        assert f"{len(entry['kept'])} of {entry['total']}" in row
        assert row.split()[:2] == [str(entry["layer"]), entry["kind"]]
    assert lost == "What was lost was not measured: no calibration data was held out."
    assert f"{result.flops_removed:.2%}" in total and f"{result.parameters_after:,}" in total
    assert len({len(line) for line in [header, *rows]}) == 1


def result_of(layers=2, neurons=4000, heldout=None):
    """The result of a prune that keeps every other unit."""
    sublayers = [
        SublayerResult(layer, kind, list(range(0, total, 2)), total, 1e6, 2e6, 500, 1000, 0.25, 1.5)
        for layer in range(layers)
        for kind, total in (("attention", 12), ("ffn", neurons))
    ]
    return KPruneResult(sublayers, 128, 10, 1000, 40_000, 30_000, 6.0, heldout)


BEFORE = HeldoutQuality("agreement", 0.8, 0.01, 0.5, 0.04, 99)


def test_a_recovery_tells_passes_and_what_is_kept():
    told = str(RecoveryResult(30_000, 10_000, 60, 48, BEFORE, 7.0))
    assert told == (
        "Recovered on 30,000 tokens (3.0 passes over 10,000) in 7.0 seconds: the weights of step 48 of 60 are the best"
    )
    told = str(RecoveryResult(10_000, 90_000, 20, 0, BEFORE, 7.0, "positions"))
    assert told.startswith("Recovered on 10,000 positions in ")
    assert told.endswith("no weights were better than those of the prune, which are kept")


def test_a_result_tells_what_was_lost_before_a_recovery_and_after_it():
    result = replace(
        result_of(heldout=replace(BEFORE, divergence=0.1)), recovery=RecoveryResult(9, 9, 1, 1, BEFORE, 7)
    )
    before, recovered, after = str(result).splitlines()[-3:]
    assert before == f"Before the recovery: {BEFORE}" and "divergence 0.1" in after
    assert recovered == str(result.recovery) and escape(recovered) in result._repr_html_()
    assert result.to_dict()["recovery"]["before"] == asdict(BEFORE)


def test_a_result_tells_what_was_asked_for_and_what_was_got():
    sizes = {"megabytes_before": 90.9, "megabytes_after": 49.97, "dtype": "bfloat16"}
    for budget, told in {
        "50 MB": "kept: 49.97 MB of 90.9 MB in bfloat16",
        "75% parameters": "kept: 30,000 parameters of 40,000 parameters",
        "1 layer": "kept: 1 layer of 2 layers",
        "50% flops": f"kept: {result_of().flops_after:,.4g} FLOPs of {result_of().flops_before:,.4g} FLOPs",
    }.items():
        result = replace(result_of(), budget=budget, **sizes)
        if "layer" in budget:
            result.sublayers[:2] = [replace(entry, kept=[]) for entry in result.sublayers[:2]]
        line = f"Budget: {budget}; {told}"
        assert str(result).splitlines()[-2] == line and line in result._repr_html_()
        assert result.to_dict()["budget"] == budget
    assert "Budget" not in str(result_of())


def test_the_repr_of_a_result_is_short_and_tells_the_outcome():
    quality = HeldoutQuality("agreement", 0.963, 0.004, 0.03, 0.002, 100)
    assert repr(result_of(heldout=quality)) == (
        "KPruneResult(50.0% of the FLOPs removed, kept: 12 of 24 heads, 4,000 of 8,000 neurons, parameters: "
        "40,000 -> 30,000, held-out agreement: 96.3% ± 0.4%)"
    )
    assert repr(result_of()).endswith("30,000, nothing held out)")
    assert len(repr(result_of(layers=48))) < 200 and len(repr(result_of().sublayers[1])) < 250
    assert len(str(result_of()).splitlines()) == 1 + 4 + 2


def test_the_table_has_a_row_per_sublayer():
    result = result_of(layers=3)
    table = result.to_pandas()
    assert len(table) == len(result.sublayers)
    for row, entry in zip(table.to_dict("records"), result.sublayers, strict=True):
        assert row == vars(entry) | {"kept": len(entry.kept)}


def test_a_notebook_shows_the_table_and_the_summary_escaped():
    result = result_of(heldout=HeldoutQuality("<b>agreement</b>", 0.9, 0.1, 0.2, 0.1, 7))
    html = result._repr_html_()
    assert html.count("<tr") == 1 + len(result.sublayers) and "<b>" not in html
    assert "&lt;b&gt;agreement&lt;/b&gt;" in html and "FLOPs removed: 50.00%" in html and len(html) < 10_000
