"""The model card, and uploads to a Hub on this machine that sees every request."""

import copy
import dataclasses
import json
import time

import datasets
import pytest
import torch
from hub_stand_in import HubStandIn
from huggingface_hub import ModelCard, constants
from huggingface_hub.utils import close_session
from tiny import (
    HEADS,
    outputs_of,
    pad,
    ragged_samples,
    same_state,
    samples_for,
    save_tiny,
    texts_of,
    tiny_model,
    tiny_tokenizer,
)
from transformers import AutoModelForSequenceClassification, Trainer, TrainingArguments
from transformers.utils import hub as transformers_hub

from optimum_kprune import CardFacts, KPruneConfig, KPruner
from optimum_kprune.calibration.summary import CalibrationSummary
from optimum_kprune.publish.card import BEGIN, END, merge_cards
from optimum_kprune.publish.dense_checkpoint import HUB_SECONDS, inherited_fields
from optimum_kprune.result import HeldoutQuality

SAMPLES = ragged_samples()
FACTS = CardFacts(
    metrics={"accuracy": (0.91, 0.8875), "f1": (0.9, 0.88)},
    dataset_name="nyu-mll/glue",
    dataset_config_name="sst2",
    dataset_split="validation",
    latency={"batch 1, 128 tokens": (30.0, 12.0)},
    machine="a laptop",
)
UPLOAD = [
    "POST /api/repos/create",
    "HEAD /{}/resolve/main/README.md",
    "POST /api/validate-yaml",
    "POST /api/models/{}/preupload/main",
    "POST /api/models/{}/commit/main",
]


