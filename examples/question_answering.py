"""Prunes an extractive question answering model and compares exact match, F1, size and speed.

python examples/question_answering.py --model distilbert/distilbert-base-uncased-distilled-squad \
    --dataset rajpurkar/squad --output_dir squad-pruned
"""

import argparse
from collections.abc import Sequence

import common
import numpy as np
import torch
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from optimum_kprune import KPruner

MAX_LENGTH = 256
STRIDE = 96
LONGEST_ANSWER = 30


def best_span(
    start_logits: torch.Tensor, end_logits: torch.Tensor, in_context: torch.Tensor
) -> tuple[float, int, int]:
    """Returns score, first and last token of the most likely answer within the context of one window."""
    length = len(in_context)
    scores = start_logits[:length, None] + end_logits[None, :length]
    allowed = in_context[:, None] & in_context[None, :]
    allowed &= allowed.new_ones(scores.shape).triu() & allowed.new_ones(scores.shape).tril(LONGEST_ANSWER - 1)
    place = int(scores.masked_fill(~allowed, -torch.inf).argmax())
    start, end = divmod(place, length)
    return float(scores[start, end]), start, end


def predict_answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[str],
    contexts: Sequence[str],
    may_be_unanswerable: bool = False,
) -> list[str]:
    """Returns the best answer of every question over all windows of its context.

    Args:
        model: the model.
        tokenizer: its tokenizer.
        questions: the questions.
        contexts: the context of each.
        may_be_unanswerable: whether the answer is the empty text where the classification token scores higher, in
            every window, than the best answer: SQuAD 2.0, with the usual threshold of 0.
    """
    # Questions may begin with blanks, which would take the place of context.
    questions = [question.strip() for question in questions]
    max_length = min(MAX_LENGTH, tokenizer.model_max_length)
    windows = common.encode(
        tokenizer,
        questions,
        contexts,
        truncation="only_second",
        max_length=max_length,
        stride=min(STRIDE, max_length // 2),
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )
    questions_of_windows, offsets = windows.pop("overflow_to_sample_mapping"), windows.pop("offset_mapping")
    best = [(-np.inf, "")] * len(questions)
    none = np.full(len(questions), np.inf if may_be_unanswerable else -np.inf)
    for window, outputs in common.predict(model, tokenizer, windows):
        in_context = torch.tensor([part == 1 for part in windows.sequence_ids(window)])
        score, start, end = best_span(outputs["start_logits"], outputs["end_logits"], in_context)
        question = questions_of_windows[window]
        answer = contexts[question][offsets[window][start][0] : offsets[window][end][1]]
        best[question] = max(best[question], (score, answer))
        if may_be_unanswerable:
            token = windows["input_ids"][window].index(tokenizer.cls_token_id)
            none[question] = min(none[question], float(outputs["start_logits"][token] + outputs["end_logits"][token]))
    return ["" if no_answer > score else answer for (score, answer), no_answer in zip(best, none, strict=True)]


def evaluate(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Dataset, args: argparse.Namespace
) -> np.ndarray:
    """Returns exact match and F1 in percent."""
    questions, contexts = (list(rows[column]) for column in args.text_columns)
    references = [answers["text"] for answers in rows[args.label_column]]
    # A question without references has no answer in its context.
    answers = predict_answers(model, tokenizer, questions, contexts, not all(references))
    pairs = ((answer, texts or [""]) for answer, texts in zip(answers, references, strict=True))
    return 100 * np.mean([common.answer_scores(*pair) for pair in pairs], axis=0)


def main(arguments: Sequence[str] | None = None) -> None:
    """Loads, evaluates, prunes and saves, evaluates again."""
    args = common.parse_arguments(__doc__, ["question", "context"], "answers", arguments)
    pruner = KPruner.from_pretrained(args.model, task="question-answering")
    dense, tokenizer = pruner.teacher, pruner.processing_class

    rows = common.load_validation(args)
    before = evaluate(dense, tokenizer, rows, args)
    print(f"dense exact match {before[0]:.2f}, F1 {before[1]:.2f} on {len(rows):,} questions")

    result = common.prune(pruner, args, max_length=min(MAX_LENGTH, tokenizer.model_max_length))

    after = evaluate(pruner.model, tokenizer, rows, args)
    table = {name: (float(before[i]), float(after[i])) for i, name in enumerate(("exact match [%]", "F1 [%]"))}
    common.print_table(table | common.measure(dense, pruner.model, result))


if __name__ == "__main__":
    main()
