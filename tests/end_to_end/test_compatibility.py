"""Pruned folders load with the code that travels alone, under other versions of transformers.

`make compatibility` makes the environments, one for each version, in which `optimum_kprune` is not installed.
"""

import json
import os
import subprocess
from pathlib import Path

import pytest
import torch
from tiny import batches_of, outputs_of, pad, ragged_samples, tiny_model

from optimum_kprune import KPruneConfig, KPruner

pytestmark = pytest.mark.slow

ENVIRONMENTS = Path(__file__).parents[2] / ".compatibility"
VERSIONS = ("4.57.6", "5.0.0", "newest")
FAMILIES = ("bert", "distilbert", "electra", "roberta")
HEADS = {
    "single label": "AutoModelForSequenceClassification",
    "question answering": "AutoModelForQuestionAnswering",
    "token classification": "AutoModelForTokenClassification",
    "base model": "AutoModel",
}

# Loads all folders, and each once more after it was saved there. Writes the largest differences as JSON.
CHECK = """
import importlib.util, json, sys, tempfile
from pathlib import Path
import torch, transformers

assert importlib.util.find_spec("optimum_kprune") is None
differences = {}
for folder in sorted(Path(sys.argv[1]).iterdir()):
    expected = torch.load(folder / "expected.pt")
    auto_class = getattr(transformers, expected["auto_class"])
    model = auto_class.from_pretrained(folder, trust_remote_code=True)
    with tempfile.TemporaryDirectory() as again:
        model.save_pretrained(again)
        again = auto_class.from_pretrained(again, trust_remote_code=True)
    with torch.no_grad():
        # In float64 it does not matter which implementation of attention a version has.
        found = [output for one in (model, again) for output in one.double()(**expected["batch"]).to_tuple()]
    pairs = zip(found, expected["outputs"] * 2, strict=True)
    differences[folder.name] = max((one - other).abs().max().item() for one, other in pairs)
print(json.dumps({transformers.__version__: differences}))
"""


@pytest.fixture(scope="module")
def pruned_folders(tmp_path_factory):
    """A pruned model of each family and head, with what it gives for a batch; some sublayers have no units."""
    root = tmp_path_factory.mktemp("pruned")
    for family in FAMILIES:
        for head, auto_class in HEADS.items():
            folder = root / f"{family}-{auto_class}"
            pruner = KPruner(tiny_model(family, head))
            config = KPruneConfig(compression_rate=0.8, num_tokens=None)
            pruner.prune(config, batches_of(ragged_samples()), save_directory=folder)
            batch = pad(ragged_samples(4, seed=1))
            expected = {"auto_class": auto_class, "batch": batch, "outputs": outputs_of(pruner.model.double(), batch)}
            torch.save(expected, folder / "expected.pt")
    configs = [json.loads(file.read_text())["kprune"] for file in root.glob("*/config.json")]
    assert any(entry["kept"] == "" for config in configs for entry in config["kept"])
    return root


@pytest.mark.parametrize("version", VERSIONS)
def test_a_pruned_folder_gives_the_same_under_another_transformers(version, pruned_folders, tmp_path):
    python = ENVIRONMENTS / version / "bin" / "python"
    if not python.exists():
        pytest.skip(f"no environment with transformers {version}; `make compatibility` makes it")
    environment = os.environ | {"HF_MODULES_CACHE": str(tmp_path), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    process = subprocess.run(
        [python, "-I", "-c", CHECK, pruned_folders], env=environment, capture_output=True, text=True
    )
    assert process.returncode == 0, process.stderr
    ((told, differences),) = json.loads(process.stdout.splitlines()[-1]).items()
    assert version in (told, "newest") and len(differences) == len(FAMILIES) * len(HEADS)
    assert max(differences.values()) < 1e-9, differences
