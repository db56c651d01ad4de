"""What a prune was asked to do: data that does not fit is refused, and settings of the user stay as they are."""

from pathlib import Path

import pytest
from datasets import Dataset
from tiny import ragged_samples, texts_of, tiny_model, tiny_tokenizer

from optimum_kprune import KPruneConfig, KPruner
from optimum_kprune import order as order_module
from optimum_kprune.calibration.prepare import prepare_batches
from optimum_kprune.order import Order, PruneData, configs_of, rate_name, within

TEXTS = texts_of(ragged_samples(60))


def data(calibration=TEXTS, recovery=None):
    return PruneData(calibration, recovery, None, 32)


def pruner():
    return KPruner(tiny_model(), tiny_tokenizer())


def order(config, save_directory=None, overwrite=False):
    return Order(pruner(), config, save_directory, None, overwrite)


def test_data_to_recover_on_needs_a_recovery():
    with pytest.raises(ValueError, match="`recovery_tokens`"):
        data(recovery=TEXTS).require_fit(KPruneConfig())
    data(recovery=TEXTS).require_fit(KPruneConfig(recovery_tokens=10))
    data().require_fit(KPruneConfig(recovery_tokens=10))


def test_an_iterator_can_be_read_once():
    with pytest.raises(ValueError, match="used up"):
        data(iter(TEXTS)).require_fit(KPruneConfig(recovery_tokens=10))
    data(iter(TEXTS)).require_fit(KPruneConfig())
    data(iter(TEXTS), recovery=TEXTS).require_fit(KPruneConfig(recovery_tokens=10))


def test_without_data_a_trainer_is_needed():
    with pytest.raises(ValueError, match="A prune needs a `calibration_dataset`"):
        data(calibration=None).with_defaults_of(pruner())
    assert data().with_defaults_of(pruner()) == data()


def test_a_recovery_reads_the_calibration_data_if_there_is_no_other():
    config, spec = KPruneConfig(recovery_tokens=10_000, heldout_share=0.3), pruner()._input_spec(0)
    calibration = data().calibration_batches(config, spec, targets=4)
    heldout = calibration.summary.heldout_tokens
    assert heldout and data().recovery_text(config, spec, calibration).tokens == calibration.tokens
    other = data(recovery=texts_of(ragged_samples(60, seed=5)))
    assert other.recovery_text(config, spec, calibration).tokens != calibration.tokens


@pytest.mark.parametrize(("layers", "parts"), [(2, 1), (6, 1), (7, 2), (13, 3)])
def test_knowledge_of_deep_models_is_measured_on_parts(layers, parts, monkeypatch):
    given = []

    def recording(*args, **options):
        given.append(prepare_batches(*args, **options))
        return given[-1]

    monkeypatch.setattr(order_module, "prepare_batches", recording)
    deep = KPruner(tiny_model(num_hidden_layers=layers), tiny_tokenizer())
    deep.prune(KPruneConfig(measure_every=5, measure_tokens=100, num_tokens=None), TEXTS)
    deep.prune(KPruneConfig(measure_tokens=100, num_tokens=None), TEXTS)
    assert [len(calibration.measured) for calibration in given] == [1, parts]


def test_the_budget_of_a_draw_becomes_that_of_the_order_and_not_of_the_user():
    drawn = pruner().get_calibration_dataset(Dataset.from_dict({"text": TEXTS}), num_tokens=50)
    config = KPruneConfig()
    assert order(config).prepared(drawn).config.num_tokens == 50
    assert config.num_tokens == KPruneConfig().num_tokens


def test_a_folder_that_is_not_free_is_refused_before_any_work(tmp_path):
    (tmp_path / "something").write_text("else")
    with pytest.raises(FileExistsError):
        order(KPruneConfig(), save_directory=tmp_path).prepared(TEXTS)


def test_every_rate_has_a_folder():
    assert within("swept", KPruneConfig(compression_rate=0.4)) == Path.cwd() / "swept" / "0.4"
    assert within(None, KPruneConfig()) is None


def test_budgets_have_folders_whose_names_every_system_can_write():
    budgets = {"40 MB": "40_megabytes", "50%latency": "50_percent_latency", "12M params": "12000000_parameters"}
    found = configs_of([0.4, *budgets], KPruneConfig(budget="1 layer"))
    assert [rate_name(config) for config in found] == ["0.4", *budgets.values()]
    assert [(config.budget, config.compression_rate) for config in found[:2]] == [(None, 0.4), ("40 MB", 0.5)]
