"""Fine-tunes or loads a model that answers questions, prunes it, evaluates both, saves, and uploads.

python examples/run_qa_kprune.py --model_name_or_path bert-base-uncased --dataset_name rajpurkar/squad --do_train \
    --do_eval --max_seq_length 384 --num_train_epochs 2 --compression_rate 0.6 --output_dir squad

The arguments are those of run_qa.py of transformers. The trained model lies in --output_dir, the pruned one in its
folder "pruned". Instead of --dataset_name, --train_file and --validation_file name json or parquet files with columns
as SQuAD has them: id, question, context, answers. Calibration takes the train data without its labels.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import common
import numpy as np
import run_common
import torch
from datasets import Dataset
from question_answering import best_span
from transformers import AutoModelForQuestionAnswering, EvalPrediction, PreTrainedTokenizerBase, Trainer

LABELS = ("start_positions", "end_positions")


@dataclass
class DataTrainingArguments(run_common.DataTrainingArguments):
    """Adds how contexts are cut into windows."""

    max_seq_length: int = field(default=384, metadata={"help": "tokens of question and window together"})
    doc_stride: int = field(default=128, metadata={"help": "tokens that neighbouring windows share"})


def answer_tokens(offsets: Sequence[tuple[int, int] | None], answers: dict[str, list]) -> tuple[int, int]:
    """Returns the first and last token of the first answer; the first token twice if the window does not hold it.

    Args:
        offsets: where each token is in the context; None outside.
        answers: texts and places of the answers, as in SQuAD.
    """
    if not answers["text"]:
        return 0, 0
    start = answers["answer_start"][0]
    end = start + len(answers["text"][0])
    first = [token for token, place in enumerate(offsets) if place and place[0] <= start < place[1]]
    last = [token for token, place in enumerate(offsets) if place and place[0] < end <= place[1]]
    return (first[0], last[-1]) if first and last else (0, 0)


def make_windows(rows: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int, stride: int) -> Dataset:
    """Cuts every context into windows, with the places of the answer and of all tokens."""

    def cut(chunk: dict[str, list], indices: list[int]) -> dict[str, list]:
        windows = common.encode(
            tokenizer,
            # Questions may begin with blanks, which would take the place of context.
            [question.strip() for question in chunk["question"]],
            chunk["context"],
            truncation="only_second",
            max_length=max_length,
            stride=stride,
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
        )
        parents, offsets = windows.pop("overflow_to_sample_mapping"), windows.pop("offset_mapping")
        for window, places in enumerate(offsets):
            inside = windows.sequence_ids(window)
            offsets[window] = [place if part == 1 else None for place, part in zip(places, inside, strict=True)]
        spans = [answer_tokens(places, chunk["answers"][row]) for places, row in zip(offsets, parents, strict=True)]
        labels = dict(zip(LABELS, map(list, zip(*spans, strict=True)), strict=True))
        return {**windows, **labels, "row": [indices[row] for row in parents], "offsets": offsets}

    return rows.map(cut, batched=True, with_indices=True, remove_columns=rows.column_names)


def make_compute_metrics(metric: Any, rows: Dataset, windows: Dataset) -> Callable[[EvalPrediction], dict[str, float]]:
    """Returns what the trainer calls with the start and end logits of all windows."""

    def compute_metrics(predicted: EvalPrediction) -> dict[str, float]:
        best = [(-np.inf, "")] * len(rows)
        contexts = rows["context"]
        for window, *logits in zip(windows, *predicted.predictions, strict=True):
            offsets = window["offsets"]
            in_context = torch.tensor([place is not None for place in offsets])
            score, start, end = best_span(*map(torch.from_numpy, logits), in_context)
            answer = contexts[window["row"]][offsets[start][0] : offsets[end][1]]
            best[window["row"]] = max(best[window["row"]], (score, answer))
        names = [str(name) for name in rows["id"]]
        predictions = [{"id": name, "prediction_text": text} for name, (_, text) in zip(names, best, strict=True)]
        references = [{"id": name, "answers": answers} for name, answers in zip(names, rows["answers"], strict=True)]
        return metric.compute(predictions=predictions, references=references)

    return compute_metrics


def main(arguments: Sequence[str] | None = None) -> None:
    """Loads everything; the rest is what all tasks share."""
    model_args, data_args, prune_args, training_args = run_common.parse(DataTrainingArguments, arguments)
    metric = run_common.load_metric(data_args.metric or "squad")
    train_rows, validation_rows = data_args.load_rows()
    tokenizer = model_args.load_tokenizer()
    max_length = min(data_args.max_seq_length, tokenizer.model_max_length)
    cut = (tokenizer, max_length, min(data_args.doc_stride, max_length // 2))
    train, validation = make_windows(train_rows, *cut), make_windows(validation_rows, *cut)
    model = AutoModelForQuestionAnswering.from_pretrained(
        model_args.model_name_or_path, revision=model_args.model_revision
    )
    run_common.run(
        lambda args: Trainer(
            model,
            args,
            train_dataset=train,
            eval_dataset=validation,
            processing_class=tokenizer,
            compute_metrics=make_compute_metrics(metric, validation_rows, validation),
        ),
        prune_args,
        training_args,
    )


if __name__ == "__main__":
    main()
