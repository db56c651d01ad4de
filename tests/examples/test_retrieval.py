"""The examples of rerankers and of retrieval run from end to end on tiny models, and their figures are right."""

import math
import random

import pytest
import reranker
import retrieval
import torch
from datasets import Dataset
from sentence_transformers import CrossEncoder, SentenceTransformer
from tiny import WORDS, save_tiny, tiny_model

pytestmark = pytest.mark.slow


@pytest.fixture
def data(tmp_path):
    """A folder of questions with paragraphs, of four articles, as SQuAD has them."""
    generator = random.Random(0)
    folder = tmp_path / "data"
    folder.mkdir()
    for split in ("train", "validation"):
        rows = []
        for article in range(4):
            for _ in range(8):
                context = " ".join(generator.choices(WORDS, k=8))
                questions = [" ".join(generator.sample(context.split(), 3)) for _ in range(2)]
                rows += [{"title": f"{split} {article}", "context": context, "question": each} for each in questions]
        Dataset.from_list(rows).to_parquet(folder / f"{split}.parquet")
    return folder


def test_candidates_are_of_the_same_and_of_other_articles(data):
    rows = Dataset.from_parquet(str(data / "train.parquet"))
    title_of = dict(zip(rows["context"], rows["title"], strict=True))
    row_of = {row["question"]: row for row in rows}
    queries = reranker.make_queries(rows, 20, (3, 2), seed=0)
    assert len(queries) == 20
    for query in queries:
        own = row_of[query["query"]]
        assert query["positive"] == [own["context"]] and len(set(reranker.candidates(query))) == 6
        assert [title_of[text] == own["title"] for text in query["negative"]] == 3 * [True] + 2 * [False]
    assert queries == reranker.make_queries(rows, 20, (3, 2), seed=0)
    assert queries != reranker.make_queries(rows, 20, (3, 2), seed=1)


def test_a_reranker_is_trained_and_pruned(data, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(reranker, "TURN_SECONDS", 0.0)
    encoder = save_tiny(tmp_path / "encoder", tiny_model(head="base model"))
    given = ["--data", data, "--num_tokens", 2000, "--queries", 10, "--train_queries", 8, "--draws", 2]
    given += ["--budgets", "60% flops", "30% flops"]
    out = tmp_path / "out"
    reranker.main(list(map(str, [*given, "--encoder", encoder, "--output_dir", out])))
    told = capsys.readouterr().out
    rows = [line.split(" | ") for line in told.splitlines() if line.startswith("|")]
    assert [row[0] for row in rows[2:]] == ["| dense", "| 60% flops", "| 30% flops"]
    assert all(" ± " in cell for row in rows[3:] for cell in row[1:])
    sizes = [
        CrossEncoder(str(out / name), device="cpu").model.num_parameters()
        for name in ("dense", "60_percent_flops", "30_percent_flops")
    ]
    assert sizes == sorted(sizes, reverse=True)


def test_ranks_and_figures_of_retrieval():
    """Of two questions, the right paragraph is the second and the first."""
    queries, documents = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[0.8, 0.6], [1.0, 0.0], [0.0, 1.0]])
    ranks = retrieval.ranks_of(queries, documents, torch.tensor([0, 2]))
    assert ranks.tolist() == [2, 1]
    assert retrieval.figures_of(ranks) == pytest.approx((100, 50 + 50 / math.log2(3)))
    assert retrieval.figures_of(torch.tensor([11, 12])) == (0, 0)


def test_embeddings_of_both_models_are_mixed(data, tmp_path, capsys):
    pipeline = SentenceTransformer(str(save_tiny(tmp_path / "model", tiny_model(head="base model"))), device="cpu")
    pipeline.save_pretrained(str(tmp_path / "dense"))
    given = ["--model", tmp_path / "dense", "--data", data, "--output_dir", tmp_path / "out", "--rates", 0.5]
    retrieval.main(list(map(str, [*given, "--queries", 10, "--num_tokens", 1000])))
    told = capsys.readouterr().out
    assert "10 questions, 32 paragraphs" in told
    rows = [line.strip("| ").split(" | ") for line in told.splitlines() if line.startswith(("| none", "| 50%"))]
    pairs = [row[:3] for row in rows]
    mixed = [["pruned", "pruned"], ["pruned", "dense"], ["dense", "pruned"]]
    assert pairs == [["none", "dense", "dense"], *(["50%", *each] for each in mixed)]
    assert (tmp_path / "out" / "0.5" / "modules.json").exists()
