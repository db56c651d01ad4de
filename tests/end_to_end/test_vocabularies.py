"""A prune with a smaller vocabulary: an ordinary model and tokenizer, in folders, pipelines, sweeps and searches."""

import json
import subprocess
import sys

import numpy as np
import onnxruntime
import pytest
import torch
import vocabularies
from datasets import Dataset
from sentence_transformers import CrossEncoder, SentenceTransformer, models
from tiny import HIDDEN, same_state
from transformers import AutoModelForSequenceClassification, AutoTokenizer, Trainer, TrainingArguments

from optimum.commands import optimum_cli
from optimum_kprune import KPruneConfig, KPruner, read_vocabulary, restore_vocabulary
from optimum_kprune.encoder.file_size import megabytes_of

TEXTS, LABELLED = vocabularies.texts(120), {"text": vocabularies.texts(24, seed=1), "label": [0, 1] * 12}
SIZES = {"WordPiece": 80, "BPE": 300, "Unigram": 70}
WITHOUT_PLUGIN = """
import sys, torch
sys.modules["optimum_kprune"] = None
from transformers import AutoModelForSequenceClassification, AutoTokenizer
for folder in sys.argv[1:]:
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    model = AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=True)
    expected = torch.load(folder + ".pt", weights_only=True)
    batch = tokenizer(expected["texts"], padding=True, truncation=True, return_tensors="pt")
    assert torch.equal(batch["input_ids"], expected["ids"])
    assert torch.equal(model(**batch).logits, expected["logits"])
"""


def pruned(kind="WordPiece", model=None, **settings):
    pruner = KPruner(model or vocabularies.model(kind), vocabularies.tokenizer(kind))
    pruner.prune(KPruneConfig(**{"vocabulary": SIZES[kind], "heldout_share": 0.2, **settings}), TEXTS)
    return pruner


@torch.no_grad()
def read_by(model, tokenizer, texts=TEXTS[:6]):
    batch = tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
    return batch["input_ids"], model(**batch).logits


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """By kind, the pruner and the folder that it saved."""
    root, found = tmp_path_factory.mktemp("vocabularies"), {}
    for kind in SIZES:
        pruner = pruned(kind)
        pruner.save_pretrained(root / kind)
        found[kind] = pruner, root / kind
    return found


@pytest.mark.parametrize("kind", SIZES)
def test_what_is_loaded_is_what_was_saved(folders, kind):
    pruner, folder = folders[kind]
    model, tokenizer = (
        AutoModelForSequenceClassification.from_pretrained(folder),
        AutoTokenizer.from_pretrained(folder),
    )
    assert type(tokenizer) is type(vocabularies.tokenizer(kind)) and len(tokenizer) == SIZES[kind]
    assert model.config.vocab_size == SIZES[kind]
    for name in ("pad", "bos", "eos"):
        if getattr(model.config, f"{name}_token_id") is not None:
            assert getattr(model.config, f"{name}_token_id") == getattr(tokenizer, f"{name}_token_id")
    loaded, own = read_by(model, tokenizer), read_by(pruner.model, pruner.processing_class)
    assert all(torch.equal(one, other) for one, other in zip(loaded, own, strict=True))


@pytest.mark.slow
def test_folders_load_without_the_package(folders):
    for pruner, folder in folders.values():
        ids, logits = read_by(pruner.model, pruner.processing_class)
        torch.save({"texts": TEXTS[:6], "ids": ids, "logits": logits}, f"{folder}.pt")
    paths = [str(folder) for _, folder in folders.values()]
    subprocess.run([sys.executable, "-c", WITHOUT_PLUGIN, *paths], check=True)


