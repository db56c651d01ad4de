"""Settings of the whole suite: no network, one thread, with which tiny models are fastest, and the same examples."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import hypothesis
import pytest
import torch
from tiny_texts import make_tokenizer

from optimum_kprune.calibration.prepare import InputSpec

torch.set_num_threads(1)
hypothesis.settings.register_profile("same", derandomize=True, deadline=None)
hypothesis.settings.load_profile("same")


@pytest.fixture(scope="session")
def tokenizer():
    return make_tokenizer()


@pytest.fixture
def spec(tokenizer):
    return InputSpec("text-classification", tokenizer)
