"""What a result looks like in a console, a notebook and a table, and that it and its pruner travel."""

import copy
import pickle

import pytest
from tiny import outputs_of, pad, ragged_samples, same_state, save_tiny, texts_of, tiny_model, tiny_tokenizer

from optimum_kprune import KPruneConfig, KPruner
from optimum_kprune.result import HeldoutQuality, KPruneResult, SublayerResult

SAMPLES = ragged_samples()


def result_of(layers=2, neurons=4000, heldout=None):
    """The result of a prune that keeps every other unit."""
    sublayers = [
        SublayerResult(layer, kind, list(range(0, total, 2)), total, 1e6, 2e6, 500, 1000, 0.25, 1.5)
        for layer in range(layers)
        for kind, total in (("attention", 12), ("ffn", neurons))
    ]
    return KPruneResult(sublayers, 128, 10, 1000, 40_000, 30_000, 6.0, heldout)


def test_the_repr_of_a_result_is_short_and_tells_the_outcome():
    quality = HeldoutQuality("agreement", 0.963, 0.004, 0.03, 0.002, 100)
    assert repr(result_of(heldout=quality)) == (
        "KPruneResult(50.0% of the FLOPs removed, kept: 12 of 24 heads, 4,000 of 8,000 neurons, parameters: "
        "40,000 -> 30,000, held-out agreement: 96.3% ± 0.4%)"
    )
    assert repr(result_of()).endswith("30,000, nothing held out)")
    assert len(repr(result_of(layers=48))) < 200 and len(repr(result_of().sublayers[1])) < 250
    assert len(str(result_of()).splitlines()) == 1 + 4 + 2


def test_the_table_has_a_row_per_sublayer():
    result = result_of(layers=3)
    table = result.to_pandas()
    assert len(table) == len(result.sublayers)
    for row, entry in zip(table.to_dict("records"), result.sublayers, strict=True):
        assert row == vars(entry) | {"kept": len(entry.kept)}


def test_a_notebook_shows_the_table_and_the_summary_escaped():
    result = result_of(heldout=HeldoutQuality("<b>agreement</b>", 0.9, 0.1, 0.2, 0.1, 7))
    html = result._repr_html_()
    assert html.count("<tr") == 1 + len(result.sublayers) and "<b>" not in html
    assert "&lt;b&gt;agreement&lt;/b&gt;" in html and "FLOPs removed: 50.00%" in html and len(html) < 10_000


@pytest.fixture(scope="module")
def pruner(tmp_path_factory):
    """A pruner that has loaded, drawn and pruned."""
    folder = tmp_path_factory.mktemp("report")
    save_tiny(folder / "model")
    (folder / "texts.txt").write_text("\n".join(texts_of(SAMPLES)))
    pruner = KPruner.from_pretrained(folder / "model")
    pruner.prune(KPruneConfig(), pruner.get_calibration_dataset(folder / "texts.txt", seed=3))
    return pruner


def test_the_repr_of_a_pruner_tells_model_task_and_state(pruner):
    dense = KPruner(tiny_model(), tiny_tokenizer())
    assert repr(dense) == "KPruner(BertForSequenceClassification, text-classification, not pruned yet)"
    removed = f"{pruner.result.flops_removed:.1%} of the FLOPs removed"
    assert repr([pruner]) == f"[KPruner(BertForSequenceClassification, text-classification, {removed})]"


@pytest.mark.parametrize("duplicate", [lambda pruner: pickle.loads(pickle.dumps(pruner)), copy.deepcopy])
def test_a_pruner_pickles_and_copies(duplicate, pruner, tmp_path):
    other = duplicate(pruner)
    assert other.model is not pruner.model and same_state(other.model, pruner.model)
    (logits,), (expected,) = (outputs_of(each.model, pad(SAMPLES)) for each in (other, pruner))
    assert (logits == expected).all()
    assert other.result == pruner.result and repr(other) == repr(pruner)
    for name, saved in (("one", pruner), ("other", other)):
        saved.save_pretrained(tmp_path / name)
    cards = [(tmp_path / name / "README.md").read_text() for name in ("one", "other")]
    assert cards[0] == cards[1] and "seed=3" in cards[0]
    config = KPruneConfig(compression_rate=0.7)
    results = [each.prune(config, texts_of(SAMPLES)) for each in (copy.copy(pruner), other)]
    assert results[0].kept == results[1].kept
