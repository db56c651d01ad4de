"""Loading what is to be pruned: heads, tokenizers, arguments, and folders that hold no whole model."""

import pytest
import torch
from prunes import prune
from tiny import FAMILIES, save_tiny, tiny_model
from transformers import Qwen3ForCausalLM, Qwen3Model, T5EncoderModel, T5ForConditionalGeneration
from zoo import build, config_of

from optimum_kprune import KPruner

# Loading what is to be pruned


@pytest.mark.parametrize("mistake", ["empty", "no weights", "broken weights", "weights of the pruned model"])
def test_a_folder_that_holds_no_whole_model_is_told(mistake, tmp_path):
    save_tiny(tmp_path / "dense")
    folder, weights = tmp_path / "dense", tmp_path / "dense" / "model.safetensors"
    message = r"dense'.*could not be loaded.*saved with its config\.json"
    if mistake == "empty":
        folder, message = tmp_path / "empty", r"empty'.*no config\.json.*`save_pretrained`"
        folder.mkdir()
    elif mistake == "no weights":
        weights.unlink()
    elif mistake == "broken weights":
        weights.write_bytes(b"broken")
    else:
        prune(tiny_model()).save_pretrained(tmp_path / "pruned")
        weights.write_bytes((tmp_path / "pruned" / "model.safetensors").read_bytes())
    with pytest.raises(OSError, match=message):
        KPruner.from_pretrained(folder)


def test_arguments_of_loading_reach_the_model(tmp_path):
    save_tiny(tmp_path)
    pruner = KPruner.from_pretrained(tmp_path, dtype=torch.bfloat16, attn_implementation="eager")
    assert pruner.teacher.dtype == torch.bfloat16 and pruner.teacher.config._attn_implementation == "eager"


def test_a_freshly_initialised_head_warns(tmp_path, caplog):
    save_tiny(tmp_path, tiny_model(head="base model"))
    pruner = KPruner.from_pretrained(tmp_path, task="text-classification")
    assert pruner.task.name == "text-classification"
    (warning,) = [record.getMessage() for record in caplog.records if record.name.startswith("optimum_kprune")]
    assert "classifier.weight" in warning and "freshly initialised" in warning and "Fine-tune it" in warning


def test_a_head_of_another_size_than_that_of_the_checkpoint_warns(tmp_path, caplog):
    save_tiny(tmp_path)
    KPruner.from_pretrained(tmp_path, num_labels=7, ignore_mismatched_sizes=True)
    assert "freshly initialised" in caplog.text and "classifier.weight" in caplog.text


@pytest.mark.parametrize("head", ["single label", "base model"])
def test_a_head_that_is_complete_does_not_warn(head, tmp_path, caplog):
    save_tiny(tmp_path, tiny_model(head=head))
    KPruner.from_pretrained(tmp_path)
    assert "freshly initialised" not in caplog.text
    # Encoders are published without the pooler.
    model = tiny_model(head="base model")
    weights = {name: tensor for name, tensor in model.state_dict().items() if "pooler" not in name}
    model.save_pretrained(tmp_path / "without", state_dict=weights)
    KPruner.from_pretrained(tmp_path / "without")
    assert "freshly initialised" not in caplog.text


# The tokenizer


@pytest.mark.parametrize("family", FAMILIES)
def test_a_folder_without_a_tokenizer_warns_and_gives_none(family, tmp_path, caplog):
    """transformers makes a tokenizer without words, which turns every text into unknown tokens."""
    save_tiny(tmp_path, tiny_model(family), tokenizer=False)
    pruner = KPruner.from_pretrained(tmp_path)
    assert pruner.processing_class is None
    assert "No tokenizer" in caplog.text and "processing_class" in caplog.text


# Adapters, quantized weights, and other things that are no plain encoders


def test_a_folder_with_adapters_alone_is_told(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(OSError, match=r"adapters of PEFT alone.*merge_and_unload\(\)"):
        KPruner.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("name", "model_class", "body_class"),
    [("qwen3", Qwen3ForCausalLM, Qwen3Model), ("t5", T5ForConditionalGeneration, T5EncoderModel)],
)
def test_of_a_checkpoint_that_generates_the_body_can_be_pruned(name, model_class, body_class, tmp_path):
    model_class(config_of(name)).save_pretrained(tmp_path)
    assert type(KPruner.from_pretrained(tmp_path, task="feature-extraction").teacher) is body_class
    # Told before weights are read.
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=rf"A {model_class.__name__} generates text.*task='feature-extraction'"):
        KPruner.from_pretrained(tmp_path)


def test_an_encoder_beside_its_decoder_is_loaded_alone(tmp_path):
    build("t5", head="ForTextEncoding").save_pretrained(tmp_path)
    assert type(KPruner.from_pretrained(tmp_path).teacher) is T5EncoderModel
