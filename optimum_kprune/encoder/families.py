"""The families of encoders that can be pruned: model types with their adapters, and checkpoints that people bring."""

from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

from .adapters import EncoderAdapter
from .layouts import (
    ALBERT,
    BART,
    BEIT,
    BEIT_OWN_BIAS,
    BERT,
    BERT_FFN,
    CLIP,
    DEBERTA,
    DEBERTA_V2,
    DEBERTA_V3,
    DINOV2,
    DINOV2_GATED,
    DINOV3,
    DINOV3_GATED,
    DISTILBERT,
    ESM,
    GEMMA3,
    GTE,
    JINA_V3,
    LAYOUTLMV3,
    LLAMA,
    LUKE,
    MEGATRON_BERT,
    MODERNBERT,
    MPNET,
    NYSTROMFORMER,
    SWIN,
    T5,
    T5_GATED,
    UMT5,
    UMT5_GATED,
    VIDEOMAE,
    VIT,
    WAV2VEC2,
    WAV2VEC2_BERT,
    WAV2VEC2_BERT_ROTARY,
    WAV2VEC2_PRE_NORM,
    WAVLM,
    WAVLM_PRE_NORM,
    WHISPER,
    XLM_ROBERTA_XL,
)


@dataclass(frozen=True)
class Family:
    """A model type of transformers whose models can be pruned.

    Attributes:
        model_type: as in `config.model_type`.
        modality: what its models read.
        adapters: where the sublayers are: one adapter, or one for each way in which such models are built.
        checkpoints: names on the Hub of models of this type that are often used.
        note: what is left as it is, or what a model must have; "" if nothing.
    """

    model_type: str
    modality: Literal["text", "image", "video", "audio"]
    adapters: tuple[EncoderAdapter, ...]
    checkpoints: tuple[str, ...]
    note: str = ""


def families() -> list[Family]:
    """Returns the families that come with the library, in a stable order: text, images and videos, audio."""
    return [*_TEXT, *_DECODERS, *_IMAGES, *_AUDIO]


_ENCODER_ONLY = "The encoder; the decoder stays as it is."
_NO_GENERATION = "As an encoder, for embeddings or classification; a prune cannot keep what generates text."


def _family(
    modality: Literal["text", "image", "video", "audio"],
    model_type: str,
    checkpoints: str,
    *adapters: EncoderAdapter,
    note: str = "",
) -> Family:
    """Returns a family, given the names of its checkpoints separated by spaces."""
    return Family(model_type, modality, adapters, tuple(checkpoints.split()), note)


