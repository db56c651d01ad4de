"""A tiny random model of every family, in every way in which it is built, and batches that it reads."""

import functools
from dataclasses import dataclass, field

import torch
from tiny import HEAD_COUNT, HIDDEN, LAYERS, NEURONS, PAD, VOCABULARY, pad, ragged_samples, randomize
from transformers import AutoConfig
from transformers.models.auto import modeling_auto

from optimum_kprune.encoder.families import families

SIZES = dict(hidden_size=HIDDEN, num_hidden_layers=LAYERS, num_attention_heads=HEAD_COUNT, intermediate_size=NEURONS)
TOKENS = dict(vocab_size=len(VOCABULARY), bos_token_id=0, pad_token_id=PAD, eos_token_id=2)
TEXT = dict(**SIZES, **TOKENS, max_position_embeddings=40)
DEBERTA = dict(relative_attention=True, pos_att_type=["c2p", "p2c"])
# Of an encoder-decoder, both stacks.
BART = dict(d_model=HIDDEN, encoder_ffn_dim=NEURONS, decoder_ffn_dim=NEURONS)
BART |= dict(encoder_layers=LAYERS, decoder_layers=1, encoder_attention_heads=HEAD_COUNT, decoder_attention_heads=2)
T5 = dict(d_model=HIDDEN, d_kv=8, d_ff=NEURONS, num_layers=LAYERS, num_heads=HEAD_COUNT, decoder_start_token_id=PAD)
T5 |= dict(TOKENS, relative_attention_num_buckets=8, relative_attention_max_distance=16)
RELU, GATED = dict(feed_forward_proj="relu"), dict(feed_forward_proj="gated-gelu")
# Two heads share keys and values.
GROUPED = dict(TEXT, num_key_value_heads=2, head_dim=8)
IMAGE = dict(SIZES, image_size=16, patch_size=4, num_channels=3)
DINO = {name: size for name, size in IMAGE.items() if name != "intermediate_size"}
SWIN = dict(image_size=32, patch_size=4, embed_dim=16, depths=[1, 2], num_heads=[2, 4], window_size=4, mlp_ratio=2.0)
AUDIO = dict(SIZES, vocab_size=len(VOCABULARY), conv_dim=(16, 16), conv_stride=(4, 2), conv_kernel=(8, 4))
AUDIO |= dict(num_feat_extract_layers=2, num_conv_pos_embeddings=8, num_conv_pos_embedding_groups=2)
AUDIO |= dict(num_codevector_groups=2, codevector_dim=16, proj_codevector_dim=16, mask_time_prob=0.0, layerdrop=0.0)
PRE_NORM = dict(AUDIO, do_stable_layer_norm=True, feat_extract_norm="layer")
SPEECH = dict(
    SIZES,
    vocab_size=len(VOCABULARY),
    feature_projection_input_dim=16,
    conv_depthwise_kernel_size=3,
    mask_time_prob=0.0,
    layerdrop=0.0,
)
SPECTROGRAM = dict(SIZES, patch_size=4, max_length=24, num_mel_bins=8, frequency_stride=4, time_stride=4)
WHISPER = dict(BART, **TOKENS, num_mel_bins=8, max_source_positions=20, max_target_positions=20)
WHISPER |= dict(decoder_start_token_id=0, classifier_proj_size=16)

CLASSIFIERS = {"text": "ForSequenceClassification"}
CLASSIFIERS |= {"image": "ForImageClassification", "audio": "ForAudioClassification"}
MODALITIES = {family.model_type: family.modality for family in families()}


@dataclass(frozen=True)
class Entry:
    """A build of a family.

    Attributes:
        options: fields of the config.
        head: end of the name of the Auto class; None for the classifier of the modality.
        reads: what the batches hold beside or instead of the usual inputs of the modality.
    """

    options: dict = field(default_factory=dict)
    head: str | None = None
    reads: str = ""


