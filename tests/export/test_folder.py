"""What lies beside the graphs: readable by programs without this package, and with earlier versions of libraries."""

import json

import pytest
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling, Transformer
from shrunk import dense_model, pruned_model
from tiny import FAMILIES, HIDDEN, save_tiny, tiny_model, tiny_tokenizer
from transformers import AutoConfig, AutoTokenizer

from optimum_kprune import KPruner
from optimum_kprune.export.folder import dense_config, write_surroundings


def read(file):
    return json.loads(file.read_text())


@pytest.mark.parametrize("family", FAMILIES)
def test_the_config_is_that_of_the_dense_model(family, tmp_path):
    dense = dense_model(family, label2id={"no": 0, "yes": 1, "maybe": 2})
    config = dense_config(pruned_model(dense))
    assert type(config) is type(dense.config)
    fields, expected = (each.to_dict() for each in (config, dense.config))
    # A cache relies on every attention sublayer; and the tokenizer is found by what its files do not always name.
    new = ("use_cache", "tokenizer_class", "architectures", "dtype")
    assert {name: fields[name] for name in fields if name not in new} == {
        name: expected[name] for name in expected if name not in new
    }
    assert config.architectures == [type(dense).__name__]
    # Graphs are in float32 also of a model in half precision.
    assert fields["dtype"] == dense_config(dense.half()).to_dict()["dtype"] == "float32"


def test_the_tokenizer_has_names_that_earlier_versions_know(tmp_path):
    tokenizer = tiny_tokenizer(additional_special_tokens=["<x>"])
    write_surroundings(tmp_path, tiny_model(), tokenizer, None)
    fields = read(tmp_path / "tokenizer_config.json")
    assert fields["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert fields["additional_special_tokens"] == ["<x>"] and "extra_special_tokens" not in fields
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded("w1 <x> w2")["input_ids"] == tokenizer("w1 <x> w2")["input_ids"]
    assert loaded.all_special_tokens == tokenizer.all_special_tokens


def test_a_model_without_a_tokenizer_has_its_config(tmp_path):
    write_surroundings(tmp_path, tiny_model(), None, None)
    assert [file.name for file in tmp_path.iterdir()] == ["config.json"]


def test_a_pipeline_is_written_without_the_weights_of_its_model(tmp_path):
    first = Transformer(str(save_tiny(tmp_path / "dense", tiny_model("bert", "base model"))))
    modules = [first, Pooling(HIDDEN, "cls"), Dense(HIDDEN, 8), Normalize()]
    pipeline = SentenceTransformer(modules=modules, device="cpu", prompts={"query": "ask: "})
    pruner = KPruner.from_sentence_transformer(pipeline)
    folder = tmp_path / "served"
    folder.mkdir()
    write_surroundings(folder, pruner.model, pruner.processing_class, pipeline)
    assert [file.relative_to(folder).parts for file in folder.rglob("*.safetensors")] == [
        ("2_Dense", "model.safetensors")
    ]
    assert read(folder / "config_sentence_transformers.json")["prompts"]["query"] == "ask: "
    assert [part["type"] for part in read(folder / "modules.json")] == [
        f"sentence_transformers.models.{type(module).__name__}" for module in modules
    ]
    assert AutoConfig.from_pretrained(folder).model_type == "bert"
    # With weights beside it, the installed version loads it too.
    pruner.model.save_pretrained(folder)
    loaded = SentenceTransformer(str(folder), device="cpu")
    assert (loaded.encode(["w1 w2", "w3"]) == pipeline.encode(["w1 w2", "w3"])).all()
