"""The notebooks run from end to end with small sizes, and are committed with the outputs of a whole run."""

import re
from pathlib import Path

import nbformat
import pytest
import vocabularies
from huggingface_hub import ModelCard
from nbclient import NotebookClient
from tiny import save_tiny, tiny_model

pytestmark = pytest.mark.slow

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
NAMES = ("quickstart", "frontier", "reranker", "vocabulary", "deploy")
DOCSTRINGS = {"ROWS_PER_AREA": 12, "EPOCHS": 1}
SMALL = {name: DOCSTRINGS for name in ("quickstart", "frontier", "deploy")}
SMALL |= {
    "reranker": {"QUERIES": 60, "EPOCHS": 1},
    "vocabulary": {"SIZES": [60, 120], "TEXTS": 60, "MEASURE_TOKENS": 100},
}
MACHINE = re.compile(r"/tmp/|/home/|/root/|/Users/|/work/|site-packages|file://|localhost|index-url")


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def text_of(outputs):
    """All that a reader sees of outputs, images left out."""
    parts = []
    for output in outputs:
        shown = [value for kind, value in output.get("data", {}).items() if not kind.startswith("image/")]
        parts += [output.get("text", ""), *map(str, shown)]
    return "\n".join(parts)


def shows_bars(outputs):
    """Whether something but figures and text with a format is displayed, or anything is written to standard error."""
    displayed = [output.data.keys() for output in outputs if output.output_type == "display_data"]
    is_told = any(output.get("name") == "stderr" for output in outputs)
    return is_told or not all({"image/png", "text/markdown"} & kinds for kinds in displayed)


def run(name, folder, **parameters):
    """Executes a notebook in a folder, with a tiny encoder; returns it."""
    encoder = save_tiny(folder / "encoder", tiny_model(head="base model", max_position_embeddings=128))
    notebook = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
    (cell,) = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    for parameter, value in {**SMALL[name], "ENCODER": str(encoder), **parameters}.items():
        cell.source, count = re.subn(rf"^{parameter} = .*$", f"{parameter} = {value!r}", cell.source, flags=re.M)
        assert count == 1, f"{name} has no parameter {parameter}"
    return NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": folder}}
    ).execute()


def test_the_quickstart_notebook_runs_and_what_it_saves_loads_anywhere(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    notebook = run("quickstart", tmp_path, FOLDER=str(tmp_path / "pruned"), RATE=0.5)
    text = text_of(output for cell in code_cells(notebook) for output in cell.outputs)
    assert text.count("The same logits, bit for bit: True") == 2
    assert "from transformers_modules" in text
    assert float(re.search(r"FLOPs removed: ([\d.]+)%", text)[1]) >= 50
    assert "nothing is uploaded" in text
    assert ModelCard.load(tmp_path / "pruned" / "README.md").text in text


def test_the_frontier_notebook_runs_and_keeps_what_its_rates_say(tmp_path):
    notebook = run("frontier", tmp_path, RATES=[0.4, 0.7])
    text = text_of(output for cell in code_cells(notebook) for output in cell.outputs)
    rows = re.findall(r"<td>(\d+)% flops</td><td>([\d.]+)%</td>", text)
    assert [kept for kept, _ in rows] == 2 * ["60", "30"]
    for kept, left in rows:
        # A head or eight neurons of the tiny encoder are some percent.
        assert int(kept) - 8 < float(left) <= int(kept)
    images = [
        output for cell in code_cells(notebook) for output in cell.outputs if "image/png" in output.get("data", {})
    ]
    assert len(images) == 2


def test_the_vocabulary_notebook_runs_and_its_map_leads_back(tmp_path):
    vocabularies.model("WordPiece", "", max_position_embeddings=128).save_pretrained(tmp_path / "own")
    vocabularies.tokenizer("WordPiece").save_pretrained(tmp_path / "own")
    notebook = run("vocabulary", tmp_path, ENCODER=str(tmp_path / "own"))
    text = text_of(output for cell in code_cells(notebook) for output in cell.outputs)
    assert "Vocabulary: 60 of 249 tokens" in text and "Vocabulary: 120 of 249 tokens" in text
    assert "bit for bit: True" in text and "120 tokens; restored: 249, the dense embeddings: True" in text


def test_the_reranker_notebook_runs_and_its_reranker_loads(tmp_path):
    notebook = run("reranker", tmp_path, RATE=0.5)
    text = text_of(output for cell in code_cells(notebook) for output in cell.outputs)
    assert "40 queries to train and calibrate on, 20 to evaluate on" in text
    assert "The same ranking from the folder: True" in text
    assert "order agreement with the model before" in text and "ndcg@10" in text


def test_the_deploy_notebook_runs_and_both_ways_to_serve_answer_the_same(tmp_path):
    notebook = run("deploy", tmp_path, FOLDER=str(tmp_path / "served"), RATE=0.5)
    text = text_of(output for cell in code_cells(notebook) for output in cell.outputs)
    for model in ("dense", "dense, int8", "pruned", "pruned, int8"):
        assert re.search(rf"^{model} +ONNX Runtime .*\d$", text, re.M)
    *_, alone, piped = (text_of(cell.outputs) for cell in code_cells(notebook))
    answers = re.findall(r"^(\w+): ", alone, re.M)
    assert len(answers) == 3 and answers == re.findall(r"^(\w+) \(", piped, re.M)
    assert {"model.onnx", "model_quantized.onnx"} <= {path.name for path in (tmp_path / "served" / "onnx").iterdir()}


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_is_committed_with_the_outputs_of_one_whole_run(name):
    path = NOTEBOOKS / f"{name}.ipynb"
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    cells = code_cells(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"] and not shows_bars(outputs)
    assert [output for output in outputs if "image/png" in output.get("data", {})]
    assert MACHINE.findall(text_of(outputs)) == []
    assert path.stat().st_size < 300_000
    for parameter in ("FOLDER", "REPO_ID") if name == "quickstart" else ():
        assert re.search(rf"^{parameter} = None", "\n".join(cell.source for cell in cells), re.M)
