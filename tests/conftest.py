"""Settings of the whole suite (no network, one thread, the same drawn examples), and fixtures of several files."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import sys

import datasets
import hypothesis
import pytest
import torch
from command_line import write_inputs, write_labelled
from tiny_texts import make_tokenizer

from optimum.commands import optimum_cli
from optimum_kprune.calibration.prepare import InputSpec
from optimum_kprune.encoder import adapters

torch.set_num_threads(1)
hypothesis.settings.register_profile("same", derandomize=True, deadline=None)
hypothesis.settings.load_profile("same")


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    """Keeps what `datasets` caches out of the user's folders, also in processes that a test starts."""
    cache = tmp_path_factory.mktemp("cache")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(cache))


@pytest.fixture(scope="session")
def tokenizer():
    return make_tokenizer()


@pytest.fixture
def spec(tokenizer):
    return InputSpec("text-classification", tokenizer)


@pytest.fixture
def own_adapters(monkeypatch):
    """Adapters that are registered in a test are forgotten after it."""
    monkeypatch.setattr(adapters, "_ADAPTERS", dict(adapters._ADAPTERS))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a model, calibration data as txt and as csv, and settings."""
    return write_inputs(tmp_path_factory.mktemp("command"))


@pytest.fixture
def labelled(tmp_path):
    """A file of labelled rows."""
    return write_labelled(tmp_path / "labelled.csv")


@pytest.fixture
def command(monkeypatch):
    """Calls optimum-cli in this process; returns what it exits with."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["optimum-cli", *map(str, arguments)])
        try:
            optimum_cli.main()
        except SystemExit as exit:
            return exit.code
        return None

    return call