@pytest.fixture
def stand_in(monkeypatch, tmp_path):
    """The Hub of this test, for huggingface_hub and transformers alike; a token is set."""
    server = HubStandIn()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", server.endpoint)
    template = server.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(transformers_hub, "_hf_api", None)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    close_session()
    yield server
    server.close()
    close_session()


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """Keeps what `datasets` caches out of the user's folders."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture(scope="module")
def pruner():
    """One prune for the tests that only read it."""
    return pruned(tiny_model())


def pruned(model, **settings):
    pruner = KPruner(model, tiny_tokenizer())
    pruner.prune(KPruneConfig(**settings), texts_of(SAMPLES))
    return pruner


def saved_card(pruner, folder, **arguments):
    pruner.save_pretrained(folder, **arguments)
    return ModelCard.load(folder / "README.md")


def cells(card, start):
    """The cells of the rows of tables that start so."""
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in card.text.splitlines() if line[:1] == "|"]
    return [row for row in rows if row[0].startswith(start)]


# The text


def test_the_metadata_can_be_read(pruner, tmp_path):
    data = saved_card(pruner, tmp_path / "out", facts=FACTS).data
    assert (data.library_name, data.pipeline_tag) == ("transformers", "text-classification")
    assert data.tags == ["optimum-kprune", "kprune", "pruning"]
    assert data.datasets == ["nyu-mll/glue"] and data.base_model is None
    assert {result.metric_type: result.metric_value for result in data.eval_results} == {
        "accuracy": 0.8875,
        "f1": 0.88,
    }
    for result in data.eval_results:
        assert (result.task_type, result.dataset_type) == ("text-classification", "nyu-mll/glue")
        assert (result.dataset_config, result.dataset_split) == ("sst2", "validation")


def test_the_numbers_are_those_of_the_result(pruner, tmp_path):
    card, result = saved_card(pruner, tmp_path / "out", facts=FACTS), pruner.result
    assert f"{result.flops_removed:.1%} of the FLOPs" in card.text
    ((_, *parameters),) = cells(card, "parameters")
    assert parameters[:2] == [f"{result.parameters_before:,}", f"{result.parameters_after:,}"]
    ((name, *flops),) = cells(card, "FLOPs")
    assert str(result.sequence_length) in name and flops[2] == f"{-result.flops_removed:+.1%}"
    ((_, *size),) = cells(card, "size")
    assert size[1] == f"{4 * result.parameters_after / 1e6:.1f} MB (float32)"
    assert abs((tmp_path / "out" / "model.safetensors").stat().st_size - 4 * result.parameters_after) < 10_000
    assert cells(card, "accuracy") == [["accuracy", "0.91", "0.8875", "-0.0225"]]
    assert cells(card, "latency")[0][1:] == ["30.0 ms", "12.0 ms", "2.50x as fast"] and "a laptop" in card.text
    rows = [row for row in cells(card, "") if row[0].isdecimal()]
    for (layer, units, bar, kept, parameters, error), entry in zip(rows, result.sublayers, strict=True):
        assert (int(layer), "attention" in units) == (entry.layer, entry.kind == "attention")
        assert kept == f"{len(entry.kept)} of {entry.total}" and error == f"{entry.error:.4f}"
        assert parameters == f"{entry.parameters_before:,} -> {entry.parameters:,}"
        assert len(bar) == 22 and abs(bar.count("█") / 20 - len(entry.kept) / entry.total) <= 0.05


@pytest.mark.parametrize("rate", [0, 0.999])
def test_a_bar_is_full_or_empty_only_where_all_or_nothing_is_left(rate, tmp_path):
    pruner = pruned(tiny_model(), compression_rate=rate)
    rows = [row for row in cells(saved_card(pruner, tmp_path / "out"), "") if row[0].isdecimal()]
    for row, entry in zip(rows, pruner.result.sublayers, strict=True):
        assert ("░" not in row[2]) == (len(entry.kept) == entry.total) and ("█" not in row[2]) == (not entry.kept)


def test_what_is_unknown_is_left_out(pruner, tmp_path):
    card = saved_card(pruner, tmp_path / "out")
    assert not cells(card, "latency") and not cells(card, "accuracy")
    assert card.data.eval_results is None and card.data.datasets is None and card.data.base_model is None
    assert "a local checkpoint" in card.text and "data that was given in memory" in card.text
    assert "None" not in str(card) and "null" not in str(card)
    without_name = saved_card(pruner, tmp_path / "other", facts=CardFacts(metrics={"accuracy": (1, 0.5)}))
    assert cells(without_name, "accuracy") and without_name.data.eval_results is None


@pytest.mark.parametrize("head", sorted(HEADS))
def test_latency_is_measured_on_request_for_every_head(head, tmp_path):
    pruner = KPruner(tiny_model("roberta", head), tiny_tokenizer())
    pruner.prune(KPruneConfig(), [pad(samples_for(pruner.teacher))])
    card = saved_card(pruner, tmp_path / "out", measure_latency=True)
    ((name, dense, small, faster),) = cells(card, "latency")
    assert name == "latency, batch 1, 38 tokens" and "thread" in card.text
    assert dense.endswith(" ms") and small.endswith(" ms") and faster.endswith("x as fast")


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"metrics": {"accuracy": 0.9}}, r"`metrics`.*'accuracy'.*Got 0\.9"),
        ({"metrics": {"accuracy": ("0.9", 0.8)}}, r"`metrics`.*Got \('0\.9', 0\.8\)"),
        ({"latency": {"batch 1": (2.0, 1.0)}}, "machine"),
        ({"dataset_name": "/home/me/data.csv"}, "no path.*Got '/home/me/data.csv'"),
    ],
)
def test_facts_that_cannot_be_published_are_refused(facts, message):
    with pytest.raises(ValueError, match=message):
        CardFacts(**facts)


# Names and paths


def test_a_model_that_was_pruned_before_is_not_called_dense(pruner, tmp_path):
    once, twice = saved_card(pruner, tmp_path / "once"), saved_card(pruned(pruner.model), tmp_path / "twice")
    assert "## Dense against pruned" in once.text and "|  | dense | pruned | change |" in once.text
    assert "## Pruned before against pruned" in twice.text and "|  | pruned before | pruned | change |" in twice.text


def test_no_path_of_the_machine_gets_into_the_card(tmp_path):
    """Model and data are local: the program names neither."""
    save_tiny(tmp_path / "model")
    (tmp_path / "texts.txt").write_text("".join(f"{text}\n" for text in texts_of(SAMPLES)))
    pruner = KPruner.from_pretrained(tmp_path / "model")
    calibration = pruner.get_calibration_dataset(tmp_path / "texts.txt")
    pruner.prune(KPruneConfig(compression_rate=0.6), calibration, save_directory=tmp_path / "out")
    content = (tmp_path / "out" / "README.md").read_text()
    assert str(tmp_path) not in content and "texts.txt" not in content and "/tmp" not in content
    card = ModelCard(content)
    assert card.data.base_model is None and card.data.datasets is None and "local files" in card.text
    assert "compression_rate=0.6" in card.text and "task='text-classification'" in card.text


def test_the_base_model_is_named_if_it_is_on_the_hub(tmp_path):
    model = tiny_model()
    model.config._name_or_path = "somebody/bert-sst2"
    card = saved_card(pruned(model), tmp_path / "out")
    assert card.data.base_model == "somebody/bert-sst2"
    assert card.text.startswith("\n# somebody/bert-sst2, pruned by K-prune\n")
    assert "[somebody/bert-sst2](https://huggingface.co/somebody/bert-sst2)" in card.text


# Quality, calibration, dtype, license


def card_with(pruner, folder, **changes):
    """The card of the prune if its result were another one."""
    other = copy.copy(pruner)
    other.result = dataclasses.replace(pruner.result)
    for name, value in changes.items():
        object.__setattr__(other.result, name, value)
    return saved_card(other, folder)


@pytest.mark.parametrize(
    ("measure", "meaning"),
    [("agreement", "likeliest class"), ("correlation", "squared distance"), ("cosine", "between the vectors")],
)
def test_what_was_lost_is_told_with_its_uncertainty_and_meaning(measure, meaning, pruner, tmp_path):
    quality = HeldoutQuality(measure, 0.9634, 0.0041, 0.0312, 0.0021, samples=1234)
    card = card_with(pruner, tmp_path / "out", heldout=quality)
    assert cells(card, measure) == [[f"{measure} with dense, held out", "1", "0.963 ± 0.004", "-0.037"]]
    assert cells(card, "divergence") == [["divergence from dense, held out", "0", "0.0312 ± 0.002", "+0.0312"]]
    (sentence,) = [line for line in card.text.splitlines() if "1,234 calibration samples" in line]
    assert sentence.startswith(f"{measure.capitalize()} and divergence") and meaning in sentence
    assert not cells(card_with(pruner, tmp_path / "other", heldout=None), "divergence")


def test_columns_and_draw_are_told_and_no_sample(pruner, tmp_path):
    summary = CalibrationSummary(("premise", "claim"), "a secret", 9, 99, 1, 9, 11.0, "drawn by seed 3")
    text = card_with(pruner, tmp_path / "out", calibration=summary).text
    assert "(columns: premise, claim; drawn by seed 3)." in text and "secret" not in text


def test_the_share_says_of_what_and_the_weights_their_dtype(pruner, tmp_path):
    text = saved_card(pruner, tmp_path / "out").text
    assert "Embeddings, pooler and head stay as they are and are not counted" in text
    assert "The weights are float32." in text and "lies on disk" not in text


@pytest.mark.parametrize(("stored", "told"), [("float16", True), ("float32", False)])
def test_a_checkpoint_of_another_dtype_on_disk_is_told(stored, told, tmp_path):
    model = tiny_model().to(getattr(torch, stored))
    save_tiny(tmp_path / "dense", model)
    pruner = KPruner.from_pretrained(tmp_path / "dense", dtype="float32")
    pruner.prune(KPruneConfig(), texts_of(SAMPLES))
    card = saved_card(pruner, tmp_path / "out")
    assert ("lies on disk in float16 and was loaded as float32" in card.text) == told
    assert [cell[-9:] for cell in cells(card, "size")[0][1:3]] == ["(float32)"] * 2


LICENSED = "---\nlicense: other\nlicense_name: own\nlanguage: [en, de]\ndatasets: [theirs]\n---\n# Theirs\n"


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


def test_a_hub_that_cannot_be_asked_for_the_license_is_no_failure(stand_in, monkeypatch, tmp_path):
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", "http://127.0.0.1:9/{repo_id}/{revision}/{filename}")
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    started = time.monotonic()
    assert inherited_fields("somebody/bert") == {}
    assert time.monotonic() - started < 2 * HUB_SECONDS


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


def test_the_same_card_again_changes_nothing(pruner, tmp_path):
    card = saved_card(pruner, tmp_path / "out", facts=FACTS)
    assert str(merge_cards(card, card)) == str(card)


@pytest.mark.parametrize("existing", ["# Mine\n\nWords.", "---\nlicense: mit\n---\n# Mine\n\nWords.\n", ""])
def test_a_card_without_marks_gets_the_generated_part_below(existing, pruner, tmp_path):
    fresh = saved_card(pruner, tmp_path / "out")
    merged = merge_cards(ModelCard(existing), fresh)
    assert merged.text.startswith(ModelCard(existing).text.rstrip()) and "pruned by K-prune" not in merged.text
    assert merged.text.count("## Dense against pruned") == 1 and merged.data.library_name == "transformers"
    assert str(merge_cards(merged, fresh)) == str(merged)


def test_a_license_that_a_person_chose_is_not_replaced_by_the_dense_models():
    existing, fresh = (ModelCard(f"{head}{BEGIN}\n{END}\n") for head in ("---\nlicense: mit\n---\n", LICENSED))
    data = merge_cards(existing, fresh).data
    assert (data.license, data.get("license_name"), data.language) == ("mit", None, ["en", "de"])


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
