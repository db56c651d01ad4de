"""Which Auto classes load which pruned models: heads that build their encoder by one, encoders beside decoders."""

import os
import subprocess
import sys

import pytest
import torch
import transformers
from shrunk import shrunk_by_half
from tiny import outputs_of, same_state
from zoo import batch_of, build

# A model of the zoo, its class, and the Auto classes that load it, or else its encoder.
CASES = [
    ("qwen3", "Qwen3ForSequenceClassification", "AutoModelForSequenceClassification", "AutoModel"),
    ("qwen3", "Qwen3ForTokenClassification", "AutoModelForTokenClassification", "AutoModel"),
    # It calls its encoder by a name under which transformers does not find the weights of one.
    ("qwen3", "Qwen3ForQuestionAnswering", "AutoModelForQuestionAnswering", None),
    ("qwen3", "Qwen3Model", "AutoModel", None),
    ("t5", "T5EncoderModel", "AutoModelForTextEncoding", "AutoModel"),
    ("t5", "T5ForTokenClassification", "AutoModelForTokenClassification", "AutoModel"),
    ("bart", "BartForSequenceClassification", "AutoModelForSequenceClassification", "AutoModel"),
    ("deit", "DeiTForImageClassification", "AutoModelForImageClassification", "AutoModel"),
    ("deit", "DeiTForImageClassificationWithTeacher", "AutoModelForImageClassification", "AutoModel"),
    ("wav2vec2", "Wav2Vec2ForSequenceClassification", "AutoModelForAudioClassification", "AutoModel"),
    ("whisper", "WhisperForAudioClassification", "AutoModelForAudioClassification", None),
    ("clip_text_model", "CLIPTextModel", "AutoModel", None),
]
CHECK = """
import sys
if sys.argv[2] == "alone":
    sys.modules["optimum_kprune"] = None
    trust = {"trust_remote_code": True}
else:
    import optimum_kprune
    trust = {}
from pathlib import Path
import torch, transformers
for folder in Path(sys.argv[1]).iterdir():
    expected = torch.load(folder / "expected.pt")
    for auto_class, output in expected["outputs"].items():
        model = getattr(transformers, auto_class).from_pretrained(folder, **trust)
        assert type(model).__name__.startswith("KPrune"), type(model)
        with torch.no_grad():
            assert torch.equal(model(**expected["batch"])[0], output), (folder, auto_class)
"""


def dense_model(name, class_name, auto_class):
    # Where an Auto class has several, `architectures` says which.
    model = build(name, auto_class.removeprefix("AutoModel"), architectures=[class_name])
    assert type(model).__name__ == class_name
    return model


def outputs_by_auto_class(model, batch, auto_class, encoder_class):
    """The first output of the model, and that of its encoder, by the Auto classes that load them."""
    outputs = {auto_class: outputs_of(model, batch)[0]}
    return outputs | ({encoder_class: outputs_of(model.base_model, batch)[0]} if encoder_class else {})


@pytest.mark.parametrize(("name", "class_name", "auto_class", "encoder_class"), CASES)
def test_the_auto_classes_load_what_was_saved(name, class_name, auto_class, encoder_class, tmp_path):
    pruned = shrunk_by_half(dense_model(name, class_name, auto_class))
    pruned.save_pretrained(tmp_path)
    named = {auto: made.rpartition(".KPrune")[2] for auto, made in pruned.config.auto_map.items()}
    assert named[auto_class] == class_name and ("AutoModel" in named) == ("AutoModel" in (auto_class, encoder_class))
    loaded = getattr(transformers, auto_class).from_pretrained(tmp_path)
    assert type(loaded) is type(pruned) and same_state(loaded, pruned)
    batch = batch_of(name)
    for auto, output in outputs_by_auto_class(pruned, batch, auto_class, encoder_class).items():
        assert torch.equal(outputs_of(getattr(transformers, auto).from_pretrained(tmp_path), batch)[0], output)


@pytest.mark.parametrize("class_name", ["Qwen3ForSequenceClassification", "T5ForTokenClassification"])
def test_what_was_loaded_is_shrunk_further(class_name, tmp_path):
    name = class_name.partition("For")[0].lower()
    auto_class = f"AutoModelFor{class_name.partition('For')[2]}"
    once = shrunk_by_half(dense_model(name, class_name, auto_class))
    twice = shrunk_by_half(once)
    assert twice.num_parameters() < once.num_parameters()
    twice.save_pretrained(tmp_path)
    assert same_state(getattr(transformers, auto_class).from_pretrained(tmp_path), twice)


@pytest.mark.parametrize("name", ["qwen3", "t5", "bart"])
def test_a_pruned_model_keeps_no_cache(name):
    pruned = shrunk_by_half(build(name))
    assert pruned.config.use_cache is False
    assert "past_key_values" not in pruned(**batch_of(name))


@pytest.mark.slow
@pytest.mark.parametrize("setting", ["plugin", "alone"])
def test_a_fresh_process_loads_the_folders(setting, tmp_path):
    for name, class_name, auto_class, encoder_class in CASES:
        pruned, batch = shrunk_by_half(dense_model(name, class_name, auto_class)), batch_of(name)
        pruned.save_pretrained(tmp_path / "folders" / class_name)
        outputs = outputs_by_auto_class(pruned, batch, auto_class, encoder_class)
        torch.save({"batch": batch, "outputs": outputs}, tmp_path / "folders" / class_name / "expected.pt")
    environment = os.environ | {"HF_MODULES_CACHE": str(tmp_path / "modules")}
    command = [sys.executable, "-I", "-c", CHECK, tmp_path / "folders", setting]
    process = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
