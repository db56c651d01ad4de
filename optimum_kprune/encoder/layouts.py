"""The layouts of encoders: adapters by the way in which blocks are built and named, which families share."""

from dataclasses import replace
from typing import Any

from .adapters import EncoderAdapter, SublayerAdapter


def attention(
    module: str, inputs: str, output: str, residual: str = "", units: str = "", features: str = "", **more: Any
) -> SublayerAdapter:
    """Returns the adapter of an attention sublayer.

    Args:
        module: the module that computes the heads, which returns a tuple, and can be taken out.
        inputs: names of the input projections in that module, separated by spaces.
        output: the output projection.
        residual: the module that reads the residual stream: if "", the first input projection.
        units: name of the attribute of the module that is the number of heads, if it has one.
        features: name of the attribute of the module that is the number of features of all heads, if it has one.
        more: what else `SublayerAdapter` takes.
    """
    names = {f"{module}.{name}": 1 for name in inputs.split()}
    counts = {f"{module}.{name}": kind for name, kind in ((units, "units"), (features, "features")) if name}
    given = {"bypass": module, "returns_tuple": True, "counts": counts, **more}
    return SublayerAdapter("attention", names, output, residual or next(iter(names)), **given)


def ffn(inputs: str, output: str, residual: str = "", **more: Any) -> SublayerAdapter:
    """Returns the adapter of a feed-forward sublayer.

    Args:
        inputs: names of the input projections, separated by spaces. The module that holds them can be taken out; if
            that is the block, the first of them can.
        output: the output projection.
        residual: the module that reads the residual stream: if "", the first input projection.
        more: what else `SublayerAdapter` takes.
    """
    names = dict.fromkeys(inputs.split(), 1)
    first = next(iter(names))
    given = {"bypass": first.rpartition(".")[0] or first, **more}
    return SublayerAdapter("ffn", names, output, residual or first, **given)


# Layouts of BERT

_BERT_HEADS: dict[str, Any] = {"units": "num_attention_heads", "features": "all_head_size"}
_BERT_ATTENTION = attention("attention.self", "query key value", "attention.output.dense", **_BERT_HEADS)
_BERT_FFN = ffn("intermediate.dense", "output.dense")


def _bert(attention: SublayerAdapter = _BERT_ATTENTION, ffn: SublayerAdapter = _BERT_FFN) -> EncoderAdapter:
    """Returns an adapter of an encoder that names its blocks as BERT does."""
    return EncoderAdapter("encoder.layer", (attention, ffn))


def _bert_pre_norm(before_attention: str, before_ffn: str) -> EncoderAdapter:
    """Returns an adapter of an encoder as BERT, with norms before its sublayers, which read the residual stream."""
    return _bert(replace(_BERT_ATTENTION, residual=before_attention), replace(_BERT_FFN, residual=before_ffn))


def _tensors(module: str, names: str, dim: int = 0) -> dict[str, int]:
    """Returns tensors of a module, whose names are separated by spaces, with their dimension of units."""
    return {f"{module}.{name}": dim for name in names.split()}


BERT = _bert()
ALBERT = EncoderAdapter(
    "encoder.albert_layer_groups.*.albert_layers",
    # The attention module adds its output to the residual stream itself, so that it cannot be taken out.
    (attention("attention", "query key value", "attention.dense", **_BERT_HEADS, bypass=""), ffn("ffn", "ffn_output")),
    repeated={"num_hidden_groups": "num_hidden_layers"},
)
DEBERTA = _bert(
    attention(
        "attention.self",
        "in_proj",
        "attention.output.dense",
        **_BERT_HEADS,
        tensors=_tensors("attention.self", "q_bias v_bias pos_proj.weight pos_q_proj.weight pos_q_proj.bias"),
    )
)
DEBERTA_V2 = _bert(
    attention(
        "attention.self",
        "query_proj key_proj value_proj",
        "attention.output.dense",
        **_BERT_HEADS,
        tensors=_tensors(
            "attention.self", "pos_key_proj.weight pos_key_proj.bias pos_query_proj.weight pos_query_proj.bias"
        ),
    )
)
# Two projections read the table of relative positions, too.
DEBERTA_V3 = replace(
    _bert(
        attention(
            "attention.self",
            "query_proj key_proj value_proj",
            "attention.output.dense",
            residual="attention.self",
            **_BERT_HEADS,
            uncorrected=("attention.self.query_proj", "attention.self.key_proj"),
        )
    ),
    when={"share_att_key": True},
)
DISTILBERT = EncoderAdapter(
    "transformer.layer",
    (
        # Only transformers 4 reads `dim`, and divides it by the number of heads.
        attention("attention", "q_lin k_lin v_lin", "attention.out_lin", units="n_heads", features="dim"),
        ffn("ffn.lin1", "ffn.lin2"),
    ),
)
ESM = _bert_pre_norm("attention.LayerNorm", "LayerNorm")
LAYOUTLMV3 = _bert(replace(_BERT_ATTENTION, arguments={"rel_pos": 1, "rel_2d_pos": 1}))
LUKE = _bert(
    replace(
        _BERT_ATTENTION,
        # The queries between words and entities.
        tensors=_tensors(
            "attention.self",
            "w2e_query.weight w2e_query.bias e2w_query.weight e2w_query.bias e2e_query.weight e2e_query.bias",
        ),
    )
)
MEGATRON_BERT = _bert_pre_norm("attention.ln", "ln")
MPNET = _bert(attention("attention.attn", "q k v", "attention.attn.o", **_BERT_HEADS, arguments={"position_bias": 1}))
NYSTROMFORMER = _bert(
    replace(
        _BERT_ATTENTION,
        counts=_BERT_ATTENTION.counts
        | dict.fromkeys(_tensors("attention.self.conv", "groups in_channels out_channels"), "units"),
        tensors={"attention.self.conv.weight": 0},
    )
)
XLM_ROBERTA_XL = _bert_pre_norm("attention.self_attn_layer_norm", "LayerNorm")

