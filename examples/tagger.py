"""Makes a tagger of real text, prunes it to several rates, and compares entity F1, agreement, size and speed: offline.

What is tagged is found by rules: sums of money, dates, numbers, and names, which are what has capitals inside of a
sentence. The tagger sees all words in lower case, and has to tell names by what they are and where they stand. No name
of the texts to evaluate on is in those to train on.

python examples/tagger.py --encoder sentence-transformers/all-MiniLM-L6-v2 --dataset rajpurkar/squad \
    --text_column context --output_dir tagger
"""

import argparse
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import common
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value, load_dataset
from transformers import (
    AutoModelForTokenClassification,
    AutoTokenizer,
    DataCollatorForTokenClassification,
    Trainer,
    TrainingArguments,
)
from transformers.utils import logging

from optimum_kprune import Frontier, KPruneConfig, KPruner

WORD = re.compile(r"\d+(?:[.,]\d+)*\w*|\w+(?:-\w+)*|['’]s\b|\S")
SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z])")
FIGURE = r"\d+(?:[.,]\d+)*"
MONTH = "January|February|March|April|May|June|July|August|September|October|November|December"
SPELLED = "two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|twenty|thirty|forty|fifty|hundred|thousand"
LARGE = "million|billion|trillion"
# The first that matches counts.
ENTITY = re.compile(
    rf"(?P<MONEY>(?:US)?[$£€]\s?{FIGURE}(?:\s(?:{LARGE}))?)"
    rf"|\b(?P<DATE>(?:\d{{1,2}}\s)?(?:{MONTH})(?:\s\d{{1,2}}\b)?(?:,?\s\d{{4}})?|(?:1\d|20)\d\ds?)\b"
    rf"|\b(?P<NUMBER>(?:{FIGURE}|{SPELLED})(?:\s(?:{SPELLED}|{LARGE}))*)\b"
    r"|\b(?P<NAME>[A-Z][\w-]*(?:\s[A-Z][\w-]*)*)"
)
KINDS = ("MONEY", "DATE", "NUMBER", "NAME")
TAGS = ("O", *(f"{prefix}-{kind}" for kind in KINDS for prefix in "BI"))
COLUMNS = Features({"tokens": List(Value("string")), "ner_tags": List(ClassLabel(names=list(TAGS)))})
MIN_WORDS, MAX_WORDS = 5, 60
VALIDATION_ROWS = 1_500
BATCH_SIZE = 32


# ------------------------------------------------------------------------------------------------------------- data


def sentences_of(texts: Sequence[str]) -> list[str]:
    """Returns the different sentences of texts, in order."""
    return list(dict.fromkeys(sentence for text in texts for sentence in SENTENCE_END.split(text)))


def ordinary_words(sentences: Sequence[str]) -> set[str]:
    """Returns the words that begin in lower case somewhere: at the beginning of a sentence, they are no names."""
    return {word for sentence in sentences for word in WORD.findall(sentence) if word[0].islower()}


def entities_of(sentence: str, ordinary: set[str]) -> Iterator[re.Match[str]]:
    """Yields the entities of a sentence, as matches in the group of their kind."""
    first = WORD.match(sentence)
    skipped = first.end() if first and first[0].lower() in ordinary else 0
    return ENTITY.finditer(sentence, skipped)


def tagged(sentence: str, ordinary: set[str]) -> dict[str, list[str]]:
    """Returns the words of a sentence in lower case, and their tags."""
    words = list(WORD.finditer(sentence))
    tags = ["O"] * len(words)
    for entity in entities_of(sentence, ordinary):
        inside = [index for index, word in enumerate(words) if entity.start() <= word.start() < entity.end()]
        for index in inside:
            tags[index] = f"{'B' if index == inside[0] else 'I'}-{entity.lastgroup}"
    return {"tokens": [word[0].lower() for word in words], "ner_tags": tags}


def names_in(sentence: str, ordinary: set[str]) -> set[str]:
    """Returns the names in a sentence, in lower case."""
    return {entity[0].lower() for entity in entities_of(sentence, ordinary) if entity.lastgroup == "NAME"}


def make_dataset(train: Sequence[str], validation: Sequence[str]) -> DatasetDict:
    """Returns tagged sentences of two sets of texts. From the first, those with a name of the second are left out."""
    splits = {"train": sentences_of(train), "validation": sentences_of(validation)}
    ordinary = ordinary_words([sentence for sentences in splits.values() for sentence in sentences])
    unseen = set().union(*(names_in(sentence, ordinary) for sentence in splits["validation"]))
    splits["train"] = [each for each in splits["train"] if not names_in(each, ordinary) & unseen]
    data = DatasetDict()
    for name, sentences in splits.items():
        rows = [tagged(sentence, ordinary) for sentence in sentences]
        kept = [row for row in rows if MIN_WORDS <= len(row["tokens"]) <= MAX_WORDS]
        data[name] = Dataset.from_list(kept, features=COLUMNS).shuffle(seed=0)
    data["validation"] = data["validation"].take(min(VALIDATION_ROWS, len(data["validation"])))
    return data


