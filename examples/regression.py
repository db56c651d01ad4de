"""Prunes a model that rates texts or pairs (one output) and compares rank correlation, size and speed.

python examples/regression.py --model cross-encoder/stsb-distilroberta-base \
    --dataset nyu-mll/glue --dataset_config stsb --output_dir stsb-pruned
"""

from collections.abc import Sequence

import common
import numpy as np
from scipy.stats import pearsonr, spearmanr
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from optimum_kprune import KPruner


def predict_values(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[list]) -> np.ndarray:
    """Returns the rating of every text, or pair of texts given as two lists."""
    values = np.empty(len(texts[0]))
    for row, outputs in common.predict(model, tokenizer, common.encode(tokenizer, *texts)):
        values[row] = outputs["logits"].item()
    return values


def main(arguments: Sequence[str] | None = None) -> None:
    """Loads, evaluates, prunes and saves, evaluates again."""
    args = common.parse_arguments(__doc__, ["sentence1", "sentence2"], "label", arguments)
    pruner = KPruner.from_pretrained(args.model, task="text-classification")
    dense, tokenizer = pruner.teacher, pruner.processing_class

    rows = common.load_validation(args)
    texts = [list(rows[column]) for column in args.text_columns]
    labels = np.array(rows[args.label_column])
    dense_values = predict_values(dense, tokenizer, texts)
    print(f"dense Spearman correlation {100 * spearmanr(dense_values, labels)[0]:.2f} on {len(rows):,} rows")

    result = common.prune(pruner, args)

    values = predict_values(pruner.model, tokenizer, texts)
    table = {
        name: tuple(100 * float(correlation(predicted, labels)[0]) for predicted in (dense_values, values))
        for name, correlation in (("Spearman [%]", spearmanr), ("Pearson [%]", pearsonr))
    }
    common.print_table(table | common.measure(dense, pruner.model, result))


if __name__ == "__main__":
    main()
