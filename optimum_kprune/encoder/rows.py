"""Runs a model that reads rows on samples of several rows, such as a query with each of its candidates."""

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
        """Returns the outputs for all rows of all samples, one after the other; `logits` are (samples, rows, classes).

        Inputs of (samples, tokens) are read as they are: a row is a sample.
        """
        nested = next(iter(inputs.values()))
        if nested.dim() < 3:
            return self.model(**inputs)
        samples = nested.shape[:2]
        rows = {name: value.flatten(0, 1) if _is_of(samples, value) else value for name, value in inputs.items()}
        outputs = self.model(**rows)
        outputs["logits"] = outputs["logits"].unflatten(0, samples)
        return outputs


def _is_of(samples: tuple[int, ...], value: Any) -> bool:
    return isinstance(value, Tensor) and value.shape[:2] == samples
