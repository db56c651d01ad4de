"""Settings of the whole suite (no network, one thread, the same drawn examples), and fixtures of several files.

The process of pytest-xdist that hands out the tests reads this too: what takes long to import is imported in fixtures.
"""

import functools
import os

os.environ["HF_HUB_OFFLINE"] = "1"
# Tiny models are fastest with one thread.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import sys

import hypothesis
import pytest

hypothesis.settings.register_profile("same", derandomize=True, deadline=None)
hypothesis.settings.load_profile("same")


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    """Keeps caches of data and of code out of the user's folders, also in processes that a test starts."""
    import datasets
    import transformers.dynamic_module_utils

    cache, modules = tmp_path_factory.mktemp("cache"), tmp_path_factory.mktemp("modules")
    with pytest.MonkeyPatch.context() as patch:
        # Code is cached by the last name of its folder alone: workers must not share it.
        patch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(modules))
        patch.setenv("HF_MODULES_CACHE", str(modules))
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)
        patch.setenv("HF_DATASETS_CACHE", str(cache))
        yield


@pytest.fixture(scope="session")
def tokenizer():
    from tiny_texts import make_tokenizer

    return make_tokenizer()


@pytest.fixture
def spec(tokenizer):
    from optimum_kprune.calibration.spec import InputSpec

    return InputSpec("text-classification", tokenizer)


@pytest.fixture
def own_adapters(monkeypatch):
    """Adapters that are registered in a test are forgotten after it."""
    from optimum_kprune.encoder import adapters

    monkeypatch.setattr(adapters, "_ADAPTERS", dict(adapters._ADAPTERS))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a model, calibration data as txt and as csv, and settings."""
    from command_line import write_inputs

    return write_inputs(tmp_path_factory.mktemp("command"))


@pytest.fixture
def timed_once(monkeypatch):
    """Reports of exports time every model as briefly as they can."""
    from optimum_kprune.evaluation.latency import latencies_on

    brief = functools.partial(latencies_on, seconds=0)
    monkeypatch.setattr("optimum_kprune.export.report.latencies_on", brief)


@pytest.fixture
def labelled(tmp_path):
    """A file of labelled rows."""
    from command_line import write_labelled

    return write_labelled(tmp_path / "labelled.csv")


@pytest.fixture
def command(monkeypatch):
    """Calls optimum-cli in this process; returns what it exits with."""
    from optimum.commands import optimum_cli

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["optimum-cli", *map(str, arguments)])
        try:
            optimum_cli.main()
        except SystemExit as exit:
            return exit.code
        return None

    return call


def pytest_ignore_collect(collection_path):
    """Leaves out the tests of exports where torch is one of the oldest, with which transformers exports nothing."""
    names = ("test_export.py", "test_export_command.py", "test_served_folders.py", "test_deploy.py", "test_league.py")
    if collection_path.name in names or (collection_path.parent.name == "export" and collection_path.is_file()):
        try:
            import transformers.exporters  # noqa: F401
        except ImportError:
            return True
    return None
