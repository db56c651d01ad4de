"""Uploads to a Hub on this machine that sees every request: what is asked, kept, loaded and told."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from cards import FACTS, SAMPLES, UPLOAD, cells
from frontiers import frontier
from huggingface_hub import ModelCard, constants
from huggingface_hub.errors import RemoteEntryNotFoundError
from prunes import prune
from tiny import outputs_of, pad, same_state, tiny_model, tiny_tokenizer
from transformers import AutoModelForSequenceClassification, Trainer, TrainingArguments

from optimum_kprune import CardFacts, KPruner
from optimum_kprune.publish import hub
from optimum_kprune.publish.card import BEGIN, END

pytestmark = pytest.mark.slow

# What a person wrote


def test_an_upload_keeps_what_a_person_wrote(pruner, stand_in):
    pruner.push_to_hub("me/small", facts=FACTS)
    first = stand_in.files["me/small"]["README.md"].decode()
    edited = first.replace("library_name:", "license: mit\nlanguage:\n- en\nlibrary_name:", 1)
    edited = edited.replace("tags:\n", "tags:\n- mine\n", 1).replace(
        "# BertForSequenceClassification, pruned by K-prune", "# My own title"
    )
    edited = edited.replace(BEGIN, f"Hello.\n\n{BEGIN}\nnot mine any more") + "\n## Licence\n\nMine – 界.\n"
    stand_in.files["me/small"]["README.md"] = edited.encode()
    pruner.push_to_hub("me/small", facts=CardFacts())
    card = ModelCard(stand_in.files["me/small"]["README.md"].decode())
    assert card.data.license == "mit" and card.data.language == ["en"]
    assert card.data.tags == ["mine", "optimum-kprune", "kprune", "pruning"] and card.data.datasets == ["nyu-mll/glue"]
    assert card.data.eval_results is None and card.data.model_name is None and not cells(card, "accuracy")
    assert card.text.startswith("\n# My own title\n\nHello.\n\n<!--") and card.text.endswith(
        "## Licence\n\nMine – 界.\n"
    )
    assert "not mine any more" not in card.text and (card.text.count(BEGIN), card.text.count(END)) == (1, 1)


def test_a_card_that_cannot_be_read_is_not_lost(pruner, stand_in):
    stand_in.files["me/small"] = {"README.md": b"---\nlicense: [mit\n---\nPrecious"}
    with pytest.raises(ValueError, match=r"README\.md of 'me/small'.*Mend it"):
        pruner.push_to_hub("me/small")
    assert stand_in.files["me/small"] == {"README.md": b"---\nlicense: [mit\n---\nPrecious"}


# Uploads


def test_an_upload_makes_these_requests_and_no_others(pruner, stand_in, tmp_path):
    address = pruner.push_to_hub("small", private=True, commit_message="Pruned", facts=FACTS)
    assert address == f"{stand_in.endpoint}/me/small/commit/0123456789abcdef0123456789abcdef01234567"
    assert stand_in.requests == [request.format("me/small") for request in UPLOAD]
    assert set(stand_in.tokens) == {"Bearer hf_secret"}
    assert (stand_in.bodies[0][0]["name"], stand_in.bodies[0][0]["visibility"]) == ("small", "private")
    assert stand_in.bodies[-1][0]["value"]["summary"] == "Pruned"
    pruner.save_pretrained(tmp_path / "out", facts=FACTS)
    files = stand_in.files["me/small"]
    assert files.keys() == {path.name for path in (tmp_path / "out").iterdir()}
    assert {"README.md", "modeling_kprune.py", "kprune_config.json", "model.safetensors"} <= files.keys()
    for name, content in files.items():
        assert name == "README.md" or content == (tmp_path / "out" / name).read_bytes()
    card = ModelCard(files["README.md"].decode())
    assert card.data.model_name == "small" and "path/to/this/folder" not in card.text


def test_what_was_uploaded_loads(pruner, stand_in, tmp_path):
    pruner.push_to_hub("me/small")
    assert_loads(stand_in.download("me/small", tmp_path / "copy"), pruner.model)


def assert_loads(folder, model):
    assert (folder / "modeling_kprune.py").is_file()
    assert json.loads((folder / "config.json").read_text())["auto_map"]
    loaded = AutoModelForSequenceClassification.from_pretrained(folder)
    assert same_state(loaded, model)
    for one, other in zip(outputs_of(loaded, pad(SAMPLES)), outputs_of(model, pad(SAMPLES)), strict=True):
        assert (one == other).all()


def assert_tells_the_prune(files, pruner):
    """Whether the settings are there."""
    assert json.loads(files["kprune_config.json"]) == pruner.config.to_dict()


def test_the_model_uploads_itself(pruner, stand_in, tmp_path):
    pruner.model.push_to_hub("me/small")
    assert stand_in.requests == [request.format("me/small") for request in UPLOAD]
    assert set(stand_in.tokens) == {"Bearer hf_secret"}
    files = stand_in.files["me/small"]
    assert_tells_the_prune(files, pruner)
    card = ModelCard(files["README.md"].decode())
    assert card.data.tags == ["optimum-kprune", "kprune", "pruning"] and card.data.library_name == "transformers"
    assert_loads(stand_in.download("me/small", tmp_path / "copy"), pruner.model)


def test_the_model_uploads_itself_and_leaves_the_card(pruner, stand_in, tmp_path):
    pruner.push_to_hub("me/small", facts=FACTS)
    card = stand_in.files["me/small"]["README.md"]
    stand_in.files["me/small"] = {"README.md": card}
    pruner.model.push_to_hub("me/small")
    assert stand_in.files["me/small"]["README.md"] == card
    assert_tells_the_prune(stand_in.files["me/small"], pruner)
    assert_loads(stand_in.download("me/small", tmp_path / "copy"), pruner.model)


def test_the_trainer_uploads_a_model_that_loads_and_the_pruner_completes_its_card(pruner, stand_in, tmp_path):
    arguments = TrainingArguments(tmp_path / "run", hub_model_id="me/trained", report_to=[], use_cpu=True)
    trainer = Trainer(pruner.model, arguments, processing_class=tiny_tokenizer())
    trainer.push_to_hub()
    assert stand_in.requests == [UPLOAD[0], *(request.format("me/trained") for request in UPLOAD[2:])]
    files = stand_in.files["me/trained"]
    assert_tells_the_prune(files, pruner)
    theirs = ModelCard(files["README.md"].decode())
    assert {"optimum-kprune", "generated_from_trainer"} <= {*theirs.data.tags} and BEGIN not in theirs.text
    assert_loads(stand_in.download("me/trained", tmp_path / "copy"), pruner.model)
    pruner.push_to_hub("me/trained", facts=FACTS)
    both = ModelCard(stand_in.files["me/trained"]["README.md"].decode())
    assert (
        both.text.startswith(theirs.text.rstrip())
        and cells(both, "accuracy")
        and {*theirs.data.tags} == {*both.data.tags}
    )


def test_what_is_trained_on_still_tells_the_prune(pruner, tmp_path):
    pruner.save_pretrained(tmp_path / "pruned")
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "pruned")
    rows = [{"input_ids": ids, "attention_mask": [1] * len(ids), "labels": 0} for ids in SAMPLES]
    arguments = TrainingArguments(tmp_path / "run", max_steps=2, save_steps=1, report_to=[], use_cpu=True)
    trainer = Trainer(model, arguments, train_dataset=rows, processing_class=tiny_tokenizer())
    trainer.train()
    trainer.save_model()
    for folder in (tmp_path / "run", tmp_path / "run" / "checkpoint-1"):
        assert_tells_the_prune({path.name: path.read_text() for path in folder.glob("kprune_*.json")}, pruner)


# What goes wrong


@pytest.mark.parametrize("status", [401, 403])
def test_a_token_that_may_not_write_is_told(status, pruner, stand_in):
    stand_in.refuse = status
    with pytest.raises(PermissionError, match=rf"'me/small'.*may not write.*status {status}.*role `write`"):
        pruner.push_to_hub("me/small", token="hf_other")


def test_a_hub_that_fails_is_told(pruner, stand_in):
    stand_in.refuse = 418
    with pytest.raises(OSError, match=r"'me/small'.*Try again"):
        pruner.push_to_hub("me/small")


def test_a_hub_that_cannot_be_reached_is_told(pruner, stand_in, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ConnectionError, match=r"could not be reached.*network"):
        pruner.push_to_hub("me/small")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ConnectionError, match="HF_HUB_OFFLINE"):
        pruner.push_to_hub("me/small")
    assert not stand_in.requests


def test_no_token_and_no_name_are_told_before_any_request(pruner, stand_in, monkeypatch, tmp_path):
    with pytest.raises(ValueError, match="a/b/c"):
        pruner.push_to_hub("a/b/c")
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    with pytest.raises(PermissionError, match=r"needs a token.*hf auth login.*HF_TOKEN.*`token`"):
        pruner.push_to_hub("me/small")
    assert not stand_in.requests


@pytest.fixture
def network_free_hub(monkeypatch):
    """Stands in for the Hub: records what is made and uploaded."""
    calls = []

    class RecordingApi:
        def __init__(self, token=None):
            calls.append(("token", token))

        def create_repo(self, repo_id, **arguments):
            calls.append(("create_repo", repo_id, arguments))
            return SimpleNamespace(repo_id=f"me/{repo_id}")

        def hf_hub_download(self, *_, **__):
            raise RemoteEntryNotFoundError("no card", response=SimpleNamespace(headers={}, request=None))

        def upload_folder(self, folder_path, **arguments):
            calls.append(("upload_folder", sorted(path.name for path in Path(folder_path).iterdir()), arguments))
            return "https://hub.invalid/commit/1"

    monkeypatch.setattr(hub, "HfApi", RecordingApi)
    return calls


# The output folder


def test_there_is_nothing_to_save_or_push_before_a_prune(tmp_path, network_free_hub):
    pruner = KPruner(tiny_model())
    with pytest.raises(ValueError, match="Call `prune` first"):
        pruner.save_pretrained(tmp_path / "out")
    with pytest.raises(ValueError, match="Call `prune` first"):
        pruner.push_to_hub("name")
    assert not list(tmp_path.iterdir()) and not network_free_hub


def test_push_to_hub_uploads_what_is_saved(tmp_path, network_free_hub):
    pruner = prune(tiny_model())
    pruner.save_pretrained(tmp_path / "out")
    address = pruner.push_to_hub("name", token="secret", private=True, commit_message="Pruned")
    assert address == "https://hub.invalid/commit/1"
    assert network_free_hub == [
        ("token", "secret"),
        ("create_repo", "name", {"private": True, "exist_ok": True}),
        ("token", "secret"),
        (
            "upload_folder",
            sorted(path.name for path in (tmp_path / "out").iterdir()),
            {"repo_id": "me/name", "commit_message": "Pruned"},
        ),
    ]


def test_pictures_are_uploaded_with_the_card(network_free_hub):
    pruner = prune(tiny_model())
    pruner.frontier = frontier()
    pruner.push_to_hub("name", token="secret", plots=True)
    ((_, files, _),) = [call for call in network_free_hub if call[0] == "upload_folder"]
    assert {"kept.png", "frontier.png", "README.md"} <= set(files)
