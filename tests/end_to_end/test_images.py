"""Image models, from a folder of images to a saved model: in Python, on the command line, and with bad input."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from cards import cells
from huggingface_hub import ModelCard
from media import CLASSES, image_processor, kept_by, pictures, pruned, save_vit, write_pictures
from PIL import Image
from tiny import same_state, tiny_tokenizer
from transformers import pipeline
from zoo import build

from optimum_kprune import KPruneConfig, KPruner


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a model, with images, and with the pruned model that the command line makes of both."""
    root = tmp_path_factory.mktemp("images")
    save_vit(root / "model")
    write_pictures(root / "pictures")
    return root


def test_the_result_depends_on_neither_the_order_of_the_images_nor_the_batches():
    one = pruned(build("vit"), image_processor(), pictures())
    other = pruned(build("vit"), image_processor(), pictures()[::-1])
    assert same_state(one.model, other.model)
    assert kept_by(pruned(build("vit"), image_processor(), pictures(), batch_size=3)) == kept_by(one)
    assert (one.result.samples, one.result.tokens, one.result.sequence_length) == (40, 40 * 17, 17)
    assert "680 positions" in str(one.result)


def test_a_budget_counts_positions():
    limited = pruned(build("vit"), image_processor(), pictures(), num_tokens=100, measure_tokens=40)
    assert (limited.result.samples, limited.result.tokens) == (6, 102)


def test_a_module_of_ones_own_that_reads_images():
    class Scores(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder = build("vit", head="")
            self.head = torch.nn.Linear(32, 3)

        def forward(self, pixel_values):
            return {"logits": self.head(self.encoder(pixel_values).last_hidden_state[:, 0])}

    torch.manual_seed(0)
    own = pruned(Scores(), image_processor(), pictures())
    assert own.result.tokens == 40 * 17 and 0.5 <= own.result.flops_removed < 0.6


def test_embeddings_of_images_are_their_mean_and_the_class_token():
    encoder = build("vit", head="").eval()
    pruner = KPruner(encoder, image_processor(), task="feature-extraction")
    assert pruner.task.name == "image-feature-extraction"
    outputs = encoder(torch.randn(2, 3, 16, 16))
    prediction = pruner.task.predict(outputs, encoder.config, torch.ones(2, 17).bool())
    expected = [outputs.last_hidden_state.mean(dim=1), outputs.last_hidden_state[:, 0]]
    for found, vectors in zip(prediction.values.unbind(dim=1), expected, strict=True):
        torch.testing.assert_close(found, vectors / vectors.norm(dim=-1, keepdim=True))
    assert pruned(encoder, image_processor(), pictures()).result.heldout is None


def test_from_a_folder_by_the_command_line_to_a_pipeline(place, command, capsys, tmp_path):
    out = tmp_path / "out"
    options = ["--model", place / "model", "--task", "image-classification", "--dataset", place / "pictures"]
    options += ["--eval_dataset", place / "pictures", "--compression_rate", "0.5", "--measure_latency"]
    assert command("kprune", *options, out) is None
    assert "accuracy: " in capsys.readouterr().out
    card = ModelCard.load(out / "README.md")
    assert card.data.pipeline_tag == "image-classification" and card.data.library_name == "transformers"
    for told in (
        "AutoImageProcessor.from_pretrained",
        'pipeline("image-classification"',
        " positions of local files",
    ):
        assert told in card.text
    assert "okenizer" not in card.text and " tokens" not in card.text
    ((name, *_),) = cells(card, "latency")
    assert name == "latency, batch 1, pixel_values of 3 x 16 x 16"
    picture = pictures(1)[0].convert("RGB")
    found = pipeline("image-classification", str(out))(picture)
    assert {entry["label"] for entry in found} == set(CLASSES)
    again = KPruner.from_pretrained(out)
    assert type(again.processing_class).__name__ == type(image_processor()).__name__
    with torch.no_grad():
        inputs = again.processing_class(picture, return_tensors="pt")
        scores = again.teacher.eval()(**inputs).logits.softmax(dim=-1)[0]
    assert max(entry["score"] for entry in found) == pytest.approx(scores.max().item())
    without_plugin(out, tmp_path, found)


def without_plugin(folder, cache, expected):
    """Asserts that a pipeline in a process that does not have the package gives the same."""
    program = (
        "import sys; sys.modules['optimum_kprune'] = None\n"
        "from PIL import Image; from transformers import pipeline\n"
        f"pipe = pipeline('image-classification', {str(folder)!r}, trust_remote_code=True)\n"
        f"found = pipe({str(cache / 'one.png')!r})\n"
        "print(found[0]['label'], found[0]['score'])"
    )
    pictures(1)[0].convert("RGB").save(cache / "one.png")
    environment = os.environ | {"HF_MODULES_CACHE": str(cache / "modules"), "HF_HUB_OFFLINE": "1"}
    process = subprocess.run(
        [sys.executable, "-I", "-c", program], env=environment, capture_output=True, text=True, check=False
    )
    assert process.returncode == 0, process.stderr
    label, score = process.stdout.split()[-2:]
    assert label == expected[0]["label"] and float(score) == pytest.approx(expected[0]["score"], abs=1e-6)


BAD = {
    "a tokenizer": (tiny_tokenizer(), pictures(3), "must be an image processor, or a processor that holds one"),
    "no processor": (None, pictures(3), "must be an image processor when the calibration data is images. Got None"),
    "texts": (image_processor(), ["w1 w2"], "must hold images of PIL, .* Got str"),
    "another size": (None, [{"pixel_values": np.zeros((2, 3, 20, 20), "float32")}], r"3 x 20 x 20, on which it fails"),
    "other channels": (
        None,
        [{"pixel_values": np.zeros((2, 1, 16, 16), "float32")}],
        "1 x 16 x 16, on which it fails",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_told_before_any_work(name, monkeypatch):
    processing_class, data, message = BAD[name]
    monkeypatch.setattr("optimum_kprune.pruner.Sweep", None)
    with pytest.raises(ValueError, match=message):
        KPruner(build("vit"), processing_class).prune(KPruneConfig(num_tokens=None), data)


def test_a_folder_of_a_model_without_its_processor_is_warned_of(tmp_path, caplog):
    build("vit").save_pretrained(tmp_path)
    assert KPruner.from_pretrained(tmp_path).processing_class is None
    assert "No image processor could be loaded" in caplog.text and "to calibrate on images" in caplog.text
    (tmp_path / "preprocessor_config.json").write_text("{")
    with pytest.raises(ValueError, match=r"The image processor of .* could not be loaded .*Mend or remove its files"):
        KPruner.from_pretrained(tmp_path)


def test_evaluation_counts_the_classes_by_their_names(place):
    """The folders are in another order than the classes of the model."""
    pruner = pruned(build("vit"), image_processor(), pictures())
    found = pruner.evaluate(str(place / "pictures"))["dense"]["accuracy"]
    model, right = pruner.teacher.eval(), []
    for index in range(36):
        label = CLASSES[index % 3]
        with Image.open(place / "pictures" / label / f"{index}.png") as image, torch.no_grad():
            inputs = image_processor()(image.convert("RGB"), return_tensors="pt")
            right.append(model.config.id2label[model(**inputs).logits.argmax().item()] == label)
    assert found == pytest.approx(np.mean(right))