@pytest.mark.parametrize("kind", SIZES)
def test_the_map_restores_the_embeddings_of_the_dense_model(folders, kind):
    pruner, folder = folders[kind]
    kept, dense = read_vocabulary(folder), pruner.teacher
    saved = AutoModelForSequenceClassification.from_pretrained(folder)
    names = vocabularies.tokenizer(kind).convert_ids_to_tokens(kept)
    assert names == AutoTokenizer.from_pretrained(folder).convert_ids_to_tokens(range(len(kept)))
    whole = restore_vocabulary(saved, dense, kept)
    assert torch.equal(whole.get_input_embeddings().weight, dense.get_input_embeddings().weight)
    batch = {"input_ids": torch.tensor([kept[4:12]])}
    with torch.no_grad():
        new = saved(input_ids=torch.arange(4, 12)[None])
        assert torch.equal(whole(**batch).logits, new.logits)


def test_report_and_card_tell_what_was_removed(folders):
    pruner, folder = folders["WordPiece"]
    report = json.loads((folder / "kprune_report.json").read_text())
    assert report["vocabulary"]["size"] == 80 and report["vocabulary"]["size_before"] == 249
    assert report["parameters_before"] == pruner.teacher.num_parameters()
    assert report["parameters_after"] == pruner.model.num_parameters()
    told = str(pruner.result.vocabulary)
    assert told in (folder / "README.md").read_text() and told in str(pruner.result)


def test_the_dense_model_is_not_changed_and_is_compared_on_its_own_tokens():
    model = vocabularies.model("WordPiece")
    before = {name: values.clone() for name, values in model.state_dict().items()}
    pruner = pruned(model=model, compression_rate=0, heldout_share=0.3)
    assert all(torch.equal(values, before[name]) for name, values in model.state_dict().items())
    assert model.config.vocab_size == 249 == len(vocabularies.tokenizer("WordPiece"))
    # Nothing else was removed: all of the divergence is that of the tokens.
    assert pruner.result.flops_removed == 0 and pruner.result.heldout.divergence > 1e-4


def test_a_prune_without_it_has_all_tokens_again():
    pruner = pruned()
    pruner.prune(KPruneConfig(), TEXTS)
    assert pruner.model.config.vocab_size == 249 == len(pruner.processing_class)
    plain = KPruner(vocabularies.model("WordPiece"), vocabularies.tokenizer("WordPiece"))
    plain.prune(KPruneConfig(), TEXTS)
    assert same_state(pruner.model, plain.model) and pruner.result.vocabulary is None


def test_each_model_is_evaluated_in_its_own_tokens():
    pruner = pruned()
    figures = pruner.evaluate(LABELLED)
    for name, model, tokenizer in (
        ("dense", pruner.teacher, vocabularies.tokenizer("WordPiece")),
        ("pruned", pruner.model, pruner.processing_class),
    ):
        _, logits = read_by(model, tokenizer, LABELLED["text"])
        found = (logits.argmax(dim=1).numpy() == np.array(LABELLED["label"])).mean()
        assert figures[name]["accuracy"] == pytest.approx(found)


def test_tokenized_rows_and_trainers_are_refused(tmp_path):
    own = vocabularies.tokenizer("WordPiece")
    rows = Dataset.from_dict({**own(LABELLED["text"]), "label": LABELLED["label"]})
    pruner = pruned()
    with pytest.raises(ValueError, match=r"is evaluated on texts\. Got rows that are tokenized"):
        pruner.evaluate(rows)
    arguments = TrainingArguments(tmp_path, report_to=[], use_cpu=True)
    trainer = Trainer(pruner.teacher, arguments, train_dataset=rows, eval_dataset=rows, processing_class=own)
    by_trainer = KPruner.from_trainer(trainer)
    # Its train data, which is tokenized, is written anew.
    by_trainer.prune(KPruneConfig(vocabulary=80))
    with pytest.raises(ValueError, match="A trainer cannot evaluate a model with a vocabulary of its own"):
        by_trainer.evaluate()


