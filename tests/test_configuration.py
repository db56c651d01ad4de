"""KPruneConfig: what is allowed, the published settings, and the file it is saved in."""

import json
import math
import tempfile
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optimum.configuration_utils import BaseConfig

from optimum_kprune import KPruneConfig, configuration

WRONG = {
    "compression_rate": ([-0.1, 1, 1.0, 1.5, float("nan"), float("inf"), "0.5", None, True, [0.5]], "in [0, 1)"),
    "budget": ([0, 100, True, "fast", "0 MB", "101% flops", "2.5 layers", ""], "an amount above 0 and a unit"),
    "vocabulary": (
        [0, -5, 0.0, 1.5, 8000.0, True, "8000"],
        "a whole number, 1 or above, or a share with a point, above 0",
    ),
    "temperature": ([0, -1, None, "2", float("inf"), 1e-300, 1e300], "in [1e-6, 1e6]"),
    "lambda_rep": ([-1e-9, None, float("nan")], "0 or above"),
    "mu": ([0, -1, "d_h"], "above 0, or None"),
    "head_weight": ([0, -1, None, "2"], "above 0"),
    "num_tokens": ([0, -5, "all", 1.5], "1 or above, or None"),
    "heldout_share": ([-0.1, 0.6, 1, None, "a tenth"], "in [0, 0.5]"),
    "measure_tokens": ([0, -5, "all", 1.5], "1 or above, or None"),
    "measure_every": ([0, None, 1.5, True], "1 or above"),
    "measure_precision": (["float16", None, True], "'float32', 'bfloat16', 'auto'"),
    "memory_budget": ([-1, 1e9, "1 GB"], "0 or above, or None"),
    "sequence_length": ([0, "mean"], "1 or above, or None"),
    "neuron_multiple": ([0, -8, None, 1.5, True], "1 or above"),
    "ridge": ([-1e-9, None, 1e308], "in [0, 1e100]"),
    "recovery_tokens": ([-1, None, 1e6, "1M", True], "0 or above"),
    "recovery_learning_rate": ([0, -1e-4, 1.5, None, "3e-4"], "above 0 and at most 1"),
    "recovery_precision": (["float16", None, True], "'float32', 'bfloat16', 'auto'"),
    "seed": ([-1, None, 0.5], "0 or above"),
    "knowledge": (["entropy", None, 1], "'divergence'"),
    "gradient": (["mean", None, 1], "'sample', 'batch'"),
    "bias": (["fit", None, True], "'refit', 'keep', 'drop'"),
    "tuning": (["yes", None, 2, 1, 0, 1.0], "True, False"),
    "token_weights": (["norm", None, True], "'scale', 'equal'"),
    "correct_inputs": (["yes", None, 2, 1], "True, False"),
    "published_targets": (["no", None, 2, 0.0, 0], "True, False"),
}
ALLOWED = {
    "compression_rate": [0, 0.0, 0.999, np.float64(0.5)],
    "budget": [None, "100 MB", "40% flops", "4 layers", " 1,500 ms "],
    "vocabulary": [None, 1, 8000, 0.99, 1.0],
    "temperature": [1, 0.1],
    "lambda_rep": [0, 10.0],
    "mu": [None, 64, 0.5],
    "head_weight": [1, 0.5],
    "num_tokens": [None, 1],
    "heldout_share": [0, 0.5],
    "measure_tokens": [None, 1],
    "measure_every": [1, 4],
    "measure_precision": ["float32", "bfloat16", "auto"],
    "memory_budget": [None, 0, 10**9],
    "sequence_length": [None, 1, 126],
    "neuron_multiple": [1, 8, 10**6],
    "ridge": [0, 1e-4],
    "recovery_tokens": [0, 1, 10**9],
    "recovery_learning_rate": [1, 1e-5],
    "recovery_precision": ["float32", "bfloat16", "auto"],
    "seed": [0, 2**31],
    "knowledge": ["fisher", "divergence"],
    "gradient": ["sample", "batch"],
    "bias": ["refit", "keep", "drop"],
    "tuning": [True, False],
    "token_weights": ["scale", "equal"],
    "correct_inputs": [True, False],
    "published_targets": [True, False],
}
# No default, so that a setting that is lost on the way shows.
UNUSUAL = {
    # A rate that is no default cannot be given with a budget.
    "compression_rate": 0.5,
    "budget": "1.5k  MB",
    "vocabulary": 0.9,
    "temperature": 3.0,
    "knowledge": "divergence",
    "lambda_rep": 0.7,
    "mu": 5.0,
    "head_weight": 1.5,
    "gradient": "batch",
    "num_tokens": 1234,
    "heldout_share": 0.25,
    "measure_tokens": 321,
    "measure_every": 3,
    "measure_precision": "bfloat16",
    "memory_budget": 10**6,
    "sequence_length": 77,
    "neuron_multiple": 16,
    "tuning": False,
    "token_weights": "equal",
    "correct_inputs": False,
    "ridge": 0.5,
    "bias": "keep",
    "published_targets": True,
    "recovery_tokens": 4321,
    "recovery_learning_rate": 1e-4,
    "recovery_precision": "bfloat16",
    "seed": 9,
}


