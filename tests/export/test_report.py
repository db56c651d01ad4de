"""The report of an export: what is measured, and how it is shown."""

import json
from dataclasses import replace

import pytest
import torch
from tiny import batches_of, pad, samples_for, tiny_model, tiny_tokenizer

from optimum_kprune import KPruner
from optimum_kprune.encoder.tasks import task_of
from optimum_kprune.export.graph import Session, export_graph
from optimum_kprune.export.report import (
    Contestant,
    ExportReport,
    ExportRow,
    file_megabytes,
    measured_report,
    model_on,
)
from optimum_kprune.plots import draw_deployment
from optimum_kprune.prune.heldout import Comparison
from optimum_kprune.result import HeldoutQuality

CLOSE = HeldoutQuality("agreement", 0.975, 0.01, 0.002, 0.0004, 200)
ROWS = [
    ExportRow("dense", "PyTorch", 91.4, {1: 33.9, 32: 901.0}, replace(CLOSE, closeness=1.0)),
    ExportRow("pruned, int8", "ONNX Runtime", 17.1, {1: 9.7, 32: 211.5}, CLOSE),
]
REPORT = ExportReport(ROWS, "Milliseconds for 128 tokens; a machine, 1 thread.", ["pruned: int8: all"])


def test_it_prints_as_a_table():
    head, dense, int8, *below = str(REPORT).splitlines()
    assert head.split("  ")[0] == "model" and head.endswith("agreement  divergence  ms, batch 1  ms, batch 32    MB")
    assert dense.startswith("dense         PyTorch       100.0% ± 1.0%")
    assert int8.startswith("pruned, int8  ONNX Runtime   97.5% ± 1.0%") and int8.endswith("9.7         211.5  17.1")
    assert below == [REPORT.conditions, *REPORT.notes]


def test_figures_of_an_evaluation_take_the_place_of_the_closeness():
    rows = [replace(row, figures={"accuracy": 0.8823}) for row in ROWS]
    assert "accuracy" in str(replace(REPORT, rows=rows)) and "0.8823" in str(replace(REPORT, rows=rows))
    assert "agreement" not in str(replace(REPORT, rows=rows))


def test_it_is_written_as_json_and_below_a_card(tmp_path):
    (tmp_path / "README.md").write_text("# A model\n")
    REPORT.write(tmp_path)
    data = json.loads((tmp_path / "kprune_export.json").read_text())
    assert data["rows"][1]["milliseconds"] == {"1": 9.7, "32": 211.5}
    assert data["rows"][1]["closeness"]["divergence"] == 0.002
    card = (tmp_path / "README.md").read_text()
    assert card.startswith("# A model\n\n## Measured\n\n| model | runtime | agreement |")
    assert "| pruned, int8 | ONNX Runtime | 97.5% ± 1.0% | 0.002 | 9.7 | 211.5 | 17.1 |" in card
    head, rule, *_ = card.split("\n\n")[2].splitlines()
    assert rule.count("---") == head.count("|") - 1


def test_the_picture(tmp_path):
    pytest.importorskip("matplotlib")
    REPORT.write(tmp_path, plots=True)
    assert (tmp_path / "deployment.png").stat().st_size > 10_000
    assert "(deployment.png)" in (tmp_path / "README.md").read_text()
    REPORT.plot(tmp_path / "again.png")
    assert (tmp_path / "again.png").read_bytes() == (tmp_path / "deployment.png").read_bytes()
    with pytest.raises(ValueError, match="It has neither: export with `evaluate` or with a `calibration_dataset`"):
        ExportReport([replace(ROWS[0], closeness=None)]).plot(tmp_path / "none.png")


@pytest.fixture(scope="module")
def graph(tmp_path_factory):
    model = tiny_model().eval()
    path = tmp_path_factory.mktemp("graph") / "model.onnx"
    export_graph(model, pad(samples_for(model, 2), 0), path)
    return model, path


@pytest.mark.slow
def test_models_and_graphs_are_measured_alike(graph):
    model, path = graph
    other = tiny_model(seed=1).eval()
    contestants = [
        Contestant("dense", model, 1.5),
        Contestant("dense", model, file_megabytes(path), Session(path, model.config, threads=1)),
        Contestant("other", other, 1.5),
    ]
    inputs = {size: pad(samples_for(model, 1) * size, 0) for size in (1, 2)}
    comparison = Comparison(model, batches_of(samples_for(model, 24)), task_of(model))
    logits = lambda given: {"sum": float(given(**inputs[1]).logits.sum())}  # noqa: E731
    with torch.no_grad():
        report = measured_report(contestants, inputs, comparison, logits)
    dense, exported, other = report.rows
    assert [row.runtime for row in report.rows] == ["PyTorch", "ONNX Runtime", "PyTorch"]
    assert dense.closeness.divergence == 0 and exported.closeness.divergence < 1e-6 < other.closeness.divergence
    assert exported.figures["sum"] == pytest.approx(dense.figures["sum"], rel=1e-4) != other.figures["sum"]
    assert exported.megabytes == path.stat().st_size / 1e6
    assert all(set(row.milliseconds) == {1, 2} and row.milliseconds[1] > 0 for row in report.rows)


@pytest.mark.slow
def test_an_evaluation_on_rows_takes_a_graph(graph):
    """The graph of one model in the place of another: the figures are those of the graph."""
    model, path = graph
    rows = {"text": [" ".join(f"w{index + shift}" for index in range(5)) for shift in range(20)], "label": [0, 1] * 10}
    other = tiny_model(seed=1).eval()
    evaluation = KPruner(other, tiny_tokenizer()).evaluation_on(rows)
    shell = model_on(Session(path, model.config, threads=1), other)
    assert evaluation(shell) == evaluation(model)
    assert "forward" not in vars(other)


def test_without_a_measurement_it_names_the_files(tmp_path):
    path = tmp_path / "model.onnx"
    assert str(ExportReport(files={"model.onnx": path})) == f"Exported, not measured: {path}"


@pytest.mark.slow
def test_an_export_returns_its_report(tmp_path):
    pruner = KPruner(tiny_model().eval(), tiny_tokenizer())
    texts = [f"w{index} w{index + 1} w3" for index in range(40)]
    report = pruner.export(tmp_path / "served", quantize="int8", calibration_dataset=texts)
    assert [(row.model, row.runtime) for row in report.rows] == [
        ("dense", "PyTorch"),
        ("dense", "ONNX Runtime"),
        ("dense, int8", "ONNX Runtime"),
    ]
    assert report.files["model_quantized.onnx"].exists() and report.rows[-1].closeness.closeness > 0.8
    assert json.loads((tmp_path / "served" / "kprune_export.json").read_text())["rows"][2]["megabytes"] > 0


def test_what_has_no_quality_is_left_out_of_the_picture():
    closeness = {"measure": "agreement", "closeness": 0.9}
    row = {"model": "dense", "runtime": "PyTorch", "megabytes": 1.0, "milliseconds": {1: 2.0}, "figures": {}}
    rows = [row | {"closeness": closeness}, row | {"model": "pruned", "closeness": None}]
    (panel,) = draw_deployment({"rows": rows}).axes
    assert [line.get_label() for line in panel.lines] == ["dense (PyTorch): 1.0 MB"]
