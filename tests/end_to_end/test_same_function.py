"""Models of two families that compute the same, so that one prune must come out, whatever their rows say."""

import pytest
import torch
from prunes import settings
from zoo import batch_of, build

from optimum_kprune import KPruneConfig, KPruner

pytestmark = pytest.mark.slow

MPNET = {"attention.attn": "attention.self", "attention.LayerNorm": "attention.output.LayerNorm"}
MPNET |= {
    ".self.q.": ".self.query.",
    ".self.k.": ".self.key.",
    ".self.v.": ".self.value.",
    ".self.o.": ".output.dense.",
}
ALBERT = {"attention.query": "attention.self.query", "attention.key": "attention.self.key"}
ALBERT |= {"attention.value": "attention.self.value", "attention.dense": "attention.output.dense"}
ALBERT |= {"attention.LayerNorm": "attention.output.LayerNorm", "ffn.": "intermediate.dense."}
ALBERT |= {"ffn_output.": "output.dense.", "full_layer_layer_norm": "output.LayerNorm", "pooler.": "pooler.dense."}
VIT = {"encoder.layer.": "layers.", "norm1": "layernorm_before", "norm2": "layernorm_after"}


def renamed(state, names):
    """The tensors of a model with names as another family has them."""
    result = {}
    for name, tensor in state.items():
        for ours, theirs in names.items():
            name = name.replace(ours, theirs)
        result[name] = tensor
    return result


def load(model, state):
    """Loads the tensors that the model has, and returns it."""
    own = model.state_dict()
    missing = model.load_state_dict({name: state[name] for name in own if name in state}, strict=False).missing_keys
    assert all(own[name].abs().sum() == 0 for name in missing), missing
    return model


@torch.no_grad()
def mpnet_and_bert():
    """A bias of positions that all tokens share is none at all."""
    mpnet, bert = build("mpnet", head=""), build("bert", head="", max_position_embeddings=38)
    mpnet.encoder.relative_attention_bias.weight.copy_(torch.arange(4.0).expand(32, 4))
    bert.embeddings.token_type_embeddings.weight.zero_()
    state = renamed(mpnet.state_dict(), MPNET)
    state["embeddings.position_embeddings.weight"] = state["embeddings.position_embeddings.weight"][2:]
    return mpnet, load(bert, state)


@torch.no_grad()
def albert_and_bert():
    """Every layer of BERT has the weights of ALBERT's one."""
    albert = build("albert", head="", embedding_size=32, hidden_act="gelu")
    albert.encoder.embedding_hidden_mapping_in.weight.copy_(torch.eye(32))
    albert.encoder.embedding_hidden_mapping_in.bias.zero_()
    state = renamed(albert.state_dict(), ALBERT)
    for layer in range(3):
        state |= renamed(state, {"encoder.albert_layer_groups.0.albert_layers.0.": f"encoder.layer.{layer}."})
    return albert, load(build("bert", head=""), state)


@torch.no_grad()
def scaled_and_vit(name, scales, **options):
    """What scales the sum of a sublayer is in the output projections of ViT."""
    scaled, vit = build(name, head="", **options), build("vit", head="", layer_norm_eps=1e-6)
    state = renamed(scaled.state_dict(), VIT)
    for layer in range(3):
        for scale, output in zip(scales, ("attention.o_proj", "mlp.fc2"), strict=True):
            factor = state[f"layers.{layer}.{scale}"]
            state[f"layers.{layer}.{output}.weight"] = factor[:, None] * state[f"layers.{layer}.{output}.weight"]
            state[f"layers.{layer}.{output}.bias"] = factor * state[f"layers.{layer}.{output}.bias"]
    for name, tensor in vit.named_parameters():
        if "pooler" in name or (name not in state and "k_proj.bias" in name):
            tensor.zero_()
    return scaled, load(vit, state)


def dinov2_and_vit():
    return scaled_and_vit("dinov2", ("layer_scale1.lambda1", "layer_scale2.lambda1"))


@torch.no_grad()
def umt5_and_t5():
    """All layers of UMT5 have the bias of the first."""
    umt5, t5 = build("umt5"), build("t5")
    first, *others = (block.layer[0].SelfAttention.relative_attention_bias.weight for block in umt5.encoder.block)
    for other in others:
        other.copy_(first)
    return umt5, load(t5, umt5.state_dict())


@torch.no_grad()
def outputs(model, batch):
    """The hidden states of real tokens."""
    states = model(**batch)[0]
    return states[batch["attention_mask"].bool()] if "attention_mask" in batch else states


@pytest.mark.parametrize("make", [mpnet_and_bert, albert_and_bert, dinov2_and_vit, umt5_and_t5])
# At low rates, no sublayer loses all its units, of which the attention of ALBERT keeps one.
@pytest.mark.parametrize("config", [settings(), KPruneConfig.paper(num_tokens=None, compression_rate=0.3)])
def test_the_same_function_is_pruned_to_the_same_function(make, config):
    models = [model.double() for model in make()]
    batches = [batch_of(models[1].config.model_type, rows=8, seed=seed) for seed in (1, 2)]
    batches = [{key: x.double() if x.is_floating_point() else x for key, x in batch.items()} for batch in batches]
    dense = [outputs(model, batches[0]) for model in models]
    torch.testing.assert_close(*dense, rtol=1e-5, atol=1e-5)
    pruners = [KPruner(model) for model in models]
    for pruner in pruners:
        pruner.prune(config, batches)
    first, second = ([sublayer["kept"] for sublayer in pruner.result.kept] for pruner in pruners)
    assert first == second
    pruned = [outputs(pruner.model, batches[0]) for pruner in pruners]
    torch.testing.assert_close(*pruned, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(pruned[0], dense[0], atol=1e-2)