def test_a_drawn_data_set_gives_what_texts_give():
    """It holds the tokens of the dense model, which are written anew."""
    texts, found = Dataset.from_dict({"text": TEXTS}), []
    pruner = KPruner(vocabularies.model("WordPiece"), vocabularies.tokenizer("WordPiece"))
    for data in (texts, pruner.get_calibration_dataset(texts)):
        pruner.prune(KPruneConfig(vocabulary=80, heldout_share=0), data)
        found.append(pruner.model)
    assert same_state(*found)


@pytest.mark.parametrize("budget", ["0.1 MB", "60% megabytes", "50% parameters"])
def test_a_budget_counts_the_embeddings_that_went(budget):
    pruner = pruned(budget=budget)
    before, after = (
        (pruner.result.megabytes_before, pruner.result.megabytes_after)
        if "megabytes" in budget or "MB" in budget
        else (pruner.result.parameters_before, pruner.result.parameters_after)
    )
    wanted = 0.1 if "MB" in budget else before * float(budget.partition("%")[0]) / 100
    assert 0.85 * wanted < after <= wanted * 1.001
    assert pruner.result.megabytes_before == pytest.approx(megabytes_of(pruner.teacher))


def test_a_sweep_is_in_one_vocabulary_and_gives_the_models_of_a_prune():
    pruner = KPruner(vocabularies.model("WordPiece"), vocabularies.tokenizer("WordPiece"))
    swept = pruner.sweep([0.3, 0.6], KPruneConfig(vocabulary=80, heldout_share=0.2), TEXTS, share_knowledge=False)
    assert same_state(swept[1].model, pruned(compression_rate=0.6).model)
    assert len({len(each.processing_class) for each in swept}) == 1 and len(pruner.processing_class) == 249


def test_a_search_evaluates_in_the_vocabulary_of_each_model():
    pruner = KPruner(vocabularies.model("WordPiece"), vocabularies.tokenizer("WordPiece"))
    config = KPruneConfig(vocabulary=200, heldout_share=0.2)
    frontier = pruner.search(TEXTS, LABELLED, max_drop=0.9, config=config, confidence=0.5, max_evaluations=2)
    chosen = frontier.chosen_point.figures["accuracy"]
    assert chosen == pruner.evaluate(LABELLED)["pruned"]["accuracy"]
    assert len(pruner.processing_class) == 200


def test_a_recovery_learns_in_the_new_tokens_and_gets_no_farther_from_the_dense_model():
    pruner = pruned(recovery_tokens=4000, compression_rate=0.6)
    assert pruner.result.recovery.tokens and pruner.model.config.vocab_size == 80
    assert pruner.result.heldout.divergence <= pruner.result.recovery.before.divergence


def test_a_pipeline_of_sentence_transformers_gets_the_tokenizer(tmp_path):
    vocabularies.model("WordPiece", "").save_pretrained(tmp_path / "dense")
    vocabularies.tokenizer("WordPiece").save_pretrained(tmp_path / "dense")
    pipeline = SentenceTransformer(
        modules=[models.Transformer(str(tmp_path / "dense")), models.Pooling(HIDDEN)], device="cpu"
    )
    before = pipeline.encode(TEXTS[:4])
    pruner = KPruner.from_sentence_transformer(pipeline)
    pruner.prune(KPruneConfig(vocabulary=120, compression_rate=0.2), TEXTS)
    pruner.save_pretrained(tmp_path / "pruned")
    loaded = SentenceTransformer(str(tmp_path / "pruned"), device="cpu")
    assert len(loaded.tokenizer) == len(pruner.sentence_transformer.tokenizer) == 120 < len(pipeline.tokenizer)
    found = loaded.encode(TEXTS[:4])
    np.testing.assert_array_equal(found, pruner.sentence_transformer.encode(TEXTS[:4]))
    np.testing.assert_array_equal(pipeline.encode(TEXTS[:4]), before)


