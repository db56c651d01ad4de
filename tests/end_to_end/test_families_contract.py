"""Every family that comes with the library, in every build: what an adapter must say is so, on random weights."""

import copy
import functools
import pickle

import pytest
import torch
from family_models import (
    assert_masked_dense_gives_the_same,
    counted_flops,
    promised_flops,
    shrunk,
)
from tiny import assert_same_outputs, encoder_of, outputs_of
from zoo import ZOO, batch_of, build, config_of, model_type_of

from optimum_kprune import check_adapter
from optimum_kprune.encoder.adapters import adapters_of_type, get_adapter
from optimum_kprune.encoder.families import families
from optimum_kprune.encoder.hooks import recorded_output, recorded_states
from optimum_kprune.encoder.partial_forward import find_entries, run
from optimum_kprune.encoder.unsharing import private_copy

# What pruning saves beside what it promises, as a share of it: scores of positions, and a convolution of the values.
UNCOUNTED = {"deberta": 0.3, "deberta-v2": 0.2, "deberta-v2/v3": 0.2, "nystromformer": 0.02}
UNCOUNTED |= {"wav2vec2-bert": 0.05, "wav2vec2-bert/relative": 0.15}
# Blocks hand on more than hidden states, or the sublayer comes after a convolution.
NOT_ENTERED = {"luke", "swin", "wav2vec2-bert", "wav2vec2-bert/relative", "wav2vec2-bert/rotary"}
NOT_ENTERED |= {"wavlm", "wavlm/pre-norm"}

# Without a prune, these do not run in bfloat16 either: parts stay in float32, or have no Fourier transform.
NO_BFLOAT16 = {"fnet", "mra"}
# Pickle refuses the weight norm of their convolution.
NO_PICKLE = {"hubert", "hubert/pre-norm", "wav2vec2", "wav2vec2/pre-norm", "wavlm", "wavlm/pre-norm"}

every_build = pytest.mark.parametrize("name", ZOO)

# One build of every adapter is checked in the fast suite.
ADAPTERS = {str(get_adapter(model_type_of(name), config_of(name)).sublayers): name for name in ZOO}
CHECKED = [pytest.param(name, marks=[] if name in ADAPTERS.values() else pytest.mark.slow) for name in ZOO]

dense_model = functools.cache(build)


@functools.cache
def shrunk_model(name):
    return shrunk(dense_model(name))


def test_the_zoo_has_every_adapter():
    built = {(model_type_of(name), str(get_adapter(model_type_of(name), config_of(name)))) for name in ZOO}
    adapters = {(family.model_type, str(adapter)) for family in families() for adapter in family.adapters}
    assert built == adapters
    assert len(adapters) == sum(len(adapters_of_type(family.model_type)) for family in families())


@pytest.mark.parametrize("name", CHECKED)
def test_the_adapter_describes_the_model(name):
    check_adapter(dense_model(name), batch_of(name))


@pytest.mark.slow
@every_build
def test_a_shrunk_model_gives_what_the_masked_dense_gives(name):
    assert_masked_dense_gives_the_same(name, dense_model(name), shrunk_model(name))


@pytest.mark.slow
@every_build
def test_flops_are_those_that_torch_counts(name):
    dense, batch = dense_model(name), batch_of(name)
    saved = counted_flops(dense, batch) - counted_flops(shrunk_model(name), batch)
    assert 1 - 1e-9 <= saved / promised_flops(dense, batch) <= 1 + 1e-9 + UNCOUNTED.get(name, 0)


@pytest.mark.slow
@every_build
@torch.no_grad()
def test_a_model_that_is_entered_gives_what_it_gives_from_the_bottom(name):
    """Bit for bit, on another batch than that on which the places were found."""
    encoder = private_copy(encoder_of(dense_model(name)))
    sample, batch = (
        {key: values[:rows] for key, values in batch_of(name, 4, seed).items()} for rows, seed in ((1, 0), (4, 1))
    )
    encoder.entries = find_entries(encoder, sample)
    places = [each.place for each in encoder.sublayers()][1:]
    assert (set(encoder.entries.modules) == set(places)) == (name not in NOT_ENTERED)
    with recorded_output(encoder.blocks[-1]) as outputs:
        run(encoder, batch)
        for place in encoder.entries.modules:
            with recorded_states(encoder, place) as states:
                run(encoder, batch)
            run(encoder, batch, place, states[0])
    assert all(torch.equal(output, outputs[0]) for output in outputs)


@pytest.mark.slow
@every_build
def test_copies_give_the_same(name):
    # A new one, because transformers puts hooks on models that have run, of which pickle knows no name.
    pruned = shrunk(build(name))
    copies = [copy.deepcopy(pruned)]
    if name in NO_PICKLE:
        with pytest.raises(RuntimeError, match="parametrized modules"):
            pickle.dumps(build(name))
    else:
        copies.append(pickle.loads(pickle.dumps(pruned)))
    for copied in copies:
        assert_same_outputs(pruned, copied, batch_of(name))


@pytest.mark.slow
@every_build
def test_half_precision_gives_about_the_same(name):
    batch = batch_of(name)
    half = {key: values.bfloat16() if values.is_floating_point() else values for key, values in batch.items()}
    if name in NO_BFLOAT16:
        with pytest.raises(RuntimeError):
            build(name).bfloat16()(**half)
        return
    outputs = outputs_of(shrunk_model(name), batch), outputs_of(shrunk(build(name)).bfloat16(), half)
    for value, other in zip(*outputs, strict=True):
        assert torch.isfinite(other).all()
        torch.testing.assert_close(other.float(), value, rtol=0, atol=0.3 * value.abs().max().item())


@pytest.mark.slow
@every_build
def test_a_pruned_model_can_be_trained(name):
    pruned = copy.deepcopy(shrunk_model(name))
    outputs = [output for output in pruned(**batch_of(name)).to_tuple() if isinstance(output, torch.Tensor)]
    sum(output.square().sum() for output in outputs).backward()
    for sublayer in encoder_of(pruned).sublayers():
        for module in [*(sublayer.inputs if sublayer.units else []), sublayer.output]:
            assert all(torch.isfinite(p.grad).all() and p.grad.any() for p in module.parameters())
