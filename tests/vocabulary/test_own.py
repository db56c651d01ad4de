"""Where the vocabulary of a model is noted, written and read."""

import json

import pytest
from own_models import Host
from tiny import tiny_model, tiny_tokenizer

from optimum_kprune import read_vocabulary
from optimum_kprune.vocabulary.own import MAP_NAME, OwnVocabulary, own_vocabulary, tokenizer_of


def test_a_model_knows_its_own_vocabulary_wherever_it_is():
    own, model = OwnVocabulary(tiny_tokenizer(), [0, 2], 9, None, True), tiny_model()
    assert own_vocabulary(model) is None and tokenizer_of(model, "given") == "given"
    host = Host(model)
    own.give_to(host.encoder)
    for holder in (host.encoder, host):
        assert own_vocabulary(holder) is own and tokenizer_of(holder, "given") is own.tokenizer


def test_the_map_is_written_and_read(tmp_path):
    OwnVocabulary(tiny_tokenizer(), [0, 2, 5], 9, None, True).save(tmp_path)
    assert read_vocabulary(tmp_path) == [0, 2, 5]
    assert json.loads((tmp_path / MAP_NAME).read_text())["size_before"] == 9


def test_a_folder_without_a_map_says_so(tmp_path):
    with pytest.raises(OSError, match=MAP_NAME):
        read_vocabulary(tmp_path)