def values_of(config):
    return {name: getattr(config, name) for name in UNUSUAL}


def test_every_setting_is_tested_here():
    assert set(configuration.SETTINGS) == set(WRONG) == set(ALLOWED) == set(UNUSUAL)
    defaults = values_of(KPruneConfig())
    assert [name for name in UNUSUAL if defaults[name] == UNUSUAL[name]] == ["compression_rate"]


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, (values, _) in WRONG.items() for value in values])
def test_a_wrong_value_is_refused_with_its_name_and_what_is_allowed(name, value):
    with pytest.raises(ValueError) as caught:
        KPruneConfig(**{name: value})
    message = str(caught.value)
    assert repr(name) in message and WRONG[name][1] in message and f"Got {value!r}" in message


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in ALLOWED.items() for value in values])
def test_an_allowed_value_is_kept(name, value):
    assert getattr(KPruneConfig(**{name: value}), name) == value


def test_an_unknown_setting_is_refused():
    with pytest.raises(ValueError) as caught:
        KPruneConfig(compresion_rate=0.5)
    assert "'compresion_rate'" in str(caught.value)
    assert all(name in str(caught.value) for name in UNUSUAL)


def test_defaults_are_those_of_the_method():
    assert values_of(KPruneConfig()) == {
        "compression_rate": 0.5,
        "budget": None,
        "vocabulary": None,
        "temperature": 2.0,
        "knowledge": "fisher",
        "lambda_rep": 0.1,
        "mu": None,
        "head_weight": 2.0,
        "gradient": "sample",
        "num_tokens": 100_000,
        "heldout_share": 0.1,
        "measure_tokens": 10_000,
        "measure_every": 1,
        "measure_precision": "float32",
        "memory_budget": None,
        "sequence_length": None,
        "neuron_multiple": 8,
        "tuning": True,
        "ridge": 0.01,
        "token_weights": "scale",
        "correct_inputs": True,
        "bias": "refit",
        "published_targets": False,
        "recovery_tokens": 0,
        "recovery_learning_rate": 3e-4,
        "recovery_precision": "auto",
        "seed": 0,
    }


def test_the_published_settings():
    config = KPruneConfig.paper()
    published = {
        "temperature": 2.0,
        "knowledge": "divergence",
        "lambda_rep": 2.5e-4,
        "gradient": "batch",
        "head_weight": 1.0,
        "neuron_multiple": 1,
        "ridge": 0.0,
        "token_weights": "equal",
        "correct_inputs": False,
        "bias": "drop",
        "published_targets": True,
        "heldout_share": 0.0,
        "measure_tokens": None,
        "measure_every": 1,
        "num_tokens": 100_000,
        "tuning": True,
    }
    assert {name: getattr(config, name) for name in published} == published
    changed = KPruneConfig.paper(compression_rate=0.8, lambda_rep=0.5)
    assert (changed.compression_rate, changed.lambda_rep, changed.gradient) == (0.8, 0.5, "batch")
    with pytest.raises(ValueError, match="compression_rate"):
        KPruneConfig.paper(compression_rate=2)


def test_it_is_a_config_of_optimum(tmp_path):
    assert issubclass(KPruneConfig, BaseConfig)
    assert KPruneConfig.CONFIG_NAME == "kprune_config.json"


def test_saved_and_loaded_from_a_folder_or_a_file(tmp_path):
    config = KPruneConfig(**UNUSUAL)
    config.save_pretrained(tmp_path / "new" / "folder")
    (file,) = (tmp_path / "new" / "folder").iterdir()
    assert file.name == "kprune_config.json"
    saved = json.loads(file.read_text())
    assert saved.pop("optimum_version")
    assert saved == UNUSUAL
    for loaded in (
        KPruneConfig.from_pretrained(file.parent),
        KPruneConfig.from_pretrained(str(file.parent)),
        KPruneConfig.from_json_file(file),
        KPruneConfig.from_dict(json.loads(config.to_json_string())),
    ):
        assert type(loaded) is KPruneConfig and values_of(loaded) == UNUSUAL


def test_all_settings_are_saved_even_those_at_their_defaults():
    assert set(json.loads(KPruneConfig().to_json_string())) == {*UNUSUAL, "optimum_version"}


def test_settings_can_be_changed_while_loading(tmp_path):
    KPruneConfig(**UNUSUAL).save_pretrained(tmp_path)
    assert values_of(KPruneConfig.from_pretrained(tmp_path, seed=4)) == UNUSUAL | {"seed": 4}


def test_a_wrong_value_in_a_file_is_refused(tmp_path):
    file = tmp_path / "kprune_config.json"
    for settings, name in (({"compression_rate": 2}, "compression_rate"), ({"rate": 0.5}, "rate")):
        file.write_text(json.dumps(settings))
        for load in (lambda: KPruneConfig.from_pretrained(tmp_path), lambda: KPruneConfig.from_json_file(file)):
            with pytest.raises(ValueError, match=name):
                load()


