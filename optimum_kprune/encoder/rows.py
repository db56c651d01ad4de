"""Runs a model that reads rows on samples of several rows, such as a query with each of its candidates."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn


class RowByRow(nn.Module):
    """A model that gives one vector of logits for a row, on batches of (samples, rows, tokens).

    Args:
        model: the model, whose outputs have `logits`, (rows, classes).
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, **inputs: Any) -> Any:
        """Returns the outputs for the rows of all samples, one after the other; `logits` are (samples, rows, classes).

        What is no tensor among the inputs says how to run the model.
        """
        batch = {name: value for name, value in inputs.items() if isinstance(value, Tensor)}
        samples = next(iter(batch.values())).shape[:2]
        outputs = self.model(**{**inputs, **rows_in(batch)})
        outputs["logits"] = outputs["logits"].unflatten(0, samples)
        return outputs


def rows_in(batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns the rows of all samples in a batch as a batch of their own, one after the other."""
    return {name: values.flatten(0, 1) for name, values in batch.items()}
