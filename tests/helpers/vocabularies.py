"""Small tokenizers of every kind that can be trimmed, of text in several scripts, and tiny models that read them."""

import json
import random
from functools import cache

import numpy as np
import torch
import transformers
from tiny import HIDDEN, LAYERS, NEURONS, randomize
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoConfig, BertTokenizer, RobertaTokenizer, XLMRobertaTokenizer
from transformers.models.auto import modeling_auto

from optimum_kprune.vocabulary.choice import choose_tokens
from optimum_kprune.vocabulary.pieces import Pieces
from optimum_kprune.vocabulary.tokenizer import rewritten

SYLLABLES = ["ba", "ke", "li", "no", "su", "тра", "ви", "по", "κα", "λο", "山川", "मे", "ing", "ed", "é"]
SPECIAL = {"[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "<s>", "<pad>", "</s>", "<unk>"}
# By kind, the model type that reads such tokens.
FAMILIES = {"WordPiece": "bert", "BPE": "roberta", "Unigram": "xlm-roberta"}


def texts(count=400, seed=0):
    """Sentences of words that differ in how frequent they are."""
    generator = random.Random(seed)
    words = ["".join(random.Random(number).choices(SYLLABLES, k=1 + number % 4)) for number in range(150)]
    shares = [1 / (number + 2) for number in range(len(words))]
    return [" ".join(generator.choices(words, shares, k=generator.randint(3, 12))) + "." for _ in range(count)]


@cache
def _trained(kind):
    if kind == "WordPiece":
        backend = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        backend.normalizer, backend.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
        special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
        trainer = trainers.WordPieceTrainer(vocab_size=260, special_tokens=special, show_progress=False)
    elif kind == "BPE":
        backend = Tokenizer(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        special = ["<s>", "<pad>", "</s>", "<unk>"]
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(
            vocab_size=480, special_tokens=special, initial_alphabet=alphabet, show_progress=False
        )
    else:
        backend = Tokenizer(models.Unigram())
        backend.pre_tokenizer, backend.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
        special = ["<s>", "<pad>", "</s>", "<unk>"]
        trainer = trainers.UnigramTrainer(
            vocab_size=260, special_tokens=special, unk_token="<unk>", show_progress=False
        )
    backend.train_from_iterator(texts(), trainer)
    return backend


def tokenizer(kind):
    """A tokenizer of the class that checkpoints of its kind have."""
    model = json.loads(_trained(kind).to_str())["model"]
    if kind == "WordPiece":
        return BertTokenizer(vocab=model["vocab"], model_max_length=40)
    if kind == "BPE":
        merges = [tuple(merge) for merge in model["merges"]]
        return RobertaTokenizer(vocab=model["vocab"], merges=merges, model_max_length=40)
    return XLMRobertaTokenizer(vocab=[tuple(entry) for entry in model["vocab"]], model_max_length=40)


# By the class of other tokenizers: the kind, and the special tokens, in the order of their ids.
CLASSES = {
    "AlbertTokenizer": ("Unigram", ["<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]"]),
    "CamembertTokenizer": ("Unigram", ["<s>NOTUSED", "<pad>", "</s>NOTUSED", "<unk>"]),
    "DebertaTokenizer": ("BPE", ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]"]),
    "DebertaV2Tokenizer": ("Unigram", ["[PAD]", "[CLS]", "[SEP]", "[UNK]"]),
    "MPNetTokenizer": ("WordPiece", ["<s>", "<pad>", "</s>", "<unk>", "[UNK]"]),
    "T5Tokenizer": ("Unigram", ["<pad>", "</s>", "<unk>"]),
    "XLNetTokenizer": ("Unigram", ["<unk>", "<s>", "</s>", "<cls>", "<sep>", "<pad>", "<mask>", "<eod>", "<eop>"]),
}


def tokenizer_of_class(name):
    """A tokenizer of another class, with the same pieces."""
    kind, special = CLASSES[name]
    model = json.loads(_trained(kind).to_str())["model"]
    if kind == "Unigram":
        pieces = [tuple(entry) for entry in model["vocab"] if entry[0] not in SPECIAL]
        return getattr(transformers, name)(vocab=[*((token, 0.0) for token in special), *pieces])
    pieces = [token for token in model["vocab"] if token not in SPECIAL]
    vocabulary = {token: index for index, token in enumerate([*special, *pieces])}
    merges = {"merges": [tuple(merge) for merge in model["merges"]]} if kind == "BPE" else {}
    return getattr(transformers, name)(vocab=vocabulary, **merges)


def trimmed(own, extra=20):
    """The tokenizer with the basic tokens and the most frequent ones of some text; and the ids of those."""
    pieces = Pieces(own)
    counts = np.bincount(np.concatenate(own(texts(50))["input_ids"]), minlength=len(own))
    kept = choose_tokens(counts, pieces.basic(), pieces.parts, len(pieces.basic()) + extra)
    return rewritten(own, kept), kept


def model(kind, head="ForSequenceClassification", **options):
    """A tiny model with large random weights that reads the tokens of such a tokenizer."""
    own = tokenizer(kind)
    ids = {f"{name}_token_id": getattr(own, f"{name}_token_id") for name in ("pad", "bos", "eos")}
    sizes = dict(hidden_size=HIDDEN, num_hidden_layers=LAYERS, num_attention_heads=4, intermediate_size=NEURONS)
    sizes |= dict(vocab_size=len(own), max_position_embeddings=48)
    config = AutoConfig.for_model(FAMILIES[kind], **{**sizes, **ids, **options})
    torch.manual_seed(0)
    made = getattr(modeling_auto, f"AutoModel{head}").from_config(config)
    randomize(made)
    return made.eval()
