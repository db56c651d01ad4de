"""Texts of few words, a tokenizer that splits them, and what batches of them hold: what tests of calibration share."""

import random

from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from optimum_kprune.calibration.prepare import prepare_batches

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = [f"w{index}" for index in range(60)]
PAD, CLS, SEP, MASK = 0, 2, 3, 4


def batches_of(*args, **kwargs):
    return prepare_batches(*args, **kwargs).batches


def word_id(word):
    return len(SPECIAL) + WORDS.index(word)


def make_tokenizer(**overrides):
    backend = Tokenizer(models.WordLevel({token: i for i, token in enumerate(SPECIAL + WORDS)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", CLS), ("[SEP]", SEP)]
    )
    names = {
        "unk_token": "[UNK]",
        "pad_token": "[PAD]",
        "cls_token": "[CLS]",
        "sep_token": "[SEP]",
        "mask_token": "[MASK]",
        "model_input_names": ["input_ids", "token_type_ids", "attention_mask"],
    }
    return PreTrainedTokenizerFast(tokenizer_object=backend, **{**names, **overrides})


def make_text(length, seed=0):
    return " ".join(random.Random(f"{seed} {length}").choices(WORDS, k=length))


def make_texts(count=40, seed=0):
    lengths = random.Random(seed).choices(range(1, 20), k=count)
    return [make_text(length, index) for index, length in enumerate(lengths)]


def real_tokens(batches):
    return sum(int(batch["attention_mask"].sum()) for batch in batches)


def real_samples(batches):
    """The real tokens of every sample, in order."""
    return [
        ids[mask.bool()].tolist()
        for batch in batches
        for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
    ]


def tokenized(texts, tokenizer, **columns):
    return Dataset.from_dict({**tokenizer(texts), **columns})