TEXTS = {
    "albert": Entry(dict(TEXT, embedding_size=16, num_hidden_groups=1)),
    "albert/groups": Entry(dict(TEXT, embedding_size=16, num_hidden_groups=2, inner_group_num=2)),
    "bart": Entry(dict(BART, **TOKENS, max_position_embeddings=40)),
    "bert": Entry(TEXT),
    "bert-generation": Entry(TEXT, head=""),
    "big_bird": Entry(dict(TEXT, attention_type="original_full")),
    "camembert": Entry(TEXT),
    "canine": Entry(TEXT),
    "clip_text_model": Entry(TEXT, head=""),
    "convbert": Entry(dict(TEXT, embedding_size=HIDDEN, conv_kernel_size=3, head_ratio=2)),
    "deberta": Entry(dict(TEXT, **DEBERTA, max_relative_positions=16)),
    "deberta/absolute": Entry(TEXT),
    "deberta-v2": Entry(dict(TEXT, **DEBERTA, position_buckets=8, conv_kernel_size=3)),
    "deberta-v2/v3": Entry(
        dict(TEXT, **DEBERTA, position_buckets=8, norm_rel_ebd="layer_norm", share_att_key=True, type_vocab_size=0)
    ),
    "distilbert": Entry({**TEXT, "hidden_dim": NEURONS}),
    "electra": Entry(dict(TEXT, embedding_size=16)),
    "ernie": Entry(TEXT),
    "esm": Entry(dict(TEXT, mask_token_id=4, position_embedding_type="rotary", token_dropout=True)),
    "eurobert": Entry(dict(GROUPED, mask_token_id=4)),
    "fnet": Entry({name: size for name, size in TEXT.items() if name != "num_attention_heads"}),
    "gemma3_text": Entry(
        dict(GROUPED, sliding_window=8, use_bidirectional_attention=True, query_pre_attn_scalar=8), head=""
    ),
    "gte": Entry(TEXT),
    "jina_embeddings_v3": Entry(TEXT),
    "layoutlm": Entry(TEXT, reads="boxes"),
    "layoutlmv3": Entry(
        dict(
            TEXT,
            coordinate_size=4,
            shape_size=8,
            visual_embed=False,
            has_relative_attention_bias=True,
            has_spatial_attention_bias=True,
        ),
        reads="boxes",
    ),
    "llama": Entry(GROUPED, head=""),
    "longformer": Entry(dict(TEXT, attention_window=4)),
    "luke": Entry(dict(TEXT, entity_vocab_size=10, entity_emb_size=16)),
    "megatron-bert": Entry(TEXT),
    "mistral": Entry(dict(GROUPED, sliding_window=8), head=""),
    "modernbert": Entry(dict(TEXT, cls_token_id=0, sep_token_id=2, global_attn_every_n_layers=3, local_attention=8)),
    "mpnet": Entry(TEXT),
    "mra": Entry({**TEXT, "max_position_embeddings": 64}, reads="32 tokens"),
    "mt5": Entry(dict(T5, **RELU), head="ForTextEncoding"),
    "mt5/gated": Entry(dict(T5, **GATED), head="ForTextEncoding"),
    "nomic_bert": Entry(TEXT),
    "nystromformer": Entry(dict(TEXT, num_landmarks=4, segment_means_seq_len=4, conv_kernel_size=3)),
    "qwen2": Entry(GROUPED, head=""),
    "qwen3": Entry(GROUPED, head=""),
    "rembert": Entry(dict(TEXT, input_embedding_size=16, output_embedding_size=24)),
    "roberta": Entry(TEXT),
    "roc_bert": Entry(dict(TEXT, enable_pronunciation=False, enable_shape=False)),
    "roformer": Entry(dict(TEXT, embedding_size=HIDDEN)),
    "t5": Entry(dict(T5, **RELU), head="ForTextEncoding"),
    "t5/gated": Entry(dict(T5, **GATED), head="ForTextEncoding"),
    "tapas": Entry(TEXT, reads="cells"),
    "umt5": Entry(dict(T5, **RELU), head="ForTextEncoding"),
    "umt5/gated": Entry(dict(T5, **GATED), head="ForTextEncoding"),
    "xlm-roberta": Entry(TEXT),
    "xlm-roberta-xl": Entry(TEXT),
}
OTHERS = {
    "beit": Entry(IMAGE),
    "beit/own bias": Entry(dict(IMAGE, use_relative_position_bias=True)),
    "beit/shared bias": Entry(dict(IMAGE, use_shared_relative_position_bias=True)),
    "clip_vision_model": Entry(IMAGE, head=""),
    "deit": Entry(IMAGE, head=""),
    "dinov2": Entry(dict(DINO, mlp_ratio=2)),
    "dinov2/gated": Entry(dict(DINO, mlp_ratio=3, use_swiglu_ffn=True)),
    "dinov2_with_registers": Entry(dict(DINO, mlp_ratio=2, num_register_tokens=2)),
    "dinov2_with_registers/gated": Entry(dict(DINO, mlp_ratio=3, use_swiglu_ffn=True)),
    "dinov3_vit": Entry(dict(IMAGE, num_register_tokens=2), head=""),
    "dinov3_vit/gated": Entry(dict(IMAGE, use_gated_mlp=True), head=""),
    "siglip_vision_model": Entry(IMAGE, head=""),
    "swin": Entry(SWIN, reads="large images"),
    "videomae": Entry(dict(IMAGE, num_frames=4, tubelet_size=2), head="ForVideoClassification", reads="video"),
    "vit": Entry(IMAGE),
    "audio-spectrogram-transformer": Entry(SPECTROGRAM, reads="spectrogram"),
    "hubert": Entry(AUDIO),
    "hubert/pre-norm": Entry(PRE_NORM, reads="padded sound"),
    "wav2vec2": Entry(AUDIO),
    "wav2vec2/pre-norm": Entry(PRE_NORM, reads="padded sound"),
    "wav2vec2-bert": Entry(dict(SPEECH, position_embeddings_type="relative_key"), reads="features"),
    "wav2vec2-bert/relative": Entry(dict(SPEECH, position_embeddings_type="relative"), reads="features"),
    "wav2vec2-bert/rotary": Entry(dict(SPEECH, position_embeddings_type="rotary"), reads="features"),
    "wavlm": Entry(AUDIO),
    "wavlm/pre-norm": Entry(PRE_NORM, reads="padded sound"),
    "whisper": Entry(WHISPER, reads="mel"),
}
ZOO = TEXTS | OTHERS


