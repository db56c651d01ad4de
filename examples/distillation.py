"""Prunes a fine-tuned classifier, then lets it learn from the dense model for one short epoch, without labels.

python examples/distillation.py --model distilbert/distilbert-base-uncased-finetuned-sst-2-english \
    --dataset nyu-mll/glue --dataset_config sst2 --compression_rate 0.8 --output_dir sst2-distilled

The epoch goes over the calibration data (--num_tokens). The pruned model is an ordinary model: the trainer below
differs from a plain one in its loss alone.
"""

from collections.abc import Sequence
from tempfile import TemporaryDirectory
from typing import Any

import common
import numpy as np
import torch
from datasets import Dataset
from text_classification import predict_classes, read_labels
from torch import Tensor
from transformers import PreTrainedModel, Trainer, TrainingArguments

from optimum_kprune import KPruner
from optimum_kprune.algorithm.divergence import divergence
from optimum_kprune.encoder.tasks import task_of

BATCH_SIZE = 32
LEARNING_RATE = 5e-5
TEMPERATURE = 2.0


class DistillationTrainer(Trainer):
    """Trains a student to predict what its teacher predicts, whatever the task; labels are not needed."""

    def __init__(self, *args: Any, teacher: PreTrainedModel, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.teacher = teacher.to(self.args.device).eval()
        self.task = task_of(teacher)
        # The loss is a mean already, and knows no number of items.
        self.model_accepts_loss_kwargs = False

    def compute_loss(self, model: Any, inputs: dict[str, Tensor], return_outputs: bool = False, **kwargs: Any) -> Any:
        """Returns how far the student's predictions are from the teacher's, the mean over the samples."""
        mask, config = inputs["attention_mask"].bool(), self.teacher.config
        outputs = model(**inputs)
        with torch.no_grad():
            wanted = self.task.predict(self.teacher(**inputs), config, mask)
        loss = divergence(wanted, self.task.predict(outputs, config, mask), TEMPERATURE).mean()
        return (loss, outputs) if return_outputs else loss


def distil(pruner: KPruner, rows: Dataset, seed: int) -> None:
    """Trains the pruned model on for one epoch over tokenized rows."""
    with TemporaryDirectory() as folder:
        args = TrainingArguments(
            folder,
            num_train_epochs=1,
            per_device_train_batch_size=BATCH_SIZE,
            learning_rate=LEARNING_RATE,
            warmup_steps=0.1,
            train_sampling_strategy="group_by_length",
            save_strategy="no",
            report_to="none",
            seed=seed,
        )
        data = {"train_dataset": rows, "processing_class": pruner.processing_class}
        DistillationTrainer(pruner.model.train(), args, teacher=pruner.teacher, **data).train()


def main(arguments: Sequence[str] | None = None) -> None:
    """Loads and prunes, trains on and saves, evaluates before and after."""
    args = common.parse_arguments(__doc__, ["sentence"], "label", arguments)
    pruner = KPruner.from_pretrained(args.model, task="text-classification")
    rows = common.load_validation(args)
    texts = [list(rows[column]) for column in args.text_columns]
    labels = read_labels(rows, args.label_column, pruner.teacher)

    def accuracy(model: PreTrainedModel) -> float:
        return 100 * float(np.mean(predict_classes(model, pruner.processing_class, texts) == labels))

    calibration = pruner.get_calibration_dataset(args.dataset, **common.calibration_options(args))
    print(pruner.prune(common.make_config(args), calibration))
    dense, pruned = accuracy(pruner.teacher), accuracy(pruner.model)
    distil(pruner, calibration, args.seed)
    distilled = accuracy(pruner.model)
    pruner.save_pretrained(args.output_dir)
    print(f"\naccuracy [%] on {len(rows):,} rows: dense {dense:.2f}, pruned {pruned:.2f}, distilled {distilled:.2f}")
    print(f"gain of the epoch: {distilled - pruned:+.2f}")


if __name__ == "__main__":
    main()
