"""Recoveries of what families do in their own ways: repeated blocks, tuples, windows, layers dropped in training."""

import pytest
import torch
from prunes import settings
from tiny import assert_same_outputs, same_state
from transformers.models.auto import modeling_auto
from zoo import batch_of, build, head_of

from optimum_kprune import KPruner
from optimum_kprune.recovery.trainer import RecoveryTrainer

pytestmark = pytest.mark.slow

# In training mode, most blocks of these are left out, and parts of the input are masked.
DROPPED = {"layerdrop": 0.9, "mask_time_prob": 0.5, "mask_time_length": 2}
FAMILIES = {
    "albert": {},
    "bart": {"encoder_layerdrop": 0.9},
    "deberta-v2": {},
    "longformer": {},
    "modernbert": {},
    "swin": {},
    "t5": {},
    "videomae": {},
    "wav2vec2": DROPPED,
    "wav2vec2-bert/relative": {},
    "whisper": {"encoder_layerdrop": 0.9},
}


def pruned(name, model, recovery_tokens, **overrides):
    pruner = KPruner(model)
    batches = [batch_of(name, rows=3, seed=seed) for seed in range(12)]
    config = dict(compression_rate=0.6, heldout_share=0.25, recovery_learning_rate=3e-3)
    pruner.prune(settings(**config, recovery_tokens=recovery_tokens, **overrides), batches)
    return pruner


def watched_losses(monkeypatch):
    losses, compute = [], RecoveryTrainer.compute_loss

    def compute_loss(*args, **kwargs):
        losses.append(compute(*args, **kwargs))
        return losses[-1]

    monkeypatch.setattr(RecoveryTrainer, "compute_loss", compute_loss)
    return losses


@pytest.mark.parametrize("name", FAMILIES)
def test_the_blocks_learn_and_nothing_else_changes(name, tmp_path, monkeypatch):
    model = build(name, **FAMILIES[name]).train()
    dense = {key: values.clone() for key, values in model.state_dict().items()}
    before, losses = pruned(name, model, recovery_tokens=0), watched_losses(monkeypatch)
    after = pruned(name, model, recovery_tokens=4000)
    assert all(values.equal(dense[key]) for key, values in model.state_dict().items())
    # Not to the last bit: Longformer is not the same from run to run.
    assert after.result.recovery.before.divergence == pytest.approx(before.result.heldout.divergence, rel=1e-4)
    assert after.result.heldout.divergence <= after.result.recovery.before.divergence
    each = len(losses) // 4
    assert each and sum(losses[-each:]) < sum(losses[:each])
    inside = {id(weight) for block in after._encoder(after.model).blocks for weight in block.parameters()}
    given = dict(before.model.named_parameters())
    for key, weight in after.model.named_parameters():
        assert weight.equal(given[key]) or (id(weight) in inside and after.result.recovery.kept_step)
    after.save_pretrained(tmp_path / "out")
    loaded = getattr(modeling_auto, f"AutoModel{head_of(name)}").from_pretrained(tmp_path / "out")
    assert same_state(loaded, after.model)
    assert_same_outputs(loaded, after.model, batch_of(name))


def test_a_table_of_positions_in_the_first_block_stays():
    """It is that of all blocks, and was not pruned."""
    before, after = (pruned("t5", build("t5"), tokens) for tokens in (0, 4000))
    tables = [pruner.model.encoder.block[0].layer[0].SelfAttention for pruner in (before, after)]
    assert after.result.recovery.kept_step and not same_state(before.model, after.model)
    assert same_state(*(table.relative_attention_bias for table in tables))


def test_what_is_masked_or_dropped_in_training_takes_no_part():
    """The result is that of a model that has none of it."""
    model = build("wav2vec2", **DROPPED).train()
    one = pruned("wav2vec2", model, 4000)
    model.config.layerdrop, model.config.apply_spec_augment = 0.0, False
    other = pruned("wav2vec2", model.eval(), 4000)
    assert one.result.recovery.kept_step and same_state(one.model, other.model)


def test_a_buffer_that_autocast_replaces_comes_back():
    """This model keeps a table of positions, in the type of its last input."""
    pruner = pruned("wav2vec2-bert/relative", build("wav2vec2-bert/relative"), 1000, recovery_precision="bfloat16")
    assert pruner.result.recovery.steps
    tables = [model.wav2vec2_bert.encoder.embed_positions.pe for model in (pruner.model, pruner.teacher)]
    assert torch.equal(*tables)