def model_type_of(name):
    return name.partition("/")[0]


def head_of(name):
    entry = ZOO[name]
    return CLASSIFIERS[MODALITIES[model_type_of(name)]] if entry.head is None else entry.head


def config_of(name, **options):
    return AutoConfig.for_model(model_type_of(name), **{"num_labels": 3, **ZOO[name].options, **options})


def build(name, head=None, seed=0, **options):
    """A model in evaluation mode, in which no weight is 0 or 1, so that every one of them matters."""
    torch.manual_seed(seed)
    auto_class = getattr(modeling_auto, f"AutoModel{head_of(name) if head is None else head}")
    model = auto_class.from_config(config_of(name, **options))
    randomize(model)
    return model.eval()


def batch_of(name, rows=4, seed=0):
    """A batch of inputs; rows of text and of sound are of unlike lengths."""
    modality, reads = MODALITIES[model_type_of(name)], ZOO[name].reads
    draw = functools.partial(torch.randn, generator=torch.Generator().manual_seed(seed))
    if modality == "text":
        return text_batch(rows, seed, reads)
    inputs = {
        ("image", ""): {"pixel_values": (3, 16, 16)},
        ("image", "large images"): {"pixel_values": (3, 32, 32)},
        ("video", "video"): {"pixel_values": (4, 3, 16, 16)},
        ("audio", ""): {"input_values": (200,)},
        ("audio", "padded sound"): {"input_values": (200,)},
        ("audio", "features"): {"input_features": (20, 16)},
        ("audio", "mel"): {"input_features": (8, 40)},
        ("audio", "spectrogram"): {"input_values": (24, 8)},
    }
    batch = {key: draw(rows, *shape) for key, shape in inputs[modality, reads].items()}
    if reads in ("padded sound", "features"):
        length = next(iter(batch.values())).shape[1]
        batch["attention_mask"] = (torch.arange(length) < length - torch.arange(rows)[:, None] * length // 10).long()
    return batch


def text_batch(rows, seed, reads):
    batch = pad(ragged_samples(rows, seed))
    if reads == "32 tokens":
        width = batch["input_ids"].shape[1]
        fill = {"input_ids": PAD, "attention_mask": 0}
        batch = {key: torch.nn.functional.pad(ids, (0, 32 - width), value=fill[key]) for key, ids in batch.items()}
    draw = functools.partial(torch.randint, generator=torch.Generator().manual_seed(seed))
    shape = batch["input_ids"].shape
    if reads == "boxes":
        corner = draw(0, 10, (*shape, 2))
        batch["bbox"] = torch.cat([corner, corner + draw(1, 5, (*shape, 2))], dim=-1)
    if reads == "cells":
        batch["token_type_ids"] = draw(0, 2, (*shape, 7))
    return batch
