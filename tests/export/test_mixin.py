"""`KPruner.export`: a folder that serves, whole or not at all, and all that it refuses."""

import importlib.util
import json

import pytest
import torch
from tiny import outputs_of, pad, ragged_samples, texts_of, tiny_model, tiny_tokenizer
from transformers import AutoConfig, AutoTokenizer

from optimum_kprune import KPruneConfig, KPruner
from optimum_kprune.export import graph, writer
from optimum_kprune.export.graph import Session

pytestmark = pytest.mark.slow

TEXTS = texts_of(ragged_samples(24))


@pytest.fixture(scope="module")
def pruner():
    model = tiny_model(id2label={0: "no", 1: "maybe", 2: "yes"}, num_hidden_layers=1)
    pruner = KPruner(model, tiny_tokenizer())
    pruner.prune(KPruneConfig(compression_rate=0.6, num_tokens=None, heldout_share=0), TEXTS)
    return pruner


def files_in(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_a_served_folder_holds_graphs_and_no_weights(pruner, tmp_path):
    pruner.export(tmp_path / "served", quantize="int8", calibration_dataset=TEXTS, report=False)
    found = files_in(tmp_path / "served")
    expected = ["README.md", "config.json", "onnx/model.onnx", "onnx/model_quantized.onnx"]
    assert [name for name in found if "tokenizer" not in name] == expected
    config = AutoConfig.from_pretrained(tmp_path / "served")
    assert (config.model_type, config.architectures) == ("bert", ["BertForSequenceClassification"])
    assert config.id2label == {0: "no", 1: "maybe", 2: "yes"}
    assert not {"kprune", "auto_map"} & set(json.loads((tmp_path / "served" / "config.json").read_text()))
    assert (
        AutoTokenizer.from_pretrained(tmp_path / "served")(TEXTS)["input_ids"]
        == pruner.processing_class(TEXTS).input_ids
    )
    session = Session(tmp_path / "served/onnx/model.onnx", config)
    batch = pad(ragged_samples(5, seed=3))
    torch.testing.assert_close(session(**batch).logits, outputs_of(pruner.model, batch)[0], rtol=1e-4, atol=1e-5)


def test_what_was_pruned_before_is_exported_from_its_folder_and_replaces_an_export_if_asked_to(pruner, tmp_path):
    pruner.save_pretrained(tmp_path / "pruned")
    loaded = KPruner.from_pretrained(tmp_path / "pruned")
    loaded.export(tmp_path / "served", quantize="float16", report=False)
    with pytest.raises(FileExistsError, match="new or empty"):
        loaded.export(tmp_path / "served")
    loaded.export(tmp_path / "served", overwrite=True, report=False)
    assert [name for name in files_in(tmp_path / "served") if "onnx/" in name] == ["onnx/model.onnx"]


def test_no_model_is_lost_to_an_export(pruner, tmp_path):
    pruner.save_pretrained(tmp_path / "pruned")
    found = files_in(tmp_path / "pruned")
    for refuse in (pruner.export, pruner.require_exportable):
        with pytest.raises(FileExistsError, match=r"holds a model, model\.safetensors, which would be lost"):
            refuse(tmp_path / "pruned", overwrite=True)
    assert files_in(tmp_path / "pruned") == found


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"max_drift": 0.1}, "`max_drift` bounds the drift of int8. Got it with `quantize=None`"),
        ({"quantize": "int8", "calibration_dataset": TEXTS, "max_drift": -1}, "`max_drift` must be a number above 0"),
        ({"report": False, "plots": True}, "Got `report=False`"),
        ({"report": False, "evaluate": {"text": TEXTS}}, "Got `report=False`"),
        ({"plots": True}, "Got neither `evaluate` nor"),
        ({"evaluate": [1]}, "evaluation data must be"),
    ],
)
def test_what_would_change_nothing_or_fail_later_is_refused_before_any_work(
    pruner, tmp_path, options, told, monkeypatch
):
    monkeypatch.setattr(writer, "export_graph", None)
    with pytest.raises(ValueError, match=told):
        pruner.export(tmp_path / "served", **options)
    assert not list(tmp_path.iterdir())