def test_the_command_trims_and_refuses_before_it_reads_data(tmp_path, capsys):
    vocabularies.model("WordPiece").save_pretrained(tmp_path / "dense")
    vocabularies.tokenizer("WordPiece").save_pretrained(tmp_path / "dense")
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS), encoding="utf-8")

    def run(size, data="texts.txt"):
        arguments = ["optimum-cli", "kprune", "--model", str(tmp_path / "dense"), "--dataset", str(tmp_path / data)]
        sys.argv = [*arguments, "--vocabulary", size, str(tmp_path / f"out{size}")]
        optimum_cli.main()

    run("0.9")
    assert len(read_vocabulary(tmp_path / "out0.9")) < 249
    assert "Vocabulary: " in capsys.readouterr().out
    with pytest.raises(SystemExit, match=r"`--vocabulary` must be at least \d+ and below 249"):
        run("9", "missing.txt")
    assert not (tmp_path / "out9").exists()


def test_what_is_missing_is_told_before_the_prune(monkeypatch):
    monkeypatch.setattr("optimum_kprune.vocabulary.tokenizer.LIBRARY", "no_such_library")
    with pytest.raises(ValueError, match=r"no_such_library, which cannot be imported. Install 'optimum-kprune"):
        pruned()


def test_a_reranker_gets_the_tokenizer(tmp_path):
    vocabularies.model("WordPiece", num_labels=1).save_pretrained(tmp_path / "dense")
    vocabularies.tokenizer("WordPiece").save_pretrained(tmp_path / "dense")
    pruner = KPruner.from_cross_encoder(CrossEncoder(str(tmp_path / "dense"), device="cpu"))
    # Queries with different numbers of candidates.
    data = {"query": TEXTS[:40], "candidates": [TEXTS[number : number + 2 + number % 3] for number in range(40)]}
    pruner.prune(KPruneConfig(vocabulary=120, compression_rate=0.2, heldout_share=0.2), Dataset.from_dict(data))
    pruner.save_pretrained(tmp_path / "pruned")
    loaded = CrossEncoder(str(tmp_path / "pruned"), device="cpu")
    pairs = [(TEXTS[0], text) for text in TEXTS[1:5]]
    assert len(loaded.tokenizer) == 120 and pruner.result.heldout.measure == "order agreement"
    np.testing.assert_allclose(loaded.predict(pairs), pruner.cross_encoder.predict(pairs), rtol=1e-5)


@pytest.mark.usefixtures("timed_once")
@pytest.mark.slow
def test_the_folder_that_serves_has_the_tokenizer(tmp_path):
    pruner = pruned()
    drawn = pruner.get_calibration_dataset(Dataset.from_dict({"text": TEXTS}), num_tokens=300)
    made = pruner.export(tmp_path / "served", quantize="int8", calibration_dataset=drawn, evaluate=LABELLED)
    # Each reads its own tokens of the same texts.
    given = pruner._given_processing_class
    texts = [given.decode(ids, skip_special_tokens=True) for ids in drawn["input_ids"]]
    dense = read_by(pruner.teacher, given, texts)[1].log_softmax(-1)
    lost = dense.exp() * (dense - read_by(pruner.model, pruner.processing_class, texts)[1].log_softmax(-1))
    assert made.rows[3].closeness.divergence == pytest.approx(lost.sum(-1).mean().item(), rel=1e-3)
    figures = pruner.evaluate(LABELLED)
    assert [made.rows[0].figures, made.rows[3].figures, made.rows[4].figures] == [
        figures["dense"],
        figures["pruned"],
        figures["pruned"],
    ]
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "served")
    assert len(tokenizer) == 80
    session = onnxruntime.InferenceSession(tmp_path / "served" / "onnx" / "model.onnx")
    batch = tokenizer(TEXTS[:6], padding=True, truncation=True, return_tensors="np")
    (logits,) = session.run(["logits"], {given.name: batch[given.name] for given in session.get_inputs()})
    np.testing.assert_allclose(logits, read_by(pruner.model, tokenizer)[1].numpy(), rtol=1e-3, atol=1e-4)
