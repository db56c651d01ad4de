"""Prunes a tagger of words (entities, parts of speech) and compares accuracy, entity F1, size and speed.

python examples/token_classification.py --model dslim/distilbert-NER \
    --dataset lhoestq/conll2003 --output_dir ner-pruned
"""

from collections.abc import Sequence

import common
import numpy as np
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from optimum_kprune import KPruner
from optimum_kprune.evaluation.entities import entity_scores

Tags = list[list[str]]


def predict_tags(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, sentences: Sequence[list[str]]) -> Tags:
    """Returns the tag of every word, which is that of its first token; words that were cut off get none."""
    encoding = common.encode(tokenizer, sentences, is_split_into_words=True)
    tags: Tags = [[] for _ in sentences]
    for row, outputs in common.predict(model, tokenizer, encoding):
        previous = None
        for word, logits in zip(encoding.word_ids(row), outputs["logits"], strict=False):
            if word is not None and word != previous:
                tags[row].append(model.config.id2label[int(logits.argmax())])
            previous = word
    return tags


def read_tags(rows: Dataset, column: str, model: PreTrainedModel) -> Tags:
    """Returns the names of the tags; the data may hold indices, with names of their own or those of the model."""
    feature = rows.features[column].feature
    names = getattr(feature, "names", model.config.id2label)
    return [[tag if isinstance(tag, str) else names[tag] for tag in tags] for tags in rows[column]]


def score_tags(predicted: Tags, gold: Tags) -> np.ndarray:
    """Returns accuracy over words and F1 over entities, in percent."""
    # Words that were cut off are not counted.
    gold = [theirs[: len(ours)] for ours, theirs in zip(predicted, gold, strict=True)]
    right = [our == their for row in zip(predicted, gold, strict=True) for our, their in zip(*row, strict=True)]
    return 100 * np.array([np.mean(right), entity_scores(predicted, gold)["f1"]])


def main(arguments: Sequence[str] | None = None) -> None:
    """Loads, evaluates, prunes and saves, evaluates again."""
    args = common.parse_arguments(__doc__, ["tokens"], "ner_tags", arguments)
    pruner = KPruner.from_pretrained(args.model, task="token-classification")
    dense, tokenizer = pruner.teacher, pruner.processing_class

    rows = common.load_validation(args)
    sentences = list(rows[args.text_columns[0]])
    gold = read_tags(rows, args.label_column, dense)
    before = score_tags(predict_tags(dense, tokenizer, sentences), gold)
    print(f"dense accuracy {before[0]:.2f}, entity F1 {before[1]:.2f} on {len(rows):,} sentences")

    result = common.prune(pruner, args)

    after = score_tags(predict_tags(pruner.model, tokenizer, sentences), gold)
    table = {name: (float(before[i]), float(after[i])) for i, name in enumerate(("accuracy [%]", "entity F1 [%]"))}
    common.print_table(table | common.measure(dense, pruner.model, result))


if __name__ == "__main__":
    main()
