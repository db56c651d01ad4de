"""README and docs: their code runs, their commands exist, their links lead somewhere, and what is generated is new."""

import argparse
import ast
import dataclasses
import importlib
import inspect
import re
import runpy
import shlex
import sys
import tomllib
from functools import cache
from pathlib import Path
from unittest.mock import create_autospec

import datasets
import pytest
import transformers
import vocabularies
from media import save_vit, write_pictures
from tiny import ragged_samples, save_tiny, texts_of, tiny_model, tiny_tokenizer
from transformers import Trainer, TrainingArguments

from optimum.commands.register.register_kprune import KPruneCommand
from optimum_kprune import EncoderAdapter, KPruner, SublayerAdapter
from optimum_kprune.encoder import adapters, contract, residual_streams
from optimum_kprune.evaluation import latency_measurement

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
TEXTS = texts_of(ragged_samples(60))

# What stands in, in the working folder of a page, for models and data that it names.
CLASSIFIERS = ("textattack/bert-base-uncased-SST-2", "my-classifier", "bert-sst2-k60")
ENCODERS = ("my-encoder", "sentence-transformers/all-MiniLM-L6-v2")
RERANKERS = ("my-reranker",)
HEADS = dict.fromkeys(ENCODERS, "base model") | dict.fromkeys(RERANKERS, "regression")
HEADS |= {"my-tagger": "token classification"}
# A model of a type without an adapter.
UNKNOWN = {"my-data2vec": "data2vec-text"}
STAND_INS = {
    '"nyu-mll/glue", dataset_config_name="sst2"': '"glue"',
    '"my-large-encoder", device_map="auto", offload_folder="offload"': '"my-classifier"',
}
CUSTOM_MODELS = ROOT / "docs" / "custom_models.md"
CONSTRAINTS = (ROOT / "constraints.txt").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def name_of(page):
    return str(page.relative_to(ROOT))


each_page = pytest.mark.parametrize("page", PAGES, ids=name_of)


def blocks(page, language):
    """The fenced blocks of a language, without the indentation of a list that they are in."""
    found = re.findall(rf"^( *)```{language}\n(.*?)^ *```$", page.read_text(), re.MULTILINE | re.DOTALL)
    return [re.sub(rf"^{indent}", "", code, flags=re.MULTILINE) for indent, code in found]


