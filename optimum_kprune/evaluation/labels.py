"""Labels in data sets: finds their column, and turns names of classes into the numbers that the model has for them."""

from collections.abc import Mapping, Sequence
from typing import Any

from datasets import Dataset

from .metrics import IGNORED

LABEL_COLUMNS = ("label", "labels", "answers", "ner_tags", "tags", "score")


def label_column_of(dataset: Dataset, name: str | None) -> str:
    """Returns the given column of labels if it exists, or finds one by its usual names."""
    found = [column for column in (LABEL_COLUMNS if name is None else (name,)) if column in dataset.column_names]
    if not found:
        raise ValueError(
            f"The evaluation data must have a column of labels{'' if name is None else f' {name!r}'}. Got the columns "
            f"{', '.join(map(repr, dataset.column_names))}. Name it: label_column=..."
        )
    return found[0]


def classes_of(model_config: Any) -> dict[str, int]:
    """Returns the classes of a model: their numbers by name."""
    return {name: index for index, name in (getattr(model_config, "id2label", None) or {}).items()}


def numbers_of(feature: Any, classes: Mapping[str, int], labels: list[Any]) -> list[Any]:
    """Returns the numbers that a model has for labels, by their names if the data set has names of the model.

    Args:
        feature: type of the column, which may name classes: those of the labels, or of the parts of lists. None names
            none.
        classes: the classes of the model.
        labels: names or numbers of classes, or lists of them.

    Raises:
        ValueError: if the model lacks a class.
    """
    names = getattr(getattr(feature, "feature", feature), "names", None) or []
    return [_number(label, names if set(names) & set(classes) else [], classes) for label in labels]


def _number(label: Any, names: Sequence[str], classes: Mapping[str, int]) -> Any:
    """Returns the number of one class, or of each class in a list."""
    if isinstance(label, list):
        return [_number(part, names, classes) for part in label]
    if label in range(len(names)):
        label = names[label]
    if classes and type(label) is int and label != IGNORED and not 0 <= label < len(classes):
        raise ValueError(f"The labels must be numbers of classes, 0 or above and below {len(classes)}. Got {label}.")
    if not isinstance(label, str):
        return label
    if label not in classes:
        raise ValueError(f"The labels must be those of the model: {', '.join(map(repr, classes))}. Got {label!r}.")
    return classes[label]


def as_loss_takes(labels: list[Any]) -> list[Any]:
    """Returns labels as floats if samples have several: then the loss is a binary cross-entropy."""
    return [list(map(float, row)) for row in labels] if labels and isinstance(labels[0], list) else labels
