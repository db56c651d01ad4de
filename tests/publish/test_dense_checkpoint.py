"""What the checkpoint of the dense model tells: license, languages, name, dtype on disk."""

import pytest
import torch
from cards import LICENSED, SAMPLES, cells, pruned, saved_card
from huggingface_hub import constants
from tiny import save_tiny, texts_of, tiny_model

from optimum_kprune import CardFacts, KPruneConfig, KPruner
from optimum_kprune.publish.dense_checkpoint import inherited_fields

pytestmark = pytest.mark.slow


def test_the_base_model_is_named_if_it_is_on_the_hub(tmp_path):
    model = tiny_model()
    model.config._name_or_path = "somebody/bert-sst2"
    card = saved_card(pruned(model), tmp_path / "out")
    assert card.data.base_model == "somebody/bert-sst2"
    assert card.text.startswith("\n# somebody/bert-sst2, pruned by K-prune\n")
    assert "[somebody/bert-sst2](https://huggingface.co/somebody/bert-sst2)" in card.text


@pytest.mark.parametrize(("stored", "told"), [("float16", True), ("float32", False)])
def test_a_checkpoint_of_another_dtype_on_disk_is_told(stored, told, tmp_path):
    model = tiny_model().to(getattr(torch, stored))
    save_tiny(tmp_path / "dense", model)
    pruner = KPruner.from_pretrained(tmp_path / "dense", dtype="float32")
    pruner.prune(KPruneConfig(), texts_of(SAMPLES))
    card = saved_card(pruner, tmp_path / "out")
    assert ("has float16 weights on disk and was loaded as float32" in card.text) == told
    assert [cell[-9:] for cell in cells(card, "size")[0][1:3]] == ["(float32)"] * 2


@pytest.mark.parametrize("readme", [LICENSED, None, "---\nlicense: [mit\n---\n", "---\n- list\n---\n", "words"])
def test_license_and_languages_are_those_of_the_dense_model(readme, tmp_path):
    save_tiny(tmp_path / "dense")
    if readme is not None:
        (tmp_path / "dense" / "README.md").write_text(readme)
    pruner = KPruner.from_pretrained(tmp_path / "dense")
    pruner.prune(KPruneConfig(), texts_of(SAMPLES))
    data = saved_card(pruner, tmp_path / "out").data
    expected = ("other", "own", ["en", "de"]) if readme == LICENSED else (None, None, None)
    assert (data.license, data.license_name, data.language) == expected and data.datasets is None
    facts = CardFacts(license="mit", language="fr", title="A small one")
    card = saved_card(pruner, tmp_path / "given", facts=facts)
    assert (card.data.license, card.data.license_name, card.data.language) == ("mit", None, "fr")
    assert card.text.startswith("\n# A small one\n")


def test_license_and_languages_of_a_model_on_the_hub(stand_in, tmp_path):
    stand_in.files["somebody/bert"] = {"README.md": LICENSED.encode()}
    model = tiny_model()
    model.config._name_or_path = "somebody/bert"
    data = saved_card(pruned(model), tmp_path / "out").data
    assert (data.license, data.language, data.base_model) == ("other", ["en", "de"], "somebody/bert")
    assert {request.split()[1] for request in stand_in.requests} == {"/somebody/bert/resolve/main/README.md"}


def test_a_hub_that_cannot_be_asked_for_the_license_is_no_failure(stand_in, monkeypatch):
    """It is asked once: to try again would take half a minute."""
    stand_in.refuse = 503
    assert inherited_fields("somebody/bert") == {}
    assert stand_in.requests == ["GET /somebody/bert/resolve/main/README.md"]
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", "http://127.0.0.1:9/{repo_id}/{revision}/{filename}")
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert inherited_fields("somebody/bert") == {}
