"""The card of a served folder: what is in it, and the lines that load it."""

from types import SimpleNamespace

import pytest
from tiny import tiny_model

from optimum_kprune.encoder.tasks import get_task
from optimum_kprune.export.card import served_card

GRAPHS = ["model.onnx", "model_quantized.onnx"]


@pytest.mark.parametrize(
    ("task", "loaded"),
    [
        ("text-classification", "ORTModelForSequenceClassification"),
        ("token-classification", "ORTModelForTokenClassification"),
        ("feature-extraction", "ORTModelForFeatureExtraction"),
    ],
)
def test_a_card_names_the_classes_that_load_the_smallest_graph(task, loaded):
    card = served_card(tiny_model(), get_task(task), GRAPHS, ["input_ids", "attention_mask"])
    assert f'{loaded}.from_pretrained("path/to/this/folder", file_name="model_quantized.onnx")' in card.text
    assert f'pipeline("{task}", "path/to/this/folder", {{ dtype: "q8" }})' in card.text
    assert "onnx/model_quantized.onnx" in card.text and "reads `input_ids`, `attention_mask`:" in card.text
    assert card.data.pipeline_tag == task and "onnx" in card.data.tags and not card.data.base_model
    assert "A local checkpoint for" in card.text and "None" not in card.text


def test_without_int8_the_plain_graph_is_loaded():
    card = served_card(tiny_model(), get_task("text-classification"), GRAPHS[:1], ["input_ids"])
    assert 'file_name="model.onnx"' in card.text and 'dtype: "fp32"' in card.text and "quantized" not in card.text


def test_a_card_tells_of_the_dense_model_and_the_prune():
    model = tiny_model()
    model.config._name_or_path = "some/model"
    result = SimpleNamespace(flops_removed=0.6)
    card = served_card(model, get_task("text-classification"), GRAPHS, [], result=result)
    assert "[some/model](https://huggingface.co/some/model) for" in card.text and "removed 60.0% of" in card.text
    assert card.data.base_model == "some/model"


def test_a_pipeline_is_loaded_by_its_library():
    task = SimpleNamespace(name="text-ranking", library="sentence-transformers", auto_class="AutoModel")
    pipeline = SimpleNamespace(model_type="CrossEncoder")
    card = served_card(tiny_model(), task, GRAPHS, [], pipeline)
    assert "from sentence_transformers import CrossEncoder" in card.text and 'backend="onnx"' in card.text
    assert "ORTModel" not in card.text