# Python


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The working folder of a page, with the data that it names."""
    (tmp_path / "glue").mkdir()
    rows = "".join(f"{text},LABEL_{row % 3}\n" for row, text in enumerate(TEXTS))
    for split in ("train", "validation"):
        (tmp_path / "glue" / f"{split}.csv").write_text(f"sentence,label\n{rows}")
    for name in ("texts.csv", "labelled.csv"):
        rows = "".join(f"w1 w2,{text},LABEL_{row % 3}\n" for row, text in enumerate(TEXTS))
        (tmp_path / name).write_text(f"title,body,topic\n{rows}")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(adapters, "_ADAPTERS", dict(adapters._ADAPTERS))
    return tmp_path


def save_models(folder, code):
    """Saves what the code loads and has not saved itself."""
    for name in (*CLASSIFIERS, *HEADS):
        if f'"{name}"' in code and f'save_pretrained("{name}")' not in code:
            save_tiny(folder / name, tiny_model(head=HEADS.get(name, "single label")))
    for name, family in UNKNOWN.items():
        save_tiny(folder / name, tiny_model(family))
    if '"my-multilingual-classifier"' in code:
        vocabularies.model("Unigram").save_pretrained(folder / "my-multilingual-classifier")
        vocabularies.tokenizer("Unigram").save_pretrained(folder / "my-multilingual-classifier")
    if '"my-vit"' in code:
        save_vit(folder / "my-vit")
        for split in ("train", "test"):
            write_pictures(folder / "photos" / split)


def given(folder):
    """The names that pages use without making them."""
    tokenizer = tiny_tokenizer()
    train_dataset = datasets.Dataset.from_dict({**tokenizer(TEXTS), "labels": [row % 3 for row in range(len(TEXTS))]})
    args = TrainingArguments(str(folder / "trained"), max_steps=1, report_to=[], use_cpu=True)
    model = tiny_model()
    trainer = Trainer(model, args, train_dataset=train_dataset, eval_dataset=train_dataset, processing_class=tokenizer)
    names = {"texts": TEXTS, "tokenizer": tokenizer, "model": model, "train_dataset": train_dataset}
    return names | {"args": args, "trainer": trainer, "__name__": "page"}


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=name_of)
def test_python_runs(page, folder, monkeypatch):
    """The blocks of a page one after the other, as a reader would run them; nothing is uploaded."""
    monkeypatch.setattr(KPruner, "push_to_hub", create_autospec(KPruner.push_to_hub))
    monkeypatch.setattr(latency_measurement, "TURN_SECONDS", 0.0)
    code = "\n".join(blocks(page, "python"))
    for named, local in STAND_INS.items():
        code = code.replace(named, local)
    save_models(folder, code)
    exec(compile(code, name_of(page), "exec"), given(folder))


# Commands


def commands(page):
    """The commands of the blocks for a shell, as words, without what is set before them and without comments."""
    lines = "".join(blocks(page, "bash")).replace("\\\n", " ").splitlines()
    words = [shlex.split(line, comments=True) for line in lines]
    return [[word for word in line if not re.match(r"[A-Z_]+=", word)] for line in words if line]


@cache
def kprune_parser():
    parser = argparse.ArgumentParser("kprune", exit_on_error=False)
    KPruneCommand.parse_args(parser)
    return parser


def require_known(command, monkeypatch):
    """Fails if a command names an option, target, script or extra that is not there."""
    if command[:2] == ["optimum-cli", "kprune"]:
        kprune_parser().parse_args(command[2:])
    elif command[:2] == ["python", "-m"] or command[0] in ("accelerate", "torchrun"):
        assert command[command.index("-m") + 1] == "optimum_kprune"
        kprune_parser().parse_args(command[command.index("-m") + 2 :])
    elif command[0] == "make":
        targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
        assert {word for word in command[1:] if "=" not in word} <= targets
    elif command[:2] == ["pip", "install"]:
        extras = {extra for word in command[2:] for extra in re.findall(r"\[(.*?)\]", word)}
        assert extras <= PROJECT["optional-dependencies"].keys()
    elif command[0] == "python":
        parsed_by_script(ROOT / command[1], command[2:], monkeypatch)
    else:
        assert command[0] in ("git", "pre-commit"), command


def parsed_by_script(script, arguments, monkeypatch):
    """Reads the arguments with the script's own parser, and stops there."""
    assert script.is_file()
    if not arguments:
        return
    parse = argparse.ArgumentParser.parse_args
    monkeypatch.setattr(
        argparse.ArgumentParser, "parse_args", lambda self, args=None: sys.exit(parse(self, args) and 0)
    )
    monkeypatch.setattr(sys, "argv", [str(script), *arguments])
    with pytest.raises(SystemExit) as exit:
        runpy.run_path(str(script), run_name="__main__")
    assert exit.value.code == 0
    monkeypatch.undo()


@pytest.mark.parametrize("page", [page for page in PAGES if commands(page)], ids=name_of)
def test_commands_exist(page, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "examples")
    if page.name in ("deploy.md", "results.md"):
        pytest.importorskip("transformers.exporters", exc_type=ImportError)
    for command in commands(page):
        require_known(command, monkeypatch)


# Names and links

# A name in a room of the package, such as `algorithm.search.select_units`.
NAME = re.compile(
    r"`((?:algorithm|calibration|encoder|prune|recovery|evaluation|publish|modeling_kprune)\.(?!py`)[\w.]+)`"
)
FILE = re.compile(r"`((?:optimum_kprune|tests|examples|docs|notebooks)/[\w./]*)`")
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


