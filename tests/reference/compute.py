"""What the equations keep of a tiny model, written to kept.json: python tests/reference/compute.py"""

import json
from pathlib import Path

import equations
import plain_bert
import torch

FILE = Path(__file__).with_name("kept.json")
# The least relative gap between a score that is kept and one that is not: rounding cannot close it.
LEAST_MARGIN = 1e-3


def compute():
    """Kept heads and neurons by sublayer, and what the pruned model predicts for the first sample, by case."""
    found = {}
    for task in plain_bert.OUTPUTS:
        for name, settings in {"default": equations.DEFAULT, "paper": equations.PAPER}.items():
            for tuning in (True, False):
                found[f"{task}, {name}, {'tuned' if tuning else 'not tuned'}"] = entry(task, settings, tuning)
    return found


def entry(task, settings, tuning):
    batches = plain_bert.make_batches()
    pruned = equations.prune(plain_bert.make_weights(task), batches, settings | {"tuning": tuning})
    if pruned.margin < LEAST_MARGIN:
        raise ValueError(f"A margin of {pruned.margin} leaves it to rounding what is kept. Take another seed.")
    with torch.no_grad():
        outputs = plain_bert.outputs_of(pruned.weights, batches[0][0])
    # Not as many digits as could differ between machines.
    return {"kept": pruned.kept, "outputs": [[round(value, 4) for value in row] for row in outputs.tolist()]}


if __name__ == "__main__":
    # With which tiny tensors are fastest.
    torch.set_num_threads(1)
    cases = ",\n".join(f"  {json.dumps(name)}: {json.dumps(case)}" for name, case in compute().items())
    FILE.write_text(f"{{\n{cases}\n}}\n", encoding="utf-8")