def test_weights_beyond_one_file_lie_beside_the_graph(pruner, tmp_path, monkeypatch):
    monkeypatch.setattr(graph, "ONE_FILE", 1000)
    pruner.export(tmp_path / "served", quantize="int8", calibration_dataset=TEXTS, report=False)
    assert {"onnx/model.onnx", "onnx/model.onnx_data"} < set(files_in(tmp_path / "served"))
    session = Session(tmp_path / "served/onnx/model.onnx", pruner.model.config)
    batch = pad(ragged_samples(5, seed=3))
    torch.testing.assert_close(session(**batch).logits, outputs_of(pruner.model, batch)[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"format": "tflite"}, r"`format` must be one of 'onnx'\. Got 'tflite' instead"),
        ({"quantize": "int4"}, r"`quantize` must be one of 'int8', .*'float16'\. Got 'int4' instead"),
        ({"quantize": "int8"}, r"int8 needs a `calibration_dataset`"),
    ],
)
def test_options_that_cannot_be_used_are_refused_before_any_work(pruner, tmp_path, options, told, monkeypatch):
    monkeypatch.setattr(writer, "export_graph", None)
    for refuse in (pruner.export, pruner.require_exportable):
        with pytest.raises(ValueError, match=told):
            refuse(tmp_path / "served", **options)
    assert not list(tmp_path.iterdir())


def test_packages_that_are_missing_are_named(pruner, tmp_path, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *_: None if "onnx" in name else found(name))
    with pytest.raises(ValueError, match=r"needs onnx, onnxscript, onnxruntime.*Install 'optimum-kprune\[onnx\]'"):
        pruner.require_exportable(tmp_path / "served")


class WithEigenvalues(type(tiny_model())):
    def forward(self, input_ids=None, attention_mask=None, **kwargs):
        outputs = super().forward(input_ids, attention_mask, **kwargs)
        outputs.logits = outputs.logits + torch.linalg.eigvals(outputs.logits.T @ outputs.logits).real
        return outputs


class WithBranches(type(tiny_model())):
    def forward(self, input_ids=None, attention_mask=None, **kwargs):
        outputs = super().forward(input_ids, attention_mask, **kwargs)
        if outputs.logits.sum() > 0:
            outputs.logits = 2 * outputs.logits
        return outputs


@pytest.mark.parametrize(
    ("made", "refuse", "told"),
    [
        (
            WithEigenvalues,
            "export",
            r"of this WithEigenvalues: it has no translation of the operator 'aten\.linalg_eig'",
        ),
        (WithBranches, "require_exportable", "of this WithBranches: .*data-dependent"),
    ],
)
def test_what_the_exporter_cannot_translate_is_named_and_nothing_is_written(made, refuse, told, tmp_path):
    model = tiny_model(num_hidden_layers=1)
    model.__class__ = made
    with pytest.raises(ValueError, match=told):
        getattr(KPruner(model, tiny_tokenizer()), refuse)(tmp_path / "served")
    assert not list(tmp_path.iterdir())


def test_a_graph_that_differs_is_not_written(pruner, tmp_path, monkeypatch):
    class Wrong(Session):
        def __call__(self, **inputs):
            return {name: value + 1 for name, value in super().__call__(**inputs).items()}

    monkeypatch.setattr(writer, "Session", Wrong)
    with pytest.raises(ValueError, match="differs from PyTorch"):
        pruner.export(tmp_path / "served")
    assert not list(tmp_path.iterdir())


def test_a_module_that_holds_a_model_is_refused_before_any_work(tmp_path):
    module = torch.nn.Sequential(tiny_model("bert", "base model"))
    with pytest.raises(ValueError, match="Got a Sequential that holds one"):
        KPruner(module, prediction=lambda outputs: outputs[0]).export(tmp_path / "served")
