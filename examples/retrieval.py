"""Prunes a SentenceTransformer that finds paragraphs for questions, and mixes its embeddings with the dense one's.

python examples/retrieval.py --model sentence-transformers/all-MiniLM-L6-v2 --data path/to/squad --output_dir out

The data has the columns of SQuAD (`question`, `context`) and the splits train and validation. The paragraph of a
question is to be found among all of the validation split. Documents are embedded once, queries as they come: the table
shows what is found where one model embeds both, and where the pruned model embeds only one of them.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import common
import torch
from datasets import Dataset, load_dataset
from sentence_transformers import SentenceTransformer
from torch import Tensor

from optimum_kprune import KPruneConfig, KPruner

AT = 10  # how many paragraphs are looked at


def ranks_of(queries: Tensor, documents: Tensor, right: Tensor) -> Tensor:
    """Returns the rank of the right document of every query, from 1, by the dot product.

    Args:
        queries: embeddings, (queries, d).
        documents: embeddings, (documents, d).
        right: index of the right document, (queries,).
    """
    similarities = queries @ documents.T
    return 1 + (similarities > similarities.gather(1, right[:, None])).sum(dim=1)


def figures_of(ranks: Tensor) -> tuple[float, float]:
    """Returns recall@10 and nDCG@10 in percent, for one right document per query."""
    is_found = ranks <= AT
    return 100 * is_found.double().mean().item(), 100 * (is_found / torch.log2(ranks + 1.0)).mean().item()


def main(arguments: Sequence[str] | None = None) -> None:
    """Embeds by the dense and by pruned models, and prints what is found."""
    args = parse_arguments(arguments)
    common.require_free(args.output_dir)
    torch.set_num_threads(args.threads)
    dense = SentenceTransformer(args.model, device="cpu")
    rows = load_dataset(args.data, split="validation")
    documents = sorted(set(rows["context"]))
    asked = rows.shuffle(seed=args.seed).select(range(min(args.queries, len(rows))))
    right = torch.tensor([documents.index(context) for context in asked["context"]])
    texts = list(asked["question"]), documents
    by_dense = embed(dense, *texts)

    pruner = KPruner.from_sentence_transformer(dense)
    config = KPruneConfig(num_tokens=args.num_tokens, seed=args.seed)
    table = [("none", "dense", "dense", *figures_of(ranks_of(*by_dense, right)))]
    for rate, pruned in zip(args.rates, pruner.sweep(args.rates, config, calibration_of(args.data)), strict=True):
        pruned.save_pretrained(Path(args.output_dir) / str(rate))
        by_pruned = embed(pruned.sentence_transformer, *texts)
        by = {"dense": by_dense, "pruned": by_pruned}
        for queries, found in (("pruned", "pruned"), ("pruned", "dense"), ("dense", "pruned")):
            ranks = ranks_of(by[queries][0], by[found][1], right)
            table.append((f"{rate:.0%}", queries, found, *figures_of(ranks)))
    print(f"\n{len(asked):,} questions, {len(documents):,} paragraphs")
    print("| FLOPs removed | queries by | documents by | recall@10 | nDCG@10 |\n|---|---|---|---|---|")
    for removed, queries, found, recall, gain in table:
        print(f"| {removed} | {queries} | {found} | {recall:.1f} | {gain:.1f} |")


def calibration_of(data: str) -> Dataset:
    """Returns the questions and the paragraphs of the train split, each once."""
    rows = load_dataset(data, split="train")
    return Dataset.from_dict({"text": sorted({*rows["question"], *rows["context"]})})


def embed(model: SentenceTransformer, queries: list[str], documents: list[str]) -> tuple[Tensor, Tensor]:
    """Returns the embeddings of queries and documents, of length 1."""
    options = {"convert_to_tensor": True, "normalize_embeddings": True, "show_progress_bar": False}
    return model.encode_query(queries, **options), model.encode_document(documents, **options)


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="pipeline: local folder or name on the Hub")
    parser.add_argument("--data", required=True, help="questions with paragraphs: local folder or name on the Hub")
    parser.add_argument("--output_dir", required=True, help="folder for the pruned models")
    parser.add_argument("--rates", nargs="+", type=float, default=[0.4, 0.6], help="default: %(default)s")
    parser.add_argument("--queries", type=int, default=1000, help="questions to ask; default: %(default)s")
    parser.add_argument("--num_tokens", type=int, default=100_000, help="budget of calibration tokens")
    parser.add_argument("--threads", type=int, default=1, help="threads of the CPU; default: %(default)s")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
