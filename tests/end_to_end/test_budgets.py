"""What is asked for is what is got: budgets in every unit, through `KPruner.prune`, against what was saved."""

import pytest
import torch
from own_models import Host
from prunes import untouchable
from tiny import LAYERS, assert_masked_dense_equals, batches_of, ragged_samples, same_state, tiny_model
from zoo import batch_of, build

from optimum_kprune import KPruneConfig, KPruner
from optimum_kprune.budget import parse_budget
from optimum_kprune.encoder.unsharing import private_copy
from optimum_kprune.prune.costs import budget_at

# Wide enough for the multiple of neurons to be far below a percent.
WIDE = {"hidden_size": 64, "intermediate_size": 1024}
MODELS = {
    "float32": lambda: tiny_model(**WIDE),
    "bfloat16": lambda: tiny_model(**WIDE).bfloat16(),
    "float16": lambda: tiny_model(**WIDE).half(),
    "tied": lambda: tiny_model(head="masked language model", **WIDE),
    "no biases": lambda: build("t5", d_model=64, d_ff=1024),
    "layers in turns": lambda: build("albert", **WIDE),
    "module of one's own": lambda: Host(tiny_model(**WIDE)),
}


def batches_for(model):
    kind = getattr(getattr(model, "config", None), "model_type", "bert").removeprefix("kprune-")
    return batches_of(ragged_samples(24)) if kind == "bert" else [batch_of(kind, rows=8, seed=seed) for seed in (1, 2)]


def pruned(model, budget, **options):
    pruner = KPruner(model)
    pruner.prune(KPruneConfig(budget=budget, num_tokens=None, heldout_share=0), batches_for(model), **options)
    return pruner


def kept(pruner):
    return [len(entry.kept) for entry in pruner.result.sublayers]


@pytest.mark.parametrize("name", MODELS)
def test_the_file_has_the_megabytes_that_were_asked_for(name, tmp_path):
    model = MODELS[name]()
    dense = private_copy(KPruner(model)._encoder(model))
    asked = budget_at(0.4, KPruneConfig(budget="50% megabytes"), dense, sequence_length=9)
    megabytes = parse_budget(asked).amount
    pruner = pruned(model, asked, save_directory=tmp_path / "saved")
    written = sum(file.stat().st_size for file in (tmp_path / "saved").glob("*.safetensors")) / 1e6
    assert 0.99 * megabytes <= written <= 1.001 * megabytes
    assert pruner.result.megabytes_after == pytest.approx(written, rel=1e-3)
    assert pruner.result.dtype == (name if "float" in name else "float32")
    assert f"Budget: {asked}; kept: " in str(pruner.result)


@pytest.mark.parametrize("share", [0.6, 0.85])
def test_the_parameters_are_those_that_were_asked_for(share):
    model = tiny_model(**WIDE)
    pruner = pruned(model, f"{share * model.num_parameters():.0f} parameters")
    assert 0.99 * share < pruner.model.num_parameters() / model.num_parameters() <= share
    assert pruner.result.parameters_after == pruner.model.num_parameters()


@pytest.mark.parametrize("layers", [1, 2, LAYERS])
def test_whole_layers_are_kept(layers):
    model = tiny_model()
    pruner = pruned(model, f"{layers} layers")
    counts = list(zip(kept(pruner)[::2], kept(pruner)[1::2], strict=True))
    assert sorted(counts) == [(0, 0)] * (LAYERS - layers) + [(4, 64)] * layers
    assert_masked_dense_equals(model, pruner.model)
    assert f"kept: {layers} layer" in str(pruner.result)


def test_a_budget_is_checked_before_data_is_read():
    model = tiny_model()
    for budget in ("1 MB", "1k parameters", f"{LAYERS + 1} layers"):
        with pytest.raises(ValueError, match=r"`budget`"):
            KPruner(model).prune(KPruneConfig(budget=budget), untouchable())


def test_a_share_is_one_of_the_model_that_is_given():
    """Also if that was pruned before."""
    first = pruned(tiny_model(**WIDE), "70% megabytes")
    again = pruned(first.model, "80% megabytes").result
    assert again.megabytes_before == first.result.megabytes_after
    assert 0.79 < again.megabytes_after / first.result.megabytes_after <= 0.801
    halves = pruned(pruned(tiny_model(), "2 layers").model, "50% layers")
    assert sorted(kept(halves)) == [0] * 4 + [4, 64]


@pytest.mark.parametrize("budget", ["2 layers", "70% megabytes"])
def test_a_prune_that_was_killed_goes_on_with_its_budget(budget, tmp_path):
    whole = pruned(tiny_model(), budget, checkpoint_dir=tmp_path / "progress")
    # As a kill after the first sublayers leaves it, in the middle of a block.
    for file in sorted((tmp_path / "progress").glob("sublayer-*"))[3:]:
        file.unlink()
    resumed = pruned(tiny_model(), budget, checkpoint_dir=tmp_path / "progress")
    assert same_state(whole.model, resumed.model) and kept(whole) == kept(resumed)
    with pytest.raises(ValueError, match=rf"belongs to another prune: budget is '1 layer' here and was '{budget}'"):
        pruned(tiny_model(), "1 layer", checkpoint_dir=tmp_path / "progress")


def test_what_costs_the_same_is_pruned_the_same():
    """Bytes of a dtype are as many parameters: the same units are the best for their size."""
    model = tiny_model()
    by_parameters = pruned(model, "75% parameters")
    left = by_parameters.result.megabytes_before - 4e-6 * 0.25 * model.num_parameters()
    by_bytes = pruned(model, f"{left:.9g} MB")
    assert kept(by_parameters) == kept(by_bytes)


def test_half_precision_halves_what_is_written():
    sizes = [
        pruned(tiny_model(**WIDE).to(dtype), "75% parameters").result for dtype in (torch.float32, torch.bfloat16)
    ]
    assert sizes[0].megabytes_after / sizes[1].megabytes_after == pytest.approx(2, rel=0.02)
