"""What a pruner takes from a `Trainer`: the model, calibration data and the way to evaluate."""

import copy
from typing import Any

from datasets import Dataset
from transformers import PreTrainedModel, Trainer

from .encoder.offloading import is_placed
from .vocabulary.own import own_vocabulary


def plain_model(model: Any) -> Any:
    """Returns a model with its own `forward`, as it computes outside of a trainer; weights and submodules are shared.

    A trainer in mixed precision replaces `forward` of the model by one under autocast, and does not put it back.
    """
    if "_original_forward" not in vars(model):
        return model
    plain = copy.copy(model)
    del plain._original_forward, plain.forward
    return plain


def calibration_data(train_dataset: Any) -> Dataset:
    """Returns the train data of a trainer, if calibration samples can be drawn from it.

    Raises:
        ValueError: if there is none, or it is no `datasets.Dataset`.
    """
    if not isinstance(train_dataset, Dataset):
        given = "none" if train_dataset is None else type(train_dataset).__name__
        raise ValueError(
            f"The train data of the trainer must be a `datasets.Dataset` to calibrate on it. Got {given} instead. "
            "Give the trainer one, for instance `Dataset.from_list(...)`; or prune after training, with "
            "`KPruner.from_trainer(trainer).prune(config, calibration_dataset=...)`."
        )
    return train_dataset


def evaluate_like(trainer: Trainer, model: PreTrainedModel) -> dict[str, float]:
    """Evaluates a model as a trainer would: on its data, with its arguments and metrics. The trainer stays as it is.

    Returns:
        figures by name, as `Trainer.evaluate` returns them.

    Raises:
        ValueError: if the model reads other tokens than the data has.
    """
    if own_vocabulary(model) is not None:
        raise ValueError(
            "A trainer cannot evaluate a model with a vocabulary of its own (`vocabulary`): its data is tokenized for "
            "the dense model. Pass the texts with their labels to `evaluate`, or a function that takes a model."
        )
    args = copy.copy(trainer.args)
    # A trainer that only evaluates must neither make a repository nor report a run of its own.
    args.push_to_hub, args.report_to = False, []
    evaluator = Trainer(
        # A copy, because a trainer moves its model, casts it and wraps its forward.
        model=copy.deepcopy(plain_model(model)),
        args=args,
        data_collator=trainer.data_collator,
        eval_dataset=trainer.eval_dataset,
        processing_class=trainer.processing_class,
        compute_metrics=trainer.compute_metrics,
        preprocess_logits_for_metrics=trainer.preprocess_logits_for_metrics,
    )
    if is_placed(model):
        # A trainer would move the whole model to one device, which offloaded weights do not allow.
        evaluator.accelerator.device_placement = False
    return evaluator.evaluate()