# Feed-forward sublayers only: heads are tied to one another, to windows or to convolutions, or there are none.
BERT_FFN = EncoderAdapter("encoder.layer", (_BERT_FFN,))

# Other layouts of text

_LATER_ATTENTION = attention("self_attn", "q_proj k_proj v_proj", "self_attn.o_proj")
_GATED_FFN = ffn("mlp.gate_proj mlp.up_proj", "mlp.down_proj")
_MLP = ffn("mlp.fc1", "mlp.fc2")

GTE = EncoderAdapter("layers", (_LATER_ATTENTION, _GATED_FFN))
JINA_V3 = EncoderAdapter("layers", (_LATER_ATTENTION, _MLP))
LLAMA = EncoderAdapter(
    "layers",
    (
        replace(_LATER_ATTENTION, residual="input_layernorm"),
        replace(_GATED_FFN, residual="post_attention_layernorm"),
    ),
)
GEMMA3 = EncoderAdapter(
    "layers",
    (
        replace(_LATER_ATTENTION, residual="input_layernorm", scale="post_attention_layernorm"),
        replace(_GATED_FFN, residual="pre_feedforward_layernorm", scale="post_feedforward_layernorm"),
    ),
)
MODERNBERT = EncoderAdapter(
    "layers",
    (
        SublayerAdapter("attention", {"attn.Wqkv": 3}, "attn.Wo", "attn_norm", "attn", returns_tuple=True),
        SublayerAdapter("ffn", {"mlp.Wi": 2}, "mlp.Wo", "mlp_norm", "mlp"),
    ),
)

_T5_BIAS = "layer.0.SelfAttention.relative_attention_bias"
_T5_ATTENTION = attention(
    "layer.0.SelfAttention",
    "q k v",
    "layer.0.SelfAttention.o",
    residual="layer.0.layer_norm",
    units="n_heads",
    features="inner_dim",
    returns_tuple=3,
    tensors={f"{_T5_BIAS}.weight": 1},
)
_T5_FFN = ffn("layer.1.DenseReluDense.wi", "layer.1.DenseReluDense.wo", residual="layer.1.layer_norm")
_T5_GATED_FFN = replace(_T5_FFN, inputs=dict.fromkeys(_tensors("layer.1.DenseReluDense", "wi_0 wi_1"), 1))
_T5_GATED: dict[str, Any] = {"is_gated_act": True}
# The blocks hand on the bias of block 0.
T5 = EncoderAdapter("encoder.block", (_T5_ATTENTION, _T5_FFN), handed_on={_T5_BIAS: "position_bias"})
T5_GATED = replace(T5, sublayers=(_T5_ATTENTION, _T5_GATED_FFN), when=_T5_GATED)
# Every block has a bias of its own.
UMT5 = EncoderAdapter("encoder.block", (replace(_T5_ATTENTION, returns_tuple=True), _T5_FFN))
UMT5_GATED = replace(UMT5, sublayers=(*UMT5.sublayers[:1], _T5_GATED_FFN), when=_T5_GATED)

# BART and the encoders of its layout

_BART_ATTENTION = attention("self_attn", "q_proj k_proj v_proj", "self_attn.out_proj", units="num_heads")
BART = EncoderAdapter("encoder.layers", (_BART_ATTENTION, ffn("fc1", "fc2")))
WHISPER = EncoderAdapter(
    "encoder.layers",
    (
        replace(_BART_ATTENTION, residual="self_attn_layer_norm"),
        ffn("fc1", "fc2", residual="final_layer_norm"),
    ),
    front=("encoder.conv1", "encoder.conv2"),
)
CLIP = EncoderAdapter(
    "encoder.layers",
    (replace(_BART_ATTENTION, residual="layer_norm1"), replace(_MLP, residual="layer_norm2")),
)

# Images