def prose(page):
    return re.sub(r"^ *```.*?^ *```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def anchors(page):
    """The anchors of the headings of a page, as forges make them."""
    headings = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def find(name):
    """The module, or what a module holds, of that dotted name."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        try:
            found = importlib.import_module("optimum_kprune." + ".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        for part in parts[length:]:
            found = getattr(found, part)
        return found
    raise AssertionError(f"There is no {name}.")


@each_page
def test_names_and_files_exist(page):
    text = prose(page)
    for name in NAME.findall(text):
        find(name)
    for path in FILE.findall(text):
        assert (ROOT / path).exists(), path


@each_page
def test_links_lead_somewhere(page):
    for link in LINK.findall(prose(page)):
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


# Pages


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 180


def rows_of(page):
    """The cells of the tables of a page by their first cell; of an estimate with a spread, the estimate."""
    rows = re.findall(r"^\| ([^|]+) \| (.*) \|$", (ROOT / page).read_text(), re.MULTILINE)
    return {name: [cell.partition(" ")[0].rstrip("x") for cell in cells.split(" | ")] for name, cells in rows}


def test_the_claim_is_what_the_tables_show():
    """The figures of the paragraph at the top, in order: accuracy; speed, size and accuracy by rate; those of int8."""
    table, deployed = rows_of("README.md"), rows_of("docs/deploy.md")
    accuracy, size = table["none"][0], float(table["none"][4])
    shown = [accuracy]
    for rate in ("60%", "80%"):
        shown += [table[rate][5], f"{size / float(table[rate][4]):.1f}", table[rate][0]]
    _, size, time, _ = map(float, deployed["dense"])
    _, small, fast, _ = map(float, deployed["pruned by 60%, int8"])
    shown += [f"{time / fast:.1f}", f"{size / small:.1f}"]
    assert re.findall(r"\d+\.\d", (ROOT / "README.md").read_text().partition("\n## ")[0]) == shown


def test_every_page_is_in_the_index():
    linked = set(LINK.findall((ROOT / "docs" / "README.md").read_text()))
    assert {page.name for page in (ROOT / "docs").glob("*.md")} - {"README.md"} <= linked


def test_the_fields_of_adapters_are_explained_by_rows_that_have_them():
    rows = re.findall(r"^\| `(\w+)` \| (?:`(.*)` \| `(.*)` \| |\| \| )", CUSTOM_MODELS.read_text(), re.MULTILINE)
    kinds = (SublayerAdapter, EncoderAdapter)
    assert [field for field, _, _ in rows] == [item.name for kind in kinds for item in dataclasses.fields(kind)]
    for field, example, family in rows:
        known = [part for row in adapters.adapters_of_type(family) for part in (row, *row.sublayers)]
        assert not example or ast.literal_eval(example) in [getattr(part, field, None) for part in known], field


def test_the_refusals_that_are_explained_exist():
    table = CUSTOM_MODELS.read_text().partition("| the error says |")[2]
    refusals = re.findall(r"^\| `(.*?)` \| ", table, re.MULTILINE)
    source = "".join(map(inspect.getsource, (contract, residual_streams)))
    _, *raised = re.sub(r'"\s+f?"', "", source).split("raise ValueError(")
    explained = [[refusal for refusal in refusals if refusal in text] for text in raised]
    assert all(explained) and {refusal for found in explained for refusal in found} == {*refusals}


@pytest.mark.parametrize("page", ["settings", "architecture", "models"])
def test_generated_pages_are_those_of_the_code(page):
    """If not: `make docs`. Another transformers has other heads."""
    if page == "models" and f"transformers=={transformers.__version__}\n" not in CONSTRAINTS:
        pytest.skip("The page is of the pinned transformers.")
    generator = runpy.run_path(str(ROOT / "docs" / "generate.py"))
    assert generator[f"{page}_page"]() == (ROOT / "docs" / f"{page}.md").read_text()


def test_every_function_of_the_arithmetic_cites_its_section():
    """Classes and functions that are public; what holds a value, or only converts one, computes no equation."""
    headings = re.findall(r"^## (\d)\. ", (ROOT / "docs" / "method.md").read_text(), re.MULTILINE)
    cited = {}
    for file in sorted((ROOT / "optimum_kprune" / "algorithm").glob("[a-z]*.py")):
        for node in ast.parse(file.read_text()).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                found = re.search(r"docs/method\.md,\s+sections? (\d)", ast.get_docstring(node))
                cited[node.name] = found and found[1]
    assert {name for name, section in cited.items() if section is None} == {
        "Importance",
        "Prediction",
        "Projection",
        "agreement",
        "at_least_float32",
        "highest",
    }
    assert {section for section in cited.values() if section} == set(headings) - {"5"}
