"""How a model was made, as a program that runs, without paths of the machine."""

import ast

import pytest
from cards import saved_card
from tiny import save_tiny

from optimum_kprune import KPruneConfig, KPruner
from optimum_kprune.publish.recipe import Recipe, hub_name, program


def test_names_on_the_hub_are_told_from_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    for name in ("bert-base-uncased", "textattack/bert-base-uncased-SST-2", "glue"):
        assert hub_name(name) == name
    for path in (
        "",
        None,
        "here",
        "./out",
        "/home/me/model",
        "a/b/c",
        "data.csv",
        "C:\\model",
        "~/m",
        ["glue"],
        tmp_path,
    ):
        assert hub_name(path) is None


LOAD = {"model_or_path": "somebody/bert", "task": "text-classification", "revision": "v1", "dtype": "bfloat16"}
DRAW = {"dataset_name": "nyu-mll/glue", "dataset_config_name": "sst2", "text_columns": ["a b", "c"], "max_length": 64}


@pytest.mark.parametrize(
    ("recipe", "settings"),
    [
        (Recipe(), {}),
        (Recipe(LOAD), {}),
        (Recipe(LOAD, DRAW), {"ridge": 0.5}),
        (Recipe(LOAD, DRAW), {"seed": 1}),
        (Recipe(LOAD, DRAW | {"num_tokens": None}, {"batch_size": 8}), {"num_tokens": None}),
    ],
)
def test_the_program_can_be_run_and_says_what_differs_from_the_defaults(recipe, settings):
    tree = ast.parse(program(recipe, KPruneConfig(**settings)))
    calls = {ast.unparse(call.func): call for call in ast.walk(tree) if isinstance(call, ast.Call)}
    given = {
        name: {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords}
        for name, call in calls.items()
    }
    assert given.get("KPruner.from_pretrained") == recipe.load
    assert given.get("pruner.get_calibration_dataset") == recipe.draw
    assert given["pruner.prune"] == recipe.prune
    assert given["KPruneConfig"] == {"compression_rate": 0.5} | settings


def test_functions_are_called_by_their_names(tmp_path):
    save_tiny(tmp_path / "model")
    (tmp_path / "texts.txt").write_text("w1 w2\n" * 30)
    pruner = KPruner.from_pretrained(tmp_path / "model", dtype="float32")

    def tokenize(rows):
        return {"input_ids": [[0, 5, 2]] * len(rows["text"])}

    calibration = pruner.get_calibration_dataset(tmp_path / "texts.txt", preprocess_function=tokenize)
    pruner.prune(KPruneConfig(), calibration)
    text = saved_card(pruner, tmp_path / "out").text
    assert "preprocess_function=preprocess_function" in text and "0x" not in text and "dtype='float32'" in text
