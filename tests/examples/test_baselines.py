"""Units that are chosen otherwise than by knowledge: the right ones are kept, and the rest of a prune is the same."""

import numpy as np
import pytest
import torch
from baselines import SELECTIONS, SelectingPruner, magnitude_scores
from tiny import batches_of, ragged_samples, tiny_model

from optimum_kprune import KPruneConfig, KPruner
from optimum_kprune.encoder.sublayers import Encoder
from optimum_kprune.prune.scores import Scores

RATE, SEED = 0.6, 3
PLAIN = {"tuning": False, "neuron_multiple": 1}


def prune(selection, pruner_class=SelectingPruner, **settings):
    pruner = pruner_class(tiny_model())
    pruner.selection = selection
    config = KPruneConfig(compression_rate=RATE, seed=SEED, heldout_share=0.0, sequence_length=8, **settings)
    pruner.prune(config, batches_of(ragged_samples()))
    return pruner


def sublayers_of(model, pruner=None):
    return Encoder(model, (pruner or KPruner(model)).adapter).sublayers()


@pytest.fixture
def never_measured(monkeypatch):
    monkeypatch.setattr(Scores, "measure", lambda *args: pytest.fail("Knowledge was measured."))


@pytest.mark.parametrize("selection", SELECTIONS)
def test_the_highest_scores_that_fit_the_budget_are_kept(selection, never_measured):
    pruner = prune(selection, **PLAIN)
    sublayers, generator = sublayers_of(pruner.teacher, pruner), torch.Generator().manual_seed(SEED)
    units = [
        (float(score), number, unit, sublayer.unit_flops(8))
        for number, sublayer in enumerate(sublayers)
        for unit, score in enumerate(SELECTIONS[selection](sublayer, generator))
    ]
    budget = (1 - RATE) * sum(flops for *_, flops in units)
    for target, result in enumerate(pruner.result.sublayers):
        kept, left = [], budget
        for _, number, unit, flops in sorted(entry for entry in units if entry[1] >= target)[::-1]:
            left -= flops
            if left < 0:
                break
            kept += [unit] if number == target else []
        assert result.kept == sorted(kept)
        budget -= len(kept) * sublayers[target].unit_flops(8)


def test_without_tuning_the_kept_weights_are_the_dense_ones():
    pruner = prune("random", **PLAIN)
    for dense, pruned, result in zip(
        sublayers_of(pruner.teacher), sublayers_of(pruner.model, pruner), pruner.result.sublayers, strict=True
    ):
        size = dense.unit_size
        columns = [size * unit + place for unit in result.kept for place in range(size)]
        if columns:
            assert torch.equal(pruned.output.weight, dense.output.weight[:, columns])


def test_tuning_refits_the_same_units(never_measured):
    plain, tuned = prune("random", **PLAIN), prune("random", neuron_multiple=1)
    assert [s.kept for s in plain.result.sublayers] == [s.kept for s in tuned.result.sublayers]
    assert all(t.error < p.error for p, t in zip(plain.result.sublayers, tuned.result.sublayers, strict=True))


def test_layers_go_from_the_top():
    shares = [len(s.kept) / s.total for s in prune("layers", **PLAIN).result.sublayers]
    # 3 blocks, of which 1.2 fit.
    assert shares[:2] == [1, 1] and 0 < sum(shares[2:4]) < 1 and shares[4:] == [0, 0]


def test_a_magnitude_is_the_root_mean_square_of_all_weights_of_a_unit():
    heads, neurons = sublayers_of(tiny_model())[:2]
    for sublayer, unit in ((heads, 1), (neurons, 5)):
        rows = slice(sublayer.unit_size * unit, sublayer.unit_size * (unit + 1))
        weights = [projection.weight[rows] for projection in sublayer.inputs] + [sublayer.output.weight[:, rows]]
        values = np.concatenate([weight.detach().numpy().astype(float).ravel() for weight in weights])
        found = magnitude_scores(sublayer, torch.Generator())
        assert found[unit].item() == pytest.approx(np.sqrt(np.mean(values**2))) and len(found) == sublayer.units


def test_magnitudes_are_refused_where_rows_are_not_those_of_the_units():
    gated = next(s for s in sublayers_of(tiny_model("modernbert")) if s.adapter.kind == "ffn")
    with pytest.raises(ValueError, match=r"one row for each feature, as BERT's\. layer 0 ffn has "):
        magnitude_scores(gated, torch.Generator())


def test_knowledge_is_a_plain_prune():
    own, plain = prune("knowledge"), prune("knowledge", KPruner)
    assert [s.kept for s in own.result.sublayers] == [s.kept for s in plain.result.sublayers]
    for (name, ours), theirs in zip(own.model.state_dict().items(), plain.model.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs), name
