"""Prunes a sentence embedding model (mean pooling) and compares similarities, size and speed.

python examples/sentence_embeddings.py --model sentence-transformers/all-MiniLM-L6-v2 \
    --dataset sentence-transformers/stsb --label_column score --output_dir embeddings-pruned
"""

from collections.abc import Sequence

import common
import numpy as np
from scipy.stats import spearmanr
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from optimum_kprune import KPruner


def embed(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> np.ndarray:
    """Returns one embedding of unit length per text: the mean over its tokens."""
    encoding = common.encode(tokenizer, texts)
    embeddings = np.empty((len(texts), model.config.hidden_size))
    for row, outputs in common.predict(model, tokenizer, encoding):
        tokens = len(encoding["input_ids"][row])
        embeddings[row] = outputs["last_hidden_state"][:tokens].mean(dim=0)
    return embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Loads, evaluates, prunes and saves, evaluates again."""
    args = common.parse_arguments(__doc__, ["sentence1", "sentence2"], "label", arguments)
    pruner = KPruner.from_pretrained(args.model, task="feature-extraction")
    dense, tokenizer = pruner.teacher, pruner.processing_class

    rows = common.load_validation(args)
    first, second = (list(rows[column]) for column in args.text_columns)
    dense_embeddings = embed(dense, tokenizer, first + second)
    before = similarity_correlation(dense_embeddings, rows[args.label_column])
    print(f"dense Spearman correlation {before:.2f} on {len(rows):,} pairs")

    calibration = pruner.get_calibration_dataset(args.dataset, **common.calibration_options(args))
    result = pruner.prune(common.make_config(args), calibration, save_directory=args.output_dir)
    print(result)

    embeddings = embed(pruner.model, tokenizer, first + second)
    after = similarity_correlation(embeddings, rows[args.label_column])
    cosine = float((embeddings * dense_embeddings).sum(axis=1).mean())
    table = {"Spearman of similarities [%]": (before, after), "cosine to dense embedding": (1.0, cosine)}
    common.print_table(table | common.measure(dense, pruner.model, result))


def similarity_correlation(embeddings: np.ndarray, labels: Sequence[float]) -> float:
    """Returns the Spearman correlation, in percent, of the similarities of the pairs with their labels."""
    first, second = np.split(embeddings, 2)
    return 100 * float(spearmanr((first * second).sum(axis=1), np.array(labels))[0])


if __name__ == "__main__":
    main()
