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
from optimum_kprune.evaluation.labels import classes_of, numbers_of


def predict_classes(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[list]) -> np.ndarray:
    """Returns the most likely class of every text, or pair of texts given as two lists."""
    classes = np.empty(len(texts[0]), dtype=int)
    for row, outputs in common.predict(model, tokenizer, common.encode(tokenizer, *texts)):
        classes[row] = outputs["logits"].argmax()
    return classes


def read_labels(
    rows: Dataset, column: str, model: PreTrainedModel, classes: Sequence[str] | None = None
) -> np.ndarray:
    """Returns the labels as class indices of the model: by their names if the data has them, whatever their case.

    Args:
        rows: the labelled rows.
        column: the column of the labels.
        model: the model.
        classes: names of its classes, in its order; None takes those of its config.
    """
    known, names = numbers_by_name(model, classes), names_in(rows, column)
    labels = [names[label] for label in rows[column]] if set(names) <= known.keys() and names else rows[column]
    return np.array(numbers_of(None, known, [label.lower() if isinstance(label, str) else label for label in labels]))


def require_same_classes(rows: Dataset, column: str, model: PreTrainedModel, classes: Sequence[str] | None) -> None:
    """Raises a ValueError if the data names its classes, and the model does not have these names.

    Their order would be a guess: checkpoints for MNLI, for example, have its classes in several orders.
    """
    known, names = numbers_by_name(model, classes), names_in(rows, column)
    if not set(names) <= known.keys():
        raise ValueError(
            f"The classes of the data are {', '.join(names)}, and those of {model.name_or_path!r} "
            f"{', '.join(known)}: which is which is not known. Say it by `classes`: the names in the model's order."
        )


def numbers_by_name(model: PreTrainedModel, classes: Sequence[str] | None) -> dict[str, int]:
    """Returns the numbers that a model has for its classes, by their names in lower case."""
    numbers = classes_of(model.config) if classes is None else {name: number for number, name in enumerate(classes)}
    return {name.lower(): number for name, number in numbers.items()}


def names_in(rows: Dataset, column: str) -> list[str]:
    """Returns the names that a data set has for its numbers of classes, in lower case."""
    return [name.lower() for name in getattr(rows.features[column], "names", None) or ()]


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