_VIT_ATTENTION = attention(
    "attention",
    "q_proj k_proj v_proj",
    "attention.o_proj",
    residual="layernorm_before",
    units="num_attention_heads",
)
_VIT_FFN = replace(_MLP, residual="layernorm_after")
VIT = EncoderAdapter("layers", (_VIT_ATTENTION, _VIT_FFN))
BEIT = EncoderAdapter(
    "layers",
    (
        # A bias that all blocks share is in the mask that they are given.
        replace(_VIT_ATTENTION, scale="lambda_1", arguments={"attention_mask": 1}),
        replace(_VIT_FFN, scale="lambda_2"),
    ),
)
BEIT_OWN_BIAS = EncoderAdapter(
    "layers",
    (
        replace(BEIT.sublayers[0], arguments={}, tensors={"relative_position_bias.relative_position_bias_table": 1}),
        BEIT.sublayers[1],
    ),
    when={"use_relative_position_bias": True},
)
_DINO_ATTENTION = replace(_VIT_ATTENTION, residual="norm1", scale="layer_scale1.lambda1")
_DINO_FFN = replace(_MLP, residual="norm2", scale="layer_scale2.lambda1")
_DINO_GATED_FFN = replace(_GATED_FFN, residual="norm2", scale="layer_scale2.lambda1")
DINOV2 = EncoderAdapter("encoder.layer", (_DINO_ATTENTION, _DINO_FFN))
DINOV2_GATED = replace(DINOV2, sublayers=(_DINO_ATTENTION, _DINO_GATED_FFN), when={"use_swiglu_ffn": True})
_DINOV3_ATTENTION = replace(_DINO_ATTENTION, counts={"attention.num_heads": "units"})
_DINOV3_FFN = ffn("mlp.up_proj", "mlp.down_proj", residual="norm2", scale="layer_scale2.lambda1")
DINOV3 = EncoderAdapter("layer", (_DINOV3_ATTENTION, _DINOV3_FFN))
DINOV3_GATED = replace(DINOV3, sublayers=(_DINOV3_ATTENTION, _DINO_GATED_FFN), when={"use_gated_mlp": True})
VIDEOMAE = _bert(
    attention(
        "attention.attention",
        "query key value",
        "attention.output.dense",
        residual="layernorm_before",
        **_BERT_HEADS,
    ),
    replace(_BERT_FFN, residual="layernorm_after"),
)
# Windows put the tokens in another order than the residual stream, so that heads stay.
SWIN = EncoderAdapter("encoder.layers.*.blocks", (_VIT_FFN,))

# Audio

_WAV2VEC2_ATTENTION = attention("attention", "q_proj k_proj v_proj", "attention.out_proj", units="num_heads")
_WAV2VEC2_FFN = ffn("feed_forward.intermediate_dense", "feed_forward.output_dense")
_PRE_NORM: dict[str, Any] = {"do_stable_layer_norm": True}
WAV2VEC2 = EncoderAdapter(
    "encoder.layers",
    (_WAV2VEC2_ATTENTION, _WAV2VEC2_FFN),
    front=("feature_extractor", "encoder.pos_conv_embed"),
)
_WAV2VEC2_PRE_NORM_FFN = replace(_WAV2VEC2_FFN, residual="final_layer_norm")
WAV2VEC2_PRE_NORM = replace(
    WAV2VEC2,
    sublayers=(replace(_WAV2VEC2_ATTENTION, residual="layer_norm"), _WAV2VEC2_PRE_NORM_FFN),
    when=_PRE_NORM,
)
# The blocks hand on the bias of block 0, to which every block gives gates of its own: heads stay.
WAVLM = replace(WAV2VEC2, sublayers=(_WAV2VEC2_FFN,))
WAVLM_PRE_NORM = replace(WAV2VEC2, sublayers=(_WAV2VEC2_PRE_NORM_FFN,), when=_PRE_NORM)
_CONFORMER_ATTENTION = attention(
    "self_attn",
    "linear_q linear_k linear_v",
    "self_attn.linear_out",
    residual="self_attn_layer_norm",
    units="num_heads",
    tensors=_tensors("self_attn", "linear_pos.weight pos_bias_u pos_bias_v"),
)
_CONFORMER_FFNS = tuple(
    ffn(f"{name}.intermediate_dense", f"{name}.output_dense", residual=f"{name}_layer_norm", scale=0.5)
    for name in ("ffn1", "ffn2")
)
WAV2VEC2_BERT = EncoderAdapter("encoder.layers", (_CONFORMER_FFNS[0], _CONFORMER_ATTENTION, _CONFORMER_FFNS[1]))
# Two projections read the hidden states rotated by their positions, in as many parts as the dense model has heads.
_ROTARY_ATTENTION = replace(_CONFORMER_ATTENTION, counts={}, uncorrected=("self_attn.linear_q", "self_attn.linear_k"))
WAV2VEC2_BERT_ROTARY = replace(
    WAV2VEC2_BERT,
    sublayers=(_CONFORMER_FFNS[0], _ROTARY_ATTENTION, _CONFORMER_FFNS[1]),
    when={"position_embeddings_type": "rotary"},
)
