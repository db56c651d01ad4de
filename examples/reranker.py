"""Trains a reranker offline in minutes, prunes it, and shows what that costs and what it brings.

python examples/reranker.py --encoder path/to/checkpoint --data path/to/squad --output_dir reranker-output

The data has the columns of SQuAD (`question`, `context`, `title`) and the splits train and validation. The candidates
of a question are its own paragraph, which is the right one, others of the same article, and some of other articles.
The encoder may be any; one that has read questions with their paragraphs before learns faster. `--model` takes a
reranker that is trained already.
"""

import argparse
import random
import time
from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from statistics import fmean, median, stdev
from typing import Any

import common
import torch
from datasets import Dataset, load_dataset
from sentence_transformers import CrossEncoder, CrossEncoderTrainer, CrossEncoderTrainingArguments
from sentence_transformers.cross_encoder.evaluation import CrossEncoderRerankingEvaluator
from sentence_transformers.cross_encoder.losses import BinaryCrossEntropyLoss
from transformers import set_seed

from optimum_kprune import KPruneConfig, KPruner
from optimum_kprune.encoder.sample_batch import sample_batch
from optimum_kprune.evaluation.latency import clock_for, in_turns

# Candidates of a question besides its own paragraph: of the same article, of others.
TRAINED_ON, RANKED = (2, 1), (7, 2)
MAX_LENGTH, BATCH_SIZE, LEARNING_RATE = 192, 16, 1e-4
# Turns in which models are timed, and the least seconds of one.
TURNS, TURN_SECONDS = 5, 1.0
Query = dict[str, Any]
Row = dict[str, Any]


# -------------------------------------------------------------------------------------------------------------- data


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


def candidates(query: Query) -> list[str]:
    """Returns all candidates of a query."""
    return [*query["positive"], *query["negative"]]


# ---------------------------------------------------------------------------------------------------------- training


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


# -------------------------------------------------------------------------------------------------------- measurements


def milliseconds(rerankers: Sequence[CrossEncoder], queries: Sequence[Query]) -> list[float]:
    """Returns how long each reranker takes for a query with its candidates, cut to their mean length."""
    pairs = [(query["query"], text) for query in queries[:50] for text in candidates(query)]
    length = round(fmean(map(len, rerankers[0].tokenizer(pairs, truncation=True)["input_ids"])))
    inputs = sample_batch(rerankers[0].model, len(candidates(queries[0])), length, padding=0)
    runs = [partial(reranker.eval().model, **inputs) for reranker in rerankers]
    taken = in_turns(runs, TURNS, TURN_SECONDS, clock_for(rerankers[0].device, torch.get_num_threads()))
    return [1000 * median(times) for times in taken]


def quality(reranker: CrossEncoder, evaluator: CrossEncoderRerankingEvaluator) -> Row:
    """Returns nDCG@10, MRR@10 and the size of the weights."""
    figures = evaluator(reranker)
    return {
        "nDCG@10": 100 * figures["ndcg@10"],
        "MRR@10": 100 * figures["mrr@10"],
        "MB": common.saved_megabytes(reranker.model),
    }


def prune(dense: CrossEncoder, args: argparse.Namespace, evaluator: CrossEncoderRerankingEvaluator) -> list[Row]:
    """Prunes to every budget on several draws; returns a row for each budget, with the spread over the draws."""
    rows, found = load_dataset(args.data, split="train"), defaultdict(list)
    for draw in range(args.draws):
        pruner = KPruner.from_cross_encoder(dense)
        # The columns query, positive and negative: whether a candidate is the right one is not read.
        calibration = Dataset.from_list(make_queries(rows, len(rows), RANKED, args.seed + draw))
        config = KPruneConfig(num_tokens=args.num_tokens, seed=args.seed + draw)
        swept = pruner.sweep(args.budgets, config, calibration)
        taken = milliseconds([dense, *(each.cross_encoder for each in swept)], evaluator.samples)
        for budget, each, own in zip(args.budgets, swept, taken[1:], strict=True):
            row = quality(each.cross_encoder, evaluator)
            row |= {"FLOPs left": 100 - 100 * each.result.flops_removed, "times as fast": taken[0] / own, "ms": own}
            found[budget].append(row)
            if not draw:
                each.save_pretrained(Path(args.output_dir) / budget.replace(" ", "_").replace("%", "_percent"))
    return [{"model": budget, **spread(each)} for budget, each in found.items()]


def spread(rows: list[Row]) -> Row:
    """Returns the means of the columns, with standard deviations if there are several rows."""
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    if len(rows) == 1:
        return {name: f"{values[0]:.1f}" for name, values in columns.items()}
    return {name: f"{fmean(values):.1f} ± {stdev(values):.1f}" for name, values in columns.items()}


# ---------------------------------------------------------------------------------------------------------------- main


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    start = parser.add_mutually_exclusive_group(required=True)
    start.add_argument("--encoder", help="encoder to train a reranker from: local folder or name on the Hub")
    start.add_argument("--model", help="trained reranker, in place of an encoder")
    parser.add_argument("--data", required=True, help="questions with paragraphs: local folder or name on the Hub")
    parser.add_argument("--output_dir", required=True, help="folder for the models")
    parser.add_argument("--budgets", nargs="+", default=["50% latency", "33% latency"], help="default: %(default)s")
    parser.add_argument("--train_queries", type=int, default=600, help="questions to train on; default: %(default)s")
    parser.add_argument("--queries", type=int, default=300, help="questions to evaluate on; default: %(default)s")
    parser.add_argument("--num_tokens", type=int, default=40_000, help="budget of calibration tokens")
    parser.add_argument("--draws", type=int, default=1, help="draws of calibration data; default: %(default)s")
    parser.add_argument("--threads", type=int, default=1, help="threads of the CPU; default: %(default)s")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Trains, prunes, saves and prints the table."""
    args = parse_arguments(arguments)
    common.require_free(args.output_dir)
    torch.set_num_threads(args.threads)
    folder = Path(args.output_dir)
    if args.model is None:
        started, rows = time.perf_counter(), load_dataset(args.data, split="train")
        dense = train(args.encoder, make_queries(rows, args.train_queries, TRAINED_ON, args.seed), folder, args.seed)
        dense.save_pretrained(str(folder / "dense"))
        print(f"trained in {time.perf_counter() - started:.0f} s")
    else:
        dense = CrossEncoder(args.model, device="cpu")
    queries = make_queries(load_dataset(args.data, split="validation"), args.queries, RANKED, args.seed)
    evaluator = CrossEncoderRerankingEvaluator(queries, at_k=10, write_csv=False)
    pruned = prune(dense, args, evaluator)
    (taken,) = milliseconds([dense], queries)
    before = {**quality(dense, evaluator), "FLOPs left": 100.0, "times as fast": 1.0, "ms": taken}
    table = [{"model": "dense", **spread([before])}, *pruned]
    print(f"\n| {' | '.join(table[0])} |\n|{'---|' * len(table[0])}")
    for row in table:
        print(f"| {' | '.join(row.values())} |")


if __name__ == "__main__":
    main()