_text, _image, _audio = (partial(_family, modality) for modality in ("text", "image", "audio"))
_TEXT = [
    _text("albert", "albert/albert-base-v2", ALBERT, note="Every pass gets weights of its own: the file can grow."),
    _text("bart", "facebook/bart-base facebook/bart-large-mnli", BART, note=_ENCODER_ONLY),
    _text(
        "bert",
        "google-bert/bert-base-uncased sentence-transformers/all-MiniLM-L6-v2 BAAI/bge-base-en-v1.5 "
        "intfloat/e5-base-v2 thenlper/gte-base",
        BERT,
    ),
    _text("bert-generation", "google/bert_for_seq_generation_L-24_bbc_encoder", BERT),
    _text(
        "big_bird",
        "google/bigbird-roberta-base",
        replace(BERT, when={"attention_type": "original_full"}),
        note="Loaded with `attention_type='original_full'`.",
    ),
    _text("camembert", "almanach/camembert-base", BERT),
    _text(
        "canine",
        "google/canine-s google/canine-c",
        BERT,
        note="The deep stack; the two that read and write characters stay.",
    ),
    _text("clip_text_model", "openai/clip-vit-base-patch32", CLIP),
    _text("convbert", "YituTech/conv-bert-base", BERT_FFN, note="Heads stay: convolutions tie them to one another."),
    _text("deberta", "microsoft/deberta-base", DEBERTA),
    _text(
        "deberta-v2",
        "microsoft/deberta-v3-base microsoft/mdeberta-v3-base microsoft/deberta-v2-xlarge",
        DEBERTA_V2,
        DEBERTA_V3,
    ),
    _text(
        "distilbert",
        "distilbert/distilbert-base-uncased distilbert/distilbert-base-uncased-finetuned-sst-2-english",
        DISTILBERT,
    ),
    _text("electra", "google/electra-base-discriminator", BERT),
    _text("ernie", "nghuyong/ernie-3.0-base-zh", BERT),
    _text("esm", "facebook/esm2_t12_35M_UR50D", ESM),
    _text("eurobert", "EuroBERT/EuroBERT-210m", LLAMA),
    _text("fnet", "google/fnet-base", BERT_FFN, note="It has no heads."),
    _text("gte", "alibaba-nlp-community/gte-multilingual-base", GTE),
    _text("jina_embeddings_v3", "jinaai/jina-embeddings-v3-hf", JINA_V3),
    _text("layoutlm", "microsoft/layoutlm-base-uncased", BERT),
    _text("layoutlmv3", "microsoft/layoutlmv3-base", LAYOUTLMV3),
    _text(
        "longformer",
        "allenai/longformer-base-4096",
        BERT_FFN,
        note="Heads stay: global attention has its own projections.",
    ),
    _text("luke", "studio-ousia/luke-base", LUKE, note="On text without entities."),
    _text("megatron-bert", "nvidia/megatron-bert-uncased-345m", MEGATRON_BERT),
    _text(
        "modernbert",
        "answerdotai/ModernBERT-base Alibaba-NLP/gte-modernbert-base nomic-ai/modernbert-embed-base",
        MODERNBERT,
    ),
    _text("mpnet", "sentence-transformers/all-mpnet-base-v2 microsoft/mpnet-base", MPNET),
    _text("mra", "uw-madison/mra-base-512-4", BERT_FFN, note="Heads stay: without a CUDA kernel they give nothing."),
    _text("mt5", "google/mt5-base", T5, T5_GATED, note=_ENCODER_ONLY),
    _text("nomic_bert", "nomic-ai/nomic-embed-text-v1.5", GTE),
    _text("nystromformer", "uw-madison/nystromformer-512", NYSTROMFORMER),
    _text("rembert", "google/rembert", BERT),
    _text(
        "roberta",
        "FacebookAI/roberta-base sentence-transformers/all-roberta-large-v1 "
        "cardiffnlp/twitter-roberta-base-sentiment-latest",
        BERT,
    ),
    _text("roc_bert", "weiweishi/roc-bert-base-zh", BERT),
    _text("roformer", "junnyu/roformer_chinese_base", BERT),
    _text(
        "t5",
        "google-t5/t5-base google/flan-t5-base sentence-transformers/sentence-t5-base",
        T5,
        T5_GATED,
        note=_ENCODER_ONLY,
    ),
    _text("tapas", "google/tapas-base", BERT),
    _text("umt5", "google/umt5-base", UMT5, UMT5_GATED, note=_ENCODER_ONLY),
    _text("xlm-roberta", "FacebookAI/xlm-roberta-base intfloat/multilingual-e5-base BAAI/bge-m3", BERT),
    _text("xlm-roberta-xl", "facebook/xlm-roberta-xl", XLM_ROBERTA_XL),
]
_DECODERS = [
    _text("gemma3_text", "google/embeddinggemma-300m", GEMMA3, note=_NO_GENERATION),
    _text("llama", "meta-llama/Llama-3.2-1B", LLAMA, note=_NO_GENERATION),
    _text("mistral", "intfloat/e5-mistral-7b-instruct", LLAMA, note=_NO_GENERATION),
    _text("qwen2", "Alibaba-NLP/gte-Qwen2-1.5B-instruct", LLAMA, note=_NO_GENERATION),
    _text("qwen3", "Qwen/Qwen3-Embedding-0.6B", LLAMA, note=_NO_GENERATION),
]
_IMAGES = [
    _image("beit", "microsoft/beit-base-patch16-224", BEIT, BEIT_OWN_BIAS),
    _image("clip_vision_model", "openai/clip-vit-base-patch32", CLIP),
    _image("deit", "facebook/deit-base-distilled-patch16-224", VIT),
    _image("dinov2", "facebook/dinov2-base facebook/dinov2-giant", DINOV2, DINOV2_GATED),
    _image("dinov2_with_registers", "facebook/dinov2-with-registers-base", DINOV2, DINOV2_GATED),
    _image("dinov3_vit", "facebook/dinov3-vits16-pretrain-lvd1689m", DINOV3, DINOV3_GATED),
    _image("siglip_vision_model", "google/siglip-base-patch16-224", CLIP, note="The head that pools stays."),
    _image("swin", "microsoft/swin-tiny-patch4-window7-224", SWIN, note="Heads stay: windows reorder the tokens."),
    _family("video", "videomae", "MCG-NJU/videomae-base", VIDEOMAE),
    _image("vit", "google/vit-base-patch16-224 facebook/deit-base-patch16-224", VIT),
]
_AUDIO = [
    _audio("audio-spectrogram-transformer", "MIT/ast-finetuned-audioset-10-10-0.4593", VIT),
    _audio("hubert", "facebook/hubert-base-ls960 facebook/hubert-large-ls960-ft", WAV2VEC2, WAV2VEC2_PRE_NORM),
    _audio("wav2vec2", "facebook/wav2vec2-base facebook/wav2vec2-large-960h-lv60-self", WAV2VEC2, WAV2VEC2_PRE_NORM),
    _audio("wav2vec2-bert", "facebook/w2v-bert-2.0", WAV2VEC2_BERT, WAV2VEC2_BERT_ROTARY),
    _audio(
        "wavlm",
        "microsoft/wavlm-base-plus microsoft/wavlm-large",
        WAVLM,
        WAVLM_PRE_NORM,
        note="Heads stay: the blocks hand on a bias of all.",
    ),
    _audio("whisper", "openai/whisper-base", WHISPER, note=_ENCODER_ONLY),
]
