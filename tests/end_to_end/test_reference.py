"""Agreement with what the authors' program kept on a real checkpoint, where the shared folder lies beside."""

import copy
import json
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from tiny import loop_of, predictions_of

from optimum_kprune import KPruneConfig, KPruner
from optimum_kprune.encoder.tasks import with_published_targets

pytestmark = pytest.mark.slow

SHARED = Path(__file__).parents[3] / "shared"


def calibration_batches(tokenizer, rows, size):
    """The first rows of the training data in order, padded to the longest of each batch."""
    data = Dataset.from_parquet(str(SHARED / "data" / "squad" / "train.parquet")).select(range(rows))
    options = {"truncation": "only_second", "max_length": 128, "padding": True, "return_tensors": "pt"}
    return [
        dict(tokenizer(rows["question"], rows["context"], **options))
        for rows in (data[start : start + size] for start in range(0, len(data), size))
    ]


@pytest.mark.skipif(not (SHARED / "reference").is_dir(), reason="no shared folder beside the repository")
def test_the_lowest_block_keeps_what_the_reference_keeps():
    """Without tuning no solve is involved, so that heads and neurons must be the same, one by one."""
    reference = json.loads((SHARED / "reference" / "squad.json").read_text())
    (wanted,) = [entry for entry in reference["results_without_tuning"] if entry["compression"] == 0.5]
    pruner = KPruner.from_pretrained(SHARED / "checkpoints" / "squad")
    teacher = pruner.teacher.eval()
    student = copy.deepcopy(teacher).requires_grad_(False)
    predictions = predictions_of(
        teacher, student, calibration_batches(pruner.processing_class, 128, 16), with_published_targets(pruner.task)
    )
    config = KPruneConfig.paper(
        compression_rate=0.5, sequence_length=int(reference["settings"]["seq_len"]), tuning=False
    )
    assert lowest_block_kept(loop_of(predictions, config, config.sequence_length)) == [
        wanted["kept_heads"][0],
        wanted["kept_neurons"][0],
    ]


@torch.no_grad()
def lowest_block_kept(pruning):
    """The heads and neurons kept in the lowest block; without the fit, which selects nothing."""
    (rate,) = pruning.rates
    for number in range(2):
        rate.begin()
        pruning._score(number, [rate])
        rate.select()
        rate.finish(seconds=0.0)
    return [result.kept for result in rate.results]
