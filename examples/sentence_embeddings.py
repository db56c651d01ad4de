"""Prunes a SentenceTransformer and compares the similarities it gives, its size and its speed.

python examples/sentence_embeddings.py --model sentence-transformers/all-MiniLM-L6-v2 \
    --dataset sentence-transformers/stsb --label_column score --output_dir embeddings-pruned
"""

import time
from collections.abc import Sequence

import common
from scipy.stats import spearmanr
from sentence_transformers import SentenceTransformer
from torch import Tensor, cosine_similarity

from optimum_kprune import KPruner


def embed(model: SentenceTransformer, texts: list[str]) -> tuple[Tensor, float]:
    """Returns the embeddings of texts, and how many were embedded per second."""
    model.encode(texts[:32])  # warms up
    start = time.perf_counter()
    embeddings = model.encode(texts, convert_to_tensor=True)
    return embeddings, len(texts) / (time.perf_counter() - start)


def similarity_correlation(model: SentenceTransformer, embeddings: Tensor, labels: Sequence[float]) -> float:
    """Returns the Spearman correlation, in percent, of the similarities of pairs with their labels.

    Args:
        model: tells how embeddings are compared.
        embeddings: of all first texts, then of all second ones.
        labels: one per pair.
    """
    similarities = model.similarity_pairwise(*embeddings.split(len(labels)))
    return 100 * float(spearmanr(similarities.cpu(), labels)[0])


def main(arguments: Sequence[str] | None = None) -> None:
    """Loads, prunes and saves, evaluates both."""
    args = common.parse_arguments(__doc__, ["sentence1", "sentence2"], "label", arguments)
    dense = SentenceTransformer(args.model)
    pruner = KPruner.from_sentence_transformer(dense)

    rows = common.load_validation(args)
    texts = [text for column in args.text_columns for text in rows[column]]
    labels = list(rows[args.label_column])
    dense_embeddings, dense_speed = embed(dense, texts)
    before = similarity_correlation(dense, dense_embeddings, labels)
    print(f"dense Spearman correlation {before:.2f} on {len(rows):,} pairs")

    result = common.prune(pruner, args)

    pruned = SentenceTransformer(args.output_dir)
    embeddings, speed = embed(pruned, texts)
    after = similarity_correlation(pruned, embeddings, labels)
    cosine = float(cosine_similarity(embeddings, dense_embeddings).mean())
    table = {
        "Spearman of similarities [%]": (before, after),
        "cosine to dense embedding": (1.0, cosine),
        "texts encoded per second": (dense_speed, speed),
    }
    common.print_table(table | common.measure(pruner.teacher, pruner.model, result))


if __name__ == "__main__":
    main()
