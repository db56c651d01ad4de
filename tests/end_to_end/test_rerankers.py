"""From a `CrossEncoder` to a smaller one: what is preserved, what stays, and what loads again."""

import copy
import logging
import random
import subprocess
import sys

import numpy as np
import pytest
import torch
from datasets import Dataset
from sentence_transformers import CrossEncoder
from sentence_transformers.cross_encoder.evaluation import CrossEncoderRerankingEvaluator
from sentence_transformers.cross_encoder.modules import LogitScore
from tiny import ragged_samples, same_state, save_tiny, texts_of, tiny_model

from optimum.commands import optimum_cli
from optimum_kprune import KPruneConfig, KPruner

pytestmark = pytest.mark.slow

TEXTS = texts_of(ragged_samples(80))
QUERIES, DOCUMENTS = TEXTS[:24], TEXTS[24:]
# One to five candidates for a query.
GROUPS = [(query, DOCUMENTS[start : start + 1 + start % 5]) for start, query in enumerate(QUERIES)]
PAIRS = [(query, text) for query, texts in GROUPS for text in texts]
CONFIG = KPruneConfig(compression_rate=0.5, num_tokens=None, heldout_share=0)


@pytest.fixture
def reranker(tmp_path):
    folder = save_tiny(tmp_path / "dense", tiny_model(num_labels=1))
    return CrossEncoder(str(folder), device="cpu", activation_fn=torch.nn.Identity(), max_length=20)


def prune(reranker, data=GROUPS, config=CONFIG, **options):
    pruner = KPruner.from_cross_encoder(reranker)
    pruner.prune(config, data, **options)
    return pruner


