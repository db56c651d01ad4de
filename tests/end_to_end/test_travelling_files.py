"""The files that travel with the weights: what a saved folder holds of them, and the format that they read."""

import json
from pathlib import Path

import pytest
import torch
from tiny import batches_of, outputs_of, pad, ragged_samples, tiny_model
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification

import optimum_kprune.modeling_kprune as travelling
from optimum_kprune import KPruneConfig, KPruner
from optimum_kprune.kprune_map import FORMAT
from optimum_kprune.kprune_shrink import Bypass

CODE = "modeling_kprune.py"
LINES = """
KPruneBertConfig = make_pruned_class(transformers.BertConfig)
KPruneBertForSequenceClassification = make_pruned_class(transformers.BertForSequenceClassification)
KPruneBertModel = make_pruned_class(transformers.BertModel)
""".lstrip()


@pytest.fixture(scope="module")
def pruned(tmp_path_factory):
    pruner = KPruner(tiny_model())
    config = KPruneConfig(compression_rate=0.5, num_tokens=None)
    pruner.prune(config, batches_of(ragged_samples()), save_directory=tmp_path_factory.mktemp("pruned") / "model")
    return pruner.model


@pytest.fixture
def folder(pruned, tmp_path):
    """A folder of the pruned model to change."""
    pruned.save_pretrained(tmp_path / "pruned")
    return tmp_path / "pruned"


def edit(folder, change):
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))


# The code in a folder


def own_code():
    return Path(travelling.__file__).read_text()


def test_the_code_in_a_folder_ends_with_the_classes_of_its_model(folder):
    assert (folder / CODE).read_text() == own_code() + LINES
    assert (folder / "kprune_map.py").is_file() and (folder / "kprune_shrink.py").is_file()


def test_the_code_names_the_classes_of_what_is_saved(folder):
    AutoModel.from_pretrained(folder).save_pretrained(folder / "encoder")
    encoder = "".join(line for line in LINES.splitlines(keepends=True) if "Classification" not in line)
    assert (folder / "encoder" / CODE).read_text() == own_code() + encoder


@pytest.mark.parametrize("name", ["BertModel\nimport os", "Trainer.__init__", "x)\nraise SystemExit(", "__class__ "])
def test_text_of_a_config_does_not_become_code(name, folder):
    edit(folder, lambda config: config["auto_map"].update(AutoModel=f"modeling_kprune.KPrune{name}"))
    AutoConfig.from_pretrained(folder).save_pretrained(folder / "again")
    own = [line for line in LINES.splitlines(keepends=True) if "BertModel" not in line]
    assert (folder / "again" / CODE).read_text() == own_code() + "".join(own)


@pytest.mark.parametrize("arguments", [{"query": 1, "key": 2}, {"hidden_states": 1, "mask": 2}])
def test_a_bypass_takes_its_first_input_under_any_name(arguments):
    """Attention modules are called with `query=` by DistilBERT in transformers 4."""
    assert Bypass("", items=2)(**arguments) == (1, None)
    assert Bypass("", items=0)(3, **arguments) == 3


def test_every_count_of_features_is_that_of_the_heads_that_are_left():
    """DistilBERT in transformers 4 divides `dim` by the number of heads."""
    pruner = KPruner(tiny_model("distilbert"))
    pruner.prune(KPruneConfig(compression_rate=0.5, num_tokens=None), batches_of(ragged_samples()))
    attentions = [block.attention for block in pruner.model.base_model.transformer.layer]
    kept = [attention for attention in attentions if not isinstance(attention, Bypass)]
    assert kept and all(attention.dim == attention.q_lin.out_features for attention in kept)


# The format


def test_a_prune_writes_the_format(pruned):
    assert pruned.config.kprune["format"] == FORMAT == 2


def test_a_folder_without_a_format_is_of_the_first(pruned, folder):
    edit(folder, lambda config: config["kprune"].pop("format"))
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    batch = pad(ragged_samples(3))
    assert torch.equal(outputs_of(model, batch)[0], outputs_of(pruned, batch)[0])
    assert KPruner(model)


def test_a_later_format_is_refused_with_the_version_to_take(pruned, folder):
    # Of a later format nothing else is known.
    edit(folder, lambda config: config.update(kprune={"format": FORMAT + 1}))
    message = "is of format 3, and this code reads up to 2. Install the version of optimum-kprune that the card"
    with pytest.raises(ValueError, match=message):
        AutoModelForSequenceClassification.from_pretrained(folder)


@pytest.mark.parametrize("given", [0, -1, True, "1", 1.0, None])
def test_a_format_is_a_number_from_one_on(given, folder):
    edit(folder, lambda config: config["kprune"].update(format=given))
    with pytest.raises(ValueError, match=r"`kprune\.format` must be .* saved with the weights"):
        AutoModelForSequenceClassification.from_pretrained(folder)