def test_a_wrong_value_given_while_loading_is_refused(tmp_path):
    KPruneConfig().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="compression_rate"):
        KPruneConfig.from_pretrained(tmp_path, compression_rate=2)


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "file").write_text("precious")
    with pytest.raises(ValueError, match=r"must be a folder.*file"):
        KPruneConfig().save_pretrained(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "precious"


def test_push_to_hub(tmp_path, monkeypatch):
    calls = []

    class RecordingApi:
        def __init__(self, token=None):
            calls.append(token)

        def create_repo(self, repo_id, **arguments):
            calls.append((repo_id, arguments["private"], arguments["exist_ok"]))
            return SimpleNamespace(repo_id=f"me/{repo_id}")

        def upload_file(self, path_or_fileobj, path_in_repo, repo_id, **arguments):
            calls.append((json.loads(path_or_fileobj.read_text())["seed"], path_in_repo, repo_id))

    monkeypatch.setattr(configuration, "HfApi", RecordingApi)
    KPruneConfig(seed=9).save_pretrained(tmp_path / "folder", push_to_hub=True, token="secret", private=True)
    assert calls == ["secret", ("folder", True, True), (9, "kprune_config.json", "me/folder")]
    calls.clear()
    KPruneConfig(seed=8).save_pretrained(tmp_path / "folder", push_to_hub=True, repo_id="other")
    assert calls[1:] == [("other", None, True), (8, "kprune_config.json", "me/other")]
    calls.clear()
    KPruneConfig().save_pretrained(tmp_path / "folder")
    assert not calls


def test_a_budget_takes_the_place_of_the_rate(tmp_path):
    with pytest.raises(ValueError, match=r"`budget` takes the place of `compression_rate`.* Got both, '9 MB' and 0.6"):
        KPruneConfig(budget="9 MB", compression_rate=0.6)
    config = KPruneConfig(budget="9 MB")
    config.compression_rate = 0.6
    with pytest.raises(ValueError, match="`budget` takes the place"):
        config.check()


def test_a_percentage_is_told_as_a_share():
    with pytest.raises(ValueError, match=r"in \[0, 1\)\. Got 60 instead\. For 60%, give 0\.6\."):
        KPruneConfig(compression_rate=60)


# What is written


def numbers(least, exclude=False):
    return st.floats(least, exclude_min=exclude, allow_infinity=False) | st.integers(int(least) + exclude, 2**63)


counts = st.integers(1, 2**63)
NUMBERS = {
    "compression_rate": st.floats(0, 1, exclude_max=True),
    "vocabulary": st.none() | counts | st.floats(0, 1, exclude_min=True),
    "temperature": st.floats(1e-6, 1e6) | st.integers(1, 10**6),
    "lambda_rep": numbers(0),
    "mu": st.none() | numbers(0, exclude=True),
    "head_weight": numbers(0, exclude=True),
    "num_tokens": st.none() | counts,
    "heldout_share": st.floats(0, 0.5),
    "measure_tokens": st.none() | counts,
    "measure_every": counts,
    "memory_budget": st.none() | st.integers(0, 2**63),
    "sequence_length": st.none() | counts,
    "neuron_multiple": counts,
    "ridge": st.floats(0, 1e100),
    "seed": st.integers(0, 2**63),
}
CHOICES = {
    "knowledge": st.sampled_from(["fisher", "divergence"]),
    "gradient": st.sampled_from(["sample", "batch"]),
    "measure_precision": st.sampled_from(["float32", "bfloat16", "auto"]),
    "tuning": st.booleans(),
    "token_weights": st.sampled_from(["scale", "equal"]),
    "correct_inputs": st.booleans(),
    "bias": st.sampled_from(["refit", "keep", "drop"]),
    "published_targets": st.booleans(),
}
below = st.floats(max_value=0, exclude_max=True) | st.integers(max_value=-1)
never = st.text(max_size=3) | st.lists(st.integers(), max_size=2) | st.sampled_from([math.nan, math.inf, {}, b"1", 1j])


@given(st.fixed_dictionaries({}, optional=NUMBERS | CHOICES))
def test_legal_settings_survive_json_and_files(settings):
    config = KPruneConfig(**settings)
    assert {name: getattr(config, name) for name in settings} == settings
    assert KPruneConfig.from_dict(json.loads(config.to_json_string())).to_dict() == config.to_dict()
    with tempfile.TemporaryDirectory() as folder:
        config.save_pretrained(folder)
        assert KPruneConfig.from_pretrained(folder).to_dict() == config.to_dict()


@given(st.sampled_from(sorted(NUMBERS)), below | never | st.booleans() | st.just(-(10**400)))
def test_settings_out_of_range_are_refused_by_name(name, value):
    with pytest.raises(ValueError, match=f"{name!r} of KPruneConfig must be"):
        KPruneConfig(**{name: value})


@given(st.sampled_from(sorted(CHOICES)), below | never | st.none())
def test_choices_that_do_not_exist_are_refused_by_name(name, value):
    with pytest.raises(ValueError, match=f"{name!r} of KPruneConfig must be"):
        KPruneConfig(**{name: value})
