"""Prunes a fine-tuned classifier of texts or pairs and compares accuracy, size and speed.

python examples/text_classification.py --model distilbert/distilbert-base-uncased-finetuned-sst-2-english \
    --dataset nyu-mll/glue --dataset_config sst2 --output_dir sst2-pruned
"""

from collections.abc import Sequence

import common
import numpy as np
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from optimum_kprune import KPruner


def predict_classes(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[list]) -> np.ndarray:
    """Returns the most likely class of every text, or pair of texts given as two lists."""
    classes = np.empty(len(texts[0]), dtype=int)
    for row, outputs in common.predict(model, tokenizer, common.encode(tokenizer, *texts)):
        classes[row] = outputs["logits"].argmax()
    return classes


def read_labels(rows: Dataset, column: str, model: PreTrainedModel) -> np.ndarray:
    """Returns the labels as class indices of the model; the data may hold their names."""
    return np.array([model.config.label2id[label] if isinstance(label, str) else label for label in rows[column]])


def main(arguments: Sequence[str] | None = None) -> None:
    """Loads, evaluates, prunes and saves, evaluates again."""
    args = common.parse_arguments(__doc__, ["sentence"], "label", arguments)
    pruner = KPruner.from_pretrained(args.model, task="text-classification")
    dense, tokenizer = pruner.teacher, pruner.processing_class

    rows = common.load_validation(args)
    texts = [list(rows[column]) for column in args.text_columns]
    labels = read_labels(rows, args.label_column, dense)
    dense_classes = predict_classes(dense, tokenizer, texts)
    print(f"dense accuracy {100 * np.mean(dense_classes == labels):.2f} on {len(rows):,} rows")

    result = common.prune(pruner, args)

    classes = predict_classes(pruner.model, tokenizer, texts)
    accuracies = [100 * float(np.mean(predicted == labels)) for predicted in (dense_classes, classes)]
    agreement = 100 * float(np.mean(classes == dense_classes))
    table = {"accuracy [%]": tuple(accuracies), "agreement with dense [%]": (100.0, agreement)}
    common.print_table(table | common.measure(dense, pruner.model, result))


if __name__ == "__main__":
    main()
