"""Names on the Hub are told from paths, and nothing of a machine is published."""

import pytest

from optimum_kprune.names import UNKNOWN, hub_name, publishable


@pytest.mark.parametrize("name", ["bert-base-uncased", "textattack/bert-base-uncased-SST-2", "glue"])
def test_names_on_the_hub(name):
    assert hub_name(name) == name


@pytest.mark.parametrize(
    "path", ["", None, "here", "./out", "/home/me/model", "a/b/c", "data.csv", "C:\\model", "~/m", ["glue"], 5]
)
def test_paths_and_what_is_here_are_no_names(path, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path)
    assert hub_name(path) is None and hub_name(tmp_path) is None


def test_arguments_are_published_if_given_and_functions_are_not():
    assert publishable(task=None, seed=0, columns=["a"], function=hub_name) == {
        "seed": 0,
        "columns": ["a"],
        "function": UNKNOWN,
    }
