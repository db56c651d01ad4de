"""A prune keeps what the equations keep, as it was once computed and written down in `reference/kept.json`."""

import json

import compute
import plain_bert
import pytest
import torch
from transformers_bert import dense_model, tensors_of

from optimum_kprune import KPruneConfig, KPruner

REFERENCE = json.loads(compute.FILE.read_text(encoding="utf-8"))
SETTINGS = {"default": KPruneConfig, "paper": KPruneConfig.paper}


def test_the_script_still_gives_the_file():
    found = compute.compute()
    assert list(found) == list(REFERENCE)
    for name, case in found.items():
        assert case["kept"] == REFERENCE[name]["kept"]
        torch.testing.assert_close(torch.tensor(case["outputs"]), torch.tensor(REFERENCE[name]["outputs"]))


@pytest.mark.parametrize("case", REFERENCE)
def test_a_prune_keeps_and_predicts_what_the_equations_do(case):
    task, name, tuned = case.split(", ")
    pruner, batches = KPruner(dense_model(task)), list(map(tensors_of, plain_bert.make_batches()))
    settings = SETTINGS[name](tuning=tuned == "tuned", num_tokens=None, measure_tokens=None, heldout_share=0)
    result = pruner.prune(settings, batches)
    assert [entry.kept for entry in result.sublayers] == REFERENCE[case]["kept"]
    with torch.no_grad():
        outputs = pruner.model(**{name: values[:1] for name, values in batches[0].items()}).to_tuple()
    outputs = torch.cat(outputs) if task == "question answering" else outputs[0]
    torch.testing.assert_close(outputs, torch.tensor(REFERENCE[case]["outputs"]), rtol=0, atol=5e-3)
