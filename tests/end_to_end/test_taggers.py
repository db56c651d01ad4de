"""Pruned taggers in the pipeline of transformers: entities of words and their places in the text."""

from itertools import groupby

import pytest
import torch
from tiny import tiny_model
from transformers import BertTokenizer, pipeline

from optimum_kprune import KPruneConfig, KPruner, served_pipeline
from optimum_kprune.evaluation.entities import entities_in

pytestmark = pytest.mark.slow

TEXT = "ada lovelace met charles, who came from turin (in 1840), and an older friend."
TAGS = {0: "O", 1: "B-PER", 2: "I-PER", 3: "B-LOC", 4: "I-LOC"}


def tokenizer_of_letters():
    """A tokenizer for which every letter is a piece of its word."""
    letters = "0123456789abcdefghijklmnopqrstuvwxyz"
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *",.()", *letters, *(f"##{letter}" for letter in letters)]
    return BertTokenizer(vocab={token: index for index, token in enumerate(tokens)}, model_max_length=100)


@pytest.fixture(scope="module")
def tagger():
    """A pruned tagger."""
    tokenizer = tokenizer_of_letters()
    model = tiny_model(head="token classification", num_labels=5, id2label=TAGS, max_position_embeddings=100)
    with torch.no_grad():
        # A random head would give nearly all pieces the same tag.
        model.classifier.bias -= model.eval()(**tokenizer(TEXT, return_tensors="pt")).logits.mean(dim=(0, 1))
    pruner = KPruner(model, tokenizer)
    texts = [TEXT[start:] for start in range(0, len(TEXT) - 5, 3)]
    pruner.prune(KPruneConfig(compression_rate=0.5, num_tokens=None), texts)
    return pruner


@pytest.fixture(scope="module")
def folders(tagger, tmp_path_factory):
    """The tagger as a model that was saved, and as one that was exported."""
    saved, exported = tmp_path_factory.mktemp("saved"), tmp_path_factory.mktemp("exported")
    tagger.save_pretrained(saved)
    tagger.export(exported)
    return saved, exported


@torch.no_grad()
def expected_entities(model, tokenizer, strategy):
    """Kind, first and last place of every entity, from one forward pass of the model in memory."""
    encoding = tokenizer(TEXT, return_offsets_mapping=True, return_tensors="pt")
    offsets = encoding.pop("offset_mapping")[0].tolist()
    probabilities = model.eval()(**encoding).logits[0].softmax(dim=-1)
    word_of = encoding.word_ids(0)
    pieces = [place for place, word in enumerate(word_of) if word is not None]
    # Alone, every piece counts as a word.
    words = [list(group) for _, group in groupby(pieces, None if strategy == "simple" else word_of.__getitem__)]
    scores = [probabilities[word].mean(dim=0) if strategy == "average" else probabilities[word[0]] for word in words]
    entities = entities_in([TAGS[int(score.argmax())] for score in scores])
    return sorted(
        (offsets[words[first][0]][0], offsets[words[last - 1][-1]][1], kind) for kind, first, last in entities
    )


@pytest.mark.parametrize("strategy", ["simple", "first", "average"])
def test_pipelines_find_entities_at_their_places(tagger, folders, strategy):
    """On the model that was loaded, and on its graph."""
    saved, exported = folders
    expected = expected_entities(tagger.model, tagger.processing_class, strategy)
    assert len(expected) > 1
    task, options = "token-classification", {"aggregation_strategy": strategy, "device": "cpu"}
    for tag in (pipeline(task, str(saved), **options), served_pipeline(task, exported, **options)):
        assert [(found["start"], found["end"], found["entity_group"]) for found in tag(TEXT)] == expected
