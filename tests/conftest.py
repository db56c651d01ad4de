"""Settings of the whole suite: no network, and one thread, with which tiny models are fastest."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import pytest
import torch
from tiny_texts import make_tokenizer

from optimum_kprune.calibration import InputSpec

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tokenizer():
    return make_tokenizer()


@pytest.fixture
def spec(tokenizer):
    return InputSpec("text-classification", tokenizer)
