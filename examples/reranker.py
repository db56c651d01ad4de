"""Trains a reranker offline in minutes, prunes it, and shows what that costs and what it brings.

python examples/reranker.py --encoder path/to/checkpoint --data path/to/squad --output_dir reranker-output

The data has the columns of SQuAD (`question`, `context`, `title`) and the splits train and validation. The candidates
of a question are its own paragraph, others of the same article, and some of other articles; the right one is its own.
The encoder may be any; one that has read questions with their paragraphs before learns faster. `--model` takes a
reranker that is trained, and trains none.
"""

import random
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, load_dataset
from sentence_transformers import CrossEncoder, CrossEncoderTrainer, CrossEncoderTrainingArguments
from sentence_transformers.cross_encoder.evaluation import CrossEncoderRerankingEvaluator
from sentence_transformers.cross_encoder.losses import BinaryCrossEntropyLoss
from transformers import set_seed

# Candidates of a question besides its own paragraph: of the same article, of others.
TRAINED_ON, RANKED = (2, 1), (7, 2)
MAX_LENGTH, BATCH_SIZE, LEARNING_RATE = 192, 16, 1e-4
Query = dict[str, Any]


def make_queries(rows: Dataset, count: int, others: tuple[int, int], seed: int) -> list[Query]:
    """Returns questions with their candidates: `query`, `positive` and `negative`, as the library's evaluator reads.

    Args:
        rows: questions with their paragraphs, and the titles of the articles.
        count: number of questions, drawn by the seed.
        others: number of other paragraphs of the same article, and of those of other articles.
        seed: seed of the draw.
    """
    generator = random.Random(seed)
    articles: dict[str, list[str]] = defaultdict(list)
    for title, context in dict.fromkeys(zip(rows["title"], rows["context"], strict=True)):
        articles[title].append(context)
    queries = []
    for row in generator.sample(list(rows), min(count, len(rows))):
        own = [context for context in articles[row["title"]] if context != row["context"]]
        rest = [context for title, contexts in articles.items() if title != row["title"] for context in contexts]
        drawn = [*generator.sample(own, min(others[0], len(own))), *generator.sample(rest, min(others[1], len(rest)))]
        queries.append({"query": row["question"], "positive": [row["context"]], "negative": drawn})
    return queries


def train(encoder: str, queries: list[Query], folder: Path, seed: int) -> CrossEncoder:
    """Returns a reranker that has learned to tell the own paragraph of a question from the others."""
    set_seed(seed)
    model = CrossEncoder(encoder, num_labels=1, max_length=MAX_LENGTH, device="cpu")
    # Word embeddings are half of a small encoder, and so few texts cannot improve them.
    model.model.get_input_embeddings().requires_grad_(False)
    pairs = [(each["query"], text, float(text in each["positive"])) for each in queries for text in candidates(each)]
    queried, texts, labels = map(list, zip(*pairs, strict=True))
    settings = CrossEncoderTrainingArguments(
        str(folder / "training"),
        num_train_epochs=1,
        per_device_train_batch_size=BATCH_SIZE,
        learning_rate=LEARNING_RATE,
        warmup_steps=0.1,
        use_cpu=True,
        seed=seed,
        save_strategy="no",
        report_to="none",
        logging_steps=50,
    )
    weight = torch.tensor(float(sum(TRAINED_ON)))
    rows = Dataset.from_dict({"query": queried, "text": texts, "label": labels})
    CrossEncoderTrainer(model, settings, rows, loss=BinaryCrossEntropyLoss(model, pos_weight=weight)).train()
    model.model.requires_grad_(True)
    return model.eval()


def candidates(query: Query) -> list[str]:
    """Returns all candidates of a query."""
    return [*query["positive"], *query["negative"]]


if __name__ == "__main__":
    started = time.perf_counter()
    encoder, data, output, count = sys.argv[1:5]
    torch.set_num_threads(1)
    rows = load_dataset(data, split="train")
    model = train(encoder, make_queries(rows, int(count), TRAINED_ON, 0), Path(output + "-work"), 0)
    model.save_pretrained(output)
    print("seconds", time.perf_counter() - started)
    evaluation = make_queries(load_dataset(data, split="validation"), 200, RANKED, 1)
    started = time.perf_counter()
    print(CrossEncoderRerankingEvaluator(evaluation, at_k=10, batch_size=32)(model))
    print("seconds", time.perf_counter() - started)
