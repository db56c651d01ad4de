"""Where the vocabulary of a model is noted, written and read."""

import json

import pytest
from own_models import Host
from tiny import tiny_model, tiny_tokenizer

from optimum_kprune import read_vocabulary
from optimum_kprune.vocabulary.own import MAP_NAME, OwnVocabulary, own_vocabulary, save_map, tokenizer_of


def test_a_model_knows_its_own_vocabulary_wherever_it_is():
    own, model = OwnVocabulary(tiny_tokenizer(), [0, 2], 9, None, True), tiny_model()
    assert own_vocabulary(model) is None and tokenizer_of(model, "given") == "given"
    host = Host(model)
    own.give_to(host.encoder)
    for holder in (host.encoder, host):
        assert own_vocabulary(holder) is own and tokenizer_of(holder, "given") is own.tokenizer


def with_own(model, kept, size_before):
    OwnVocabulary(tiny_tokenizer(), kept, size_before, None, True).belongs_to(model)
    return model


def test_the_map_is_written_and_read(tmp_path):
    save_map(tmp_path, with_own(tiny_model(), [0, 2, 5], 9), tiny_model().config)
    assert read_vocabulary(tmp_path) == [0, 2, 5]
    assert json.loads((tmp_path / MAP_NAME).read_text())["size_before"] == 9


def test_the_map_of_what_was_pruned_before_leads_to_the_model_that_came_first(tmp_path, caplog):
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    save_map(first, with_own(tiny_model(), [0, 2, 5, 7], 9), tiny_model().config)
    loaded = tiny_model(kprune={}, name_or_path=str(first)).config
    save_map(second, tiny_model(), loaded)
    assert (second / MAP_NAME).read_text() == (first / MAP_NAME).read_text()
    save_map(second, with_own(tiny_model(), [1, 3], 4), loaded)
    assert json.loads((second / MAP_NAME).read_text()) == {"size_before": 9, "kept": [2, 7]}
    # What lies in the folder was replaced meanwhile.
    (second / MAP_NAME).unlink()
    save_map(second, with_own(tiny_model(), [1, 3], 5), loaded)
    assert not list(second.iterdir()) and "holds another model by now" in caplog.text


def test_a_folder_without_a_map_says_so(tmp_path):
    with pytest.raises(OSError, match=MAP_NAME):
        read_vocabulary(tmp_path)
