"""The examples that train and prune small encoders of several families run, and their data are what they say."""

import dataclasses
import json

import families_data
import families_table
import numpy as np
import pytest
import torch
import train_families
from rows import write
from sklearn.datasets import load_digits
from tiny import HIDDEN, LAYERS, NEURONS, WORDS, save_tiny, tiny_model
from transformers import AutoConfig, AutoModelForSequenceClassification

from optimum_kprune import KPruner

pytestmark = pytest.mark.slow

SIZES = {"hidden_size": HIDDEN, "num_hidden_layers": LAYERS, "num_attention_heads": 4, "intermediate_size": NEURONS}
POSITIONS = {"max_position_embeddings": 40}


@pytest.fixture(autouse=True)
def tiny_families(monkeypatch):
    for name, family in train_families.FAMILIES.items():
        sizes = {"d_model": HIDDEN, "num_layers": LAYERS, "num_heads": 4, "d_kv": 8, "d_ff": NEURONS}
        options = sizes if name == "t5" else SIZES | (POSITIONS if family.draw is None else {})
        monkeypatch.setitem(
            train_families.FAMILIES, name, dataclasses.replace(family, options=family.options | options)
        )
    monkeypatch.setattr(families_table, "CALIBRATION_ROWS", 20)
    monkeypatch.setattr(families_table, "VALIDATION_ROWS", 40)


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """A teacher and sentences."""
    folder = tmp_path_factory.mktemp("text")
    save_tiny(folder / "teacher", tiny_model())
    (folder / "data").mkdir()
    generator = np.random.default_rng(0)
    for split, count in (("train", 60), ("validation", 20)):
        rows = [
            {"sentence": " ".join(generator.choice(WORDS, generator.integers(2, 9))), "label": row % 3}
            for row in range(count)
        ]
        write(rows, folder / "data" / f"{split}.parquet")
    return ["--teacher", str(folder / "teacher"), "--dataset", str(folder / "data")]


def test_digits_are_those_of_scikit_learn_and_none_is_in_both_parts(monkeypatch):
    known = load_digits()
    index_of = {(255 / 16 * image).astype(np.uint8).tobytes(): index for index, image in enumerate(known.images)}
    monkeypatch.setattr(families_data, "shift", lambda image, move, order: image)
    parts = []
    for validation in (True, False):
        images, labels = families_data.draw_digits(3_000, 0, validation)
        parts.append([index_of[np.array(image.convert("L")).tobytes()] for image in images])
        assert np.array_equal(known.target[parts[-1]], labels)
    assert len(set(parts[0])) == families_data.DIGITS_HELD_OUT and len(set(parts[1])) > 1_000
    assert not set(parts[0]) & set(parts[1])


def test_rows_are_drawn_reproducibly():
    for draw in (families_data.draw_digits, families_data.draw_melodies):
        first, second, other = (draw(20, seed) for seed in (3, 3, 4))
        assert np.array_equal(first[1], second[1]) and not np.array_equal(first[1], other[1])
        assert np.array_equal(np.array(first[0]), np.array(second[0]))


def test_the_label_of_a_melody_is_its_second_note():
    """The oracle knows timbre: a note is the one whose overtones together are strongest in the middle of the wave."""
    waves, labels = families_data.draw_melodies(200, 0)
    middle = slice(2_000, 2_800)
    times = np.arange(families_data.MELODY_SAMPLES) / families_data.SAMPLING_RATE
    pitches = families_data.LOWEST_PITCH * 2 ** (np.arange(families_data.NOTES) / 12)
    carriers = np.exp(-2j * np.pi * pitches[:, None, None] * np.arange(1, 4)[:, None] * times)
    powers = np.abs(np.einsum("kot,nt->nko", carriers[..., middle], np.stack(waves)[:, middle])) ** 2
    assert np.mean(powers.sum(axis=-1).argmax(axis=-1) == labels) > 0.75
    assert not np.array_equal(labels, families_data.draw_melodies(200, 0, validation=True)[1])


def test_the_accuracy_is_that_of_the_library(text):
    pruner = KPruner.from_pretrained(text[1])
    rows, labels = families_data.read_sentences(text[3], "validation")
    classes = families_data.predict_classes(pruner.teacher, pruner.processing_class, rows)
    assert np.mean(classes == labels) == pytest.approx(pruner.evaluation_on(text[3])(pruner.teacher)["accuracy"])


def test_a_model_of_the_teachers_shape_begins_as_the_teacher(text):
    teacher = AutoModelForSequenceClassification.from_pretrained(text[1])
    model = AutoModelForSequenceClassification.from_config(teacher.config)
    train_families.take_over(model, teacher)
    assert all(torch.equal(tensor, teacher.state_dict()[name]) for name, tensor in model.state_dict().items())


def test_fused_projections_begin_as_those_of_the_teacher_one_below_the_other(text):
    teacher = AutoModelForSequenceClassification.from_pretrained(text[1])
    options = train_families.FAMILIES["modernbert"].options | {
        "pad_token_id": 1,
        "vocab_size": teacher.config.vocab_size,
    }
    config = AutoConfig.for_model("modernbert", **options | {"num_hidden_layers": 2})
    model = AutoModelForSequenceClassification.from_config(config)
    train_families.take_over(model, teacher)
    for ours, theirs in ((0, 0), (1, LAYERS - 1)):
        attention = teacher.bert.encoder.layer[theirs].attention
        parts = [getattr(attention.self, name).weight for name in ("query", "key", "value")]
        assert torch.equal(model.model.layers[ours].attn.Wqkv.weight, torch.cat(parts))
        assert torch.equal(model.model.layers[ours].attn.Wo.weight, attention.output.dense.weight)


@pytest.mark.parametrize("family", ["vit", "wav2vec2", "ast", "t5"])
def test_families_are_trained_reproducibly_and_pruned_once(tmp_path, capsys, monkeypatch, text, family):
    folders = [tmp_path / name / family for name in ("models", "again")]
    for folder in folders:
        train_families.main([family, "--output_dir", str(folder.parent), "--steps", "2", *text])
    first, second = ((folder / "model.safetensors").read_bytes() for folder in folders)
    assert first == second

    options = ["--rates", "0.5", "--seeds", "0", "1", "--num_tokens", "200", "--output_dir", str(tmp_path / "table")]
    arguments = [str(folders[0]), *text[2:], *options]
    families_table.main(arguments)
    *_, line = capsys.readouterr().out.strip().splitlines()
    results = json.loads((tmp_path / "table" / "results.json").read_text())
    keys = {f"{family} {method} 0.5 {seed}" for method in families_table.METHODS for seed in (0, 1)}
    assert set(results) == {f"{family} dense 0 0", *keys}
    mean = np.mean([results[f"{family} paper 0.5 {seed}"][0] for seed in (0, 1)])
    assert line.split(" | ")[3].startswith(f"{mean:.1f} ± ")

    monkeypatch.setattr(KPruner, "sweep", None)  # would fail
    families_table.main(arguments)
    assert capsys.readouterr().out.strip().splitlines()[-1] == line


def test_a_family_of_text_needs_a_teacher(tmp_path, capsys):
    with pytest.raises(SystemExit):
        train_families.main(["vit", "bert", "--output_dir", str(tmp_path)])
    assert "bert: families of text need --teacher and --dataset." in capsys.readouterr().err
