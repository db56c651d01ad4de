"""The lines of the card load model, tokenizer and pipeline in fresh processes: without a question or a warning."""

import copy
import os
import re
import subprocess
import sys

import pytest
import torch
from tiny import outputs_of, pad, ragged_samples, texts_of, tiny_model, tiny_tokenizer
from transformers import (
    BertTokenizer,
    CamembertTokenizer,
    DistilBertTokenizer,
    RobertaTokenizer,
    Trainer,
    TrainingArguments,
    XLMRobertaTokenizer,
)

from optimum_kprune import KPruneConfig, KPruner

pytestmark = pytest.mark.slow

SAMPLES = ragged_samples()
BERT = {token: index for index, token in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b"])}
ROBERTA = {token: index for index, token in enumerate(["<s>", "<pad>", "</s>", "<unk>", "a", "b", "\u0120b"])}
PIECES = [(token, 0.0) for token in ["<s>", "<pad>", "</s>", "<unk>", "\u2581a", "\u2581b"]]
TOKENIZERS = {
    "any": tiny_tokenizer,
    "bert": lambda: BertTokenizer(vocab=BERT),
    "distilbert": lambda: DistilBertTokenizer(vocab=BERT),
    "roberta": lambda: RobertaTokenizer(vocab=ROBERTA, merges=[]),
    "xlm-roberta": lambda: XLMRobertaTokenizer(vocab=PIECES),
    "camembert": lambda: CamembertTokenizer(vocab=PIECES),
}
# Both ways check what they loaded; the plugin is installed, but cannot be imported the second way.
CHECK = """
import sys, torch
if sys.argv[1] == "without":
    sys.modules["optimum_kprune"] = None
for folder in sys.argv[2:]:
    expected = torch.load(folder + ".pt", weights_only=True)
    scope = {}
    exec(expected["lines"][sys.argv[1]], scope)
    with torch.no_grad():
        assert torch.equal(scope["model"](**expected["batch"])[0], expected["output"])
    for tokenizer in (scope["tokenizer"], scope["pipe"].tokenizer, scope.get("itself", scope["tokenizer"])):
        assert type(tokenizer).__name__ == expected["class"], type(tokenizer)
        assert tokenizer("a b")["input_ids"] == expected["ids"]
    assert scope["pipe"]("a b")[0]["label"].startswith("LABEL_")
"""


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """One pruned model with every kind of tokenizer, and a checkpoint of a trainer; beside each, what to expect."""
    root = tmp_path_factory.mktemp("saved")
    pruner = KPruner(tiny_model(), tiny_tokenizer())
    pruner.prune(KPruneConfig(), texts_of(SAMPLES))
    for name, make in TOKENIZERS.items():
        with_tokenizer = copy.copy(pruner)
        with_tokenizer.processing_class = make()
        with_tokenizer.save_pretrained(root / name)
        write_expected(root / name, root / name, pruner.model, with_tokenizer.processing_class)
    arguments = TrainingArguments(root / "run", report_to=[], use_cpu=True)
    tokenizer = TOKENIZERS["bert"]()
    Trainer(pruner.model, arguments, processing_class=tokenizer).save_model(root / "trained")
    write_expected(root / "trained", root / "bert", pruner.model, tokenizer)
    return [str(root / name) for name in [*TOKENIZERS, "trained"]]


def write_expected(folder, card_folder, model, tokenizer):
    """Writes the lines of the card, for a folder, and what they must give."""
    card = (
        (card_folder / "README.md")
        .read_text()
        .partition("## How to load")[2]
        .replace("path/to/this/folder", str(folder))
    )
    with_plugin, without = re.findall("```python\n(.*?)```", card, re.DOTALL)
    (itself,) = re.findall(r"`(transformers\..*\))`", card)
    batch = pad(SAMPLES)
    expected = {
        "lines": {"with": with_plugin, "without": f"{without}\nimport transformers\nitself = {itself}"},
        "batch": batch,
        "output": outputs_of(model, batch)[0],
        "class": type(tokenizer).__name__,
        "ids": tokenizer("a b")["input_ids"],
    }
    torch.save(expected, f"{folder}.pt")


@pytest.mark.parametrize("way", ["with", "without"])
def test_the_lines_of_the_card_load_and_nothing_is_asked(way, folders, tmp_path):
    environment = os.environ | {"HF_MODULES_CACHE": str(tmp_path), "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    command = [sys.executable, "-I", "-c", CHECK, way, *folders]
    process = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    output = process.stdout + process.stderr
    assert process.returncode == 0, output
    for complaint in ("custom code", "[y/N]", "You are using a model of type", "Warning", "Error"):
        assert complaint not in output, output