def assert_same_prune(first, second):
    assert first.result.kept == second.result.kept
    for one, other in zip(first.model.parameters(), second.model.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


# What is preserved


def test_what_is_preserved_are_the_scores_and_zero(reranker):
    pruner = KPruner.from_cross_encoder(reranker)
    query, texts = GROUPS[4]
    pairs = reranker.tokenizer([query] * len(texts), texts, padding=True, truncation=True, return_tensors="pt")
    batch = {name: values[None] for name, values in pairs.items()}
    with torch.no_grad():
        outputs = pruner._encoder(pruner.teacher.eval()).running(**batch)
    prediction = pruner.task.predict(outputs, pruner.teacher.config, batch["attention_mask"][0].bool())
    scores = torch.tensor(reranker.predict([(query, text) for text in texts]))
    torch.testing.assert_close(prediction.values, torch.cat([scores, torch.zeros(1)])[None, None])


def test_nothing_changes_at_rate_0(reranker):
    pruner = prune(reranker, config=KPruneConfig(compression_rate=0.0, num_tokens=None))
    np.testing.assert_allclose(pruner.cross_encoder.predict(PAIRS), reranker.predict(PAIRS), rtol=1e-3, atol=1e-3)


# What it is calibrated on


def test_neither_batches_nor_the_order_of_the_data_matter(reranker):
    expected = prune(reranker)
    shuffled = random.Random(0).sample(GROUPS, len(GROUPS))
    assert_same_prune(prune(reranker, shuffled, batch_size=1), expected)
    assert_same_prune(prune(reranker, [(query, texts[::-1]) for query, texts in GROUPS], batch_size=3), expected)


def test_pairs_are_put_together_by_their_queries(reranker):
    shuffled = random.Random(0).sample(PAIRS, len(PAIRS))
    assert_same_prune(prune(reranker, shuffled), prune(reranker))
    rows = Dataset.from_list([{"query": query, "text": text} for query, text in PAIRS])
    assert_same_prune(prune(reranker, rows.rename_column("text", "passage")), prune(reranker))


def test_the_log_tells_what_was_read(reranker, caplog):
    with caplog.at_level(logging.INFO):
        prune(reranker, PAIRS)
    assert f"24 queries with {len(PAIRS) / 24:.1f} candidates on average" in caplog.text
    with caplog.at_level(logging.INFO):
        pruner = prune(reranker, list(zip(QUERIES, DOCUMENTS, strict=False)))
    assert "24 queries with 1.0 candidates on average" in caplog.text and pruner.result.samples == 24


# What comes out


def test_the_reranker_stays_and_a_smaller_one_comes_out(reranker):
    before, scores = copy.deepcopy(reranker), reranker.predict(PAIRS)
    pruner = prune(reranker)
    smaller = pruner.cross_encoder
    assert smaller.model is pruner.model and smaller.activation_fn is not reranker.activation_fn
    assert sum(map(torch.numel, smaller.parameters())) < sum(map(torch.numel, reranker.parameters()))
    assert not np.array_equal(smaller.predict(PAIRS), scores)
    assert same_state(reranker, before)
    np.testing.assert_array_equal(reranker.predict(PAIRS), scores)


def test_the_library_loads_what_was_saved(reranker, tmp_path):
    reranker.prompts = {"query": "w3 "}
    pruner = prune(reranker, save_directory=tmp_path / "pruned")
    loaded = CrossEncoder(str(tmp_path / "pruned"), device="cpu")
    np.testing.assert_array_equal(loaded.predict(PAIRS), pruner.cross_encoder.predict(PAIRS))
    assert isinstance(loaded.activation_fn, torch.nn.Identity)
    assert loaded.max_seq_length == 20 and loaded.prompts["query"] == "w3 "
    assert prune(loaded).model.num_parameters() < pruner.model.num_parameters()
    card = (tmp_path / "pruned" / "README.md").read_text()
    for expected in (
        "library_name: sentence-transformers",
        "pipeline_tag: text-ranking",
        'model = CrossEncoder("path/to/this/folder", trust_remote_code=True)',
        "pruner = KPruner.from_cross_encoder(cross_encoder=...)",
    ):
        assert expected in card


LOADING = """
import sys
sys.modules["optimum_kprune"] = None
import numpy as np
from sentence_transformers import CrossEncoder
model = CrossEncoder(sys.argv[1], device="cpu", trust_remote_code=True)
np.testing.assert_array_equal(model.predict([("w3 w4", "w5"), ("w3", "w6 w7")]), np.load(sys.argv[2]))
"""


def test_the_library_loads_it_without_the_plugin_too(reranker, tmp_path):
    pruner = prune(reranker, save_directory=tmp_path / "pruned")
    np.save(tmp_path / "scores.npy", pruner.cross_encoder.predict([("w3 w4", "w5"), ("w3", "w6 w7")]))
    given = [tmp_path / "pruned", tmp_path / "scores.npy"]
    done = subprocess.run([sys.executable, "-c", LOADING, *given], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# How good it is


def test_the_evaluator_of_the_library_evaluates_and_searches(reranker):
    """Its right candidate is the one that the dense model ranks first, so that its figure is 1."""
    samples = []
    for query, texts in GROUPS:
        best = int(reranker.predict([(query, text) for text in texts]).argmax())
        samples.append({"query": query, "positive": [texts[best]], "negative": texts[:best] + texts[best + 1 :]})
    evaluator = CrossEncoderRerankingEvaluator([each for each in samples if each["negative"]], write_csv=False)
    pruner = prune(reranker)
    figures = pruner.evaluate(evaluator)
    assert figures["dense"]["ndcg@10"] == pytest.approx(1)
    assert figures["pruned"] == evaluator(pruner.cross_encoder)
    frontier = pruner.search(GROUPS, evaluator, max_drop=0.9, config=CONFIG, max_evaluations=2)
    assert frontier.measure == "ndcg@10"
    assert frontier.points[frontier.chosen].figures == evaluator(pruner.cross_encoder)


# What cannot be pruned


def test_several_labels_are_those_of_a_classifier(tmp_path):
    """The advice that the error gives works."""
    classifier = CrossEncoder(str(save_tiny(tmp_path / "dense", tiny_model())), device="cpu")
    with pytest.raises(ValueError, match=r"one score. Got .* with 3 labels.*`KPruner\(cross_encoder.model"):
        KPruner.from_cross_encoder(classifier)
    pruner = KPruner(classifier.model, classifier.tokenizer)
    pruner.prune(CONFIG, PAIRS, save_directory=tmp_path / "pruned")
    assert CrossEncoder(str(tmp_path / "pruned"), device="cpu").predict(PAIRS).shape == (len(PAIRS), 3)


def test_other_pipelines_are_refused(reranker):
    with pytest.raises(ValueError, match=r"must be a loaded CrossEncoder. Got str instead"):
        KPruner.from_cross_encoder("folder")
    with pytest.raises(ValueError, match=r"Got a CrossEncoder: use `KPruner.from_cross_encoder\("):
        KPruner.from_sentence_transformer(reranker)
    reranker.append(LogitScore(true_token_id=5, false_token_id=6))
    with pytest.raises(ValueError, match=r"one Transformer that gives the scores.*Got the modules Transformer, Logit"):
        KPruner.from_cross_encoder(reranker)


def test_the_name_of_the_task_leads_to_the_way_in(reranker):
    with pytest.raises(ValueError, match=r"Got 'text-ranking' instead. For a reranker, use `KPruner.from_cross_enc"):
        KPruner(reranker.model, task="text-ranking")


def test_data_without_candidates_is_refused(reranker):
    with pytest.raises(ValueError, match=r"must hold tokens. Got none"):
        prune(reranker, [("w1", [" "]), ("w2", [""])])


def test_there_is_a_reranker_only_after_a_prune_of_one(reranker):
    with pytest.raises(ValueError, match="There is no pruned model"):
        KPruner.from_cross_encoder(reranker).cross_encoder  # noqa: B018
    pruner = prune(reranker)
    with pytest.raises(ValueError, match=r"a SentenceTransformer.*Use `KPruner.from_sentence_transformer"):
        pruner.sentence_transformer  # noqa: B018


def test_pairs_must_be_batched_by_query(reranker):
    batch = dict(reranker.tokenizer(QUERIES[:4], DOCUMENTS[:4], padding=True, return_tensors="pt"))
    with pytest.raises(ValueError, match=r"must have the shape \(batch, candidates, tokens\)"):
        prune(reranker, [batch])


# The command


def run_command(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["optimum-cli", "kprune", *map(str, arguments)])
    optimum_cli.main()


@pytest.mark.parametrize("form", ["pipeline", "config with its mark", "plain"])
def test_the_command_knows_a_reranker(form, reranker, tmp_path, monkeypatch, capsys):
    folder, task = tmp_path / "given", []
    if form == "pipeline":
        reranker.save_pretrained(str(folder))
    else:
        reranker.model.config.update({"sentence_transformers": {}} if "mark" in form else {})
        reranker.model.save_pretrained(folder)
        reranker.tokenizer.save_pretrained(folder)
        task = [] if "mark" in form else ["--task", "text-ranking"]
    rows = Dataset.from_list([{"query": query, "passage": text} for query, text in PAIRS])
    rows.to_csv(tmp_path / "pairs.csv")
    run_command(monkeypatch, "--model", folder, "--dataset", tmp_path / "pairs.csv", *task, tmp_path / "pruned")
    assert "held-out samples: order agreement" in capsys.readouterr().out
    loaded = CrossEncoder(str(tmp_path / "pruned"), device="cpu")
    expected = KPruner.from_cross_encoder(CrossEncoder(str(folder), device="cpu"))
    expected.prune(KPruneConfig(), expected.get_calibration_dataset(str(tmp_path / "pairs.csv")))
    assert same_state(loaded.model, expected.model)


def test_the_command_takes_several_labels_as_a_classifier(tmp_path, monkeypatch, capsys):
    CrossEncoder(str(save_tiny(tmp_path / "given", tiny_model())), device="cpu").save_pretrained(str(tmp_path / "ce"))
    Dataset.from_list([{"query": query, "passage": text} for query, text in PAIRS]).to_csv(tmp_path / "pairs.csv")
    arguments = ["--model", tmp_path / "ce", "--dataset", tmp_path / "pairs.csv", "--compression_rate", 0.5]
    with pytest.raises(SystemExit, match=r"3 labels.*`--task text-classification`"):
        run_command(monkeypatch, *arguments, tmp_path / "pruned")
    run_command(monkeypatch, *arguments, "--task", "text-classification", tmp_path / "pruned")
    assert "held-out samples: agreement" in capsys.readouterr().out
