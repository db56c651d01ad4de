"""Checks a graph before it is handed over: on inputs of several shapes, it must give what PyTorch gives."""

from collections.abc import Iterable
from typing import Any

import torch
from transformers import PreTrainedModel

from ..calibration.spec import Batch, main_input
from ..encoder.rounding import difference

# Largest difference of an output, as a share of its largest value: some roundings in float32.
TOLERANCE = 1e-4


@torch.no_grad()
def require_same_outputs(run: Any, model: PreTrainedModel, batches: Iterable[Batch]) -> float:
    """Compares every output of a graph with PyTorch.

    Args:
        run: a session of the graph.
        model: the model in float32, in evaluation mode, on the CPU.
        batches: inputs of several shapes.

    Returns:
        the largest difference of an output, as a share of its largest value.

    Raises:
        ValueError: if an output differs by more than rounding, is no number, or is missing.
    """
    largest = 0.0
    for batch in batches:
        expected, outputs = model(**batch), run(**batch)
        for name, value in expected.items():
            found = difference(outputs[name], value) if name in outputs else float("nan")
            # Not the other way round: a difference that is no number is none that is allowed.
            if not found <= TOLERANCE:
                raise ValueError(
                    f"The graph of this {type(model).__name__} differs from PyTorch: {name} for inputs of "
                    f"{' x '.join(map(str, main_input(batch).shape))} by {found:.1e} of its largest value; allowed is "
                    f"{TOLERANCE:.0e}. It was not written. Try other versions of torch, onnx, onnxscript and "
                    "onnxruntime."
                )
            largest = max(largest, found)
    return largest