# ---------------------------------------------------------------------------------------------------------- training


def untrained(encoder: str) -> KPruner:
    """Returns an encoder with a new head for the tags, and its tokenizer, as a pruner holds them."""
    names = dict(enumerate(TAGS))
    labels = {name: tag for tag, name in names.items()}
    options = {"id2label": names, "label2id": labels, "dtype": torch.float32}
    model = AutoModelForTokenClassification.from_pretrained(encoder, **options)
    return KPruner(model, AutoTokenizer.from_pretrained(encoder))


def train(pruner: KPruner, rows: Dataset, args: argparse.Namespace) -> None:
    """Trains the encoder and its new head on tagged rows."""
    model = pruner.teacher
    # Half of the parameters of a small encoder are word embeddings, which so little text cannot improve.
    model.get_input_embeddings().requires_grad_(False)
    with TemporaryDirectory() as folder:
        options = TrainingArguments(
            folder,
            num_train_epochs=args.epochs,
            per_device_train_batch_size=BATCH_SIZE,
            learning_rate=args.learning_rate,
            train_sampling_strategy="group_by_length",
            save_strategy="no",
            logging_steps=20,
            report_to="none",
            disable_tqdm=True,
            seed=args.seed,
        )
        # What an evaluation has prepared is what a Trainer reads: the first token of a word has its tag.
        encoded = pruner.evaluation_on(rows).rows
        Trainer(model, options, DataCollatorForTokenClassification(pruner.processing_class), encoded).train()
    model.requires_grad_(True).eval()


# -------------------------------------------------------------------------------------------------------------- main


def compare(pruner: KPruner, data: DatasetDict, args: argparse.Namespace) -> Frontier:
    """Prunes to every rate on every draw of the texts, without their tags; returns the means over the draws."""
    evaluate = pruner.evaluation_on(data["validation"])
    frontiers = []
    for draw in range(args.draws):
        config = KPruneConfig(num_tokens=args.num_tokens, recovery_tokens=args.recovery_tokens, seed=draw)
        pruners = pruner.sweep(args.rates, config, data["train"])
        frontiers.append(pruner.frontier_of(pruners, evaluate, metric="f1", measure_latency=True))
        print(f"draw {draw}\n{frontiers[-1]}\n", flush=True)
    return Frontier.joined(frontiers) if len(frontiers) > 1 else frontiers[0]


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", help="pretrained encoder: local folder or name on the Hub")
    parser.add_argument("--model", help="instead: a tagger that was trained by this program")
    parser.add_argument("--dataset", required=True, help="texts with splits train and validation: folder or name")
    parser.add_argument("--text_column", default="context", help="default: %(default)s")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--learning_rate", type=float, default=2e-4)
    parser.add_argument("--rates", type=float, nargs="*", default=[0.5, 0.67, 0.8], help="shares of FLOPs to remove")
    parser.add_argument("--draws", type=int, default=1, help="draws of the texts to prune on")
    parser.add_argument("--num_tokens", type=int, default=20_000, help="budget of a draw")
    parser.add_argument("--recovery_tokens", type=int, default=0, help="tokens to recover on afterwards")
    parser.add_argument("--seed", type=int, default=0, help="of the training")
    parser.add_argument("--output_dir", required=True, help="folder for the tagger, its data and the table")
    args = parser.parse_args(arguments)
    if (args.encoder is None) == (args.model is None):
        parser.error("give --encoder, to train it, or --model, which is trained")
    common.require_free(args.output_dir)
    return args


def main(arguments: Sequence[str] | None = None) -> None:
    """Makes data, trains, prunes and compares."""
    args = parse_arguments(arguments)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.manual_seed(args.seed)
    folder = Path(args.output_dir)
    texts = load_dataset(args.dataset)
    data = make_dataset(*(texts[split][args.text_column] for split in ("train", "validation")))
    print(f"{len(data['train']):,} sentences to train on, {len(data['validation']):,} to evaluate on")
    if args.model:
        pruner = KPruner.from_pretrained(args.model, task="token-classification")
    else:
        pruner = untrained(args.encoder)
        train(pruner, data["train"], args)
    for each in (pruner.teacher, pruner.processing_class):
        each.save_pretrained(folder / "model")
    for split, rows in data.items():
        rows.to_parquet(folder / "data" / f"{split}.parquet")
    if args.rates:
        frontier = compare(pruner, data, args)
        frontier.save(folder / "frontier.json")
        print(frontier)


if __name__ == "__main__":
    main()
