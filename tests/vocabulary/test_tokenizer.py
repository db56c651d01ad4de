"""Tokenizers with fewer tokens read as before what stayed, and nothing becomes unknown."""

import pytest
from tiny import tiny_tokenizer
from transformers import AutoTokenizer
from vocabularies import texts, tokenizer, trimmed

from optimum_kprune.vocabulary.tokenizer import require_library, require_rewritable


def test_the_tokens_that_stay_are_numbered_in_their_order(both):
    own, fewer, kept = both
    assert fewer.convert_ids_to_tokens(range(len(kept))) == own.convert_ids_to_tokens(kept)
    assert len(fewer) == len(kept) < len(own)


def test_texts_of_tokens_that_stayed_are_read_as_before(both):
    own, fewer, kept = both
    stayed = [text for text in texts(2000, seed=2) if set(own(text)["input_ids"]) <= set(kept)]
    assert len(stayed) >= 3
    for text in stayed:
        assert [kept[token] for token in fewer(text)["input_ids"]] == own(text)["input_ids"]


def test_no_text_has_unknown_tokens_that_had_none(both):
    own, fewer, _ = both
    for text in texts(200, seed=3):
        assert own.unk_token_id not in own(text)["input_ids"]
        assert fewer.unk_token_id not in fewer(text)["input_ids"]
        assert fewer.decode(fewer(text)["input_ids"], skip_special_tokens=True) == own.decode(
            own(text)["input_ids"], skip_special_tokens=True
        )


def test_unknown_characters_stay_unknown(both):
    own, fewer, _ = both
    if own.unk_token_id in own("ж")["input_ids"]:
        assert fewer.unk_token_id in fewer("ж")["input_ids"]


def test_special_tokens_work(both):
    own, fewer, kept = both
    assert fewer.special_tokens_map == own.special_tokens_map
    pair = [kept[token] for token in fewer(".", ". .", padding="max_length", max_length=20)["input_ids"]]
    assert pair == own(".", ". .", padding="max_length", max_length=20)["input_ids"]
    text = f". {own.mask_token} ."
    assert [kept[token] for token in fewer(text)["input_ids"]] == own(text)["input_ids"]


def test_it_is_saved_and_loaded(both, tmp_path):
    _, fewer, _ = both
    fewer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert type(loaded) is type(fewer) and loaded.get_vocab() == fewer.get_vocab()
    assert loaded(texts(20, seed=4)) == fewer(texts(20, seed=4))


def test_added_tokens_and_chat_templates_stay():
    own = tokenizer("WordPiece")
    own.add_tokens(["qux"])
    own.add_special_tokens({"additional_special_tokens": ["<doc>"]})
    own.chat_template = "{{ messages }}"
    fewer, kept = trimmed(own)
    assert fewer.chat_template == own.chat_template
    for text in (". qux .", "<doc>."):
        assert [kept[token] for token in fewer(text)["input_ids"]] == own(text)["input_ids"]


def test_sides_that_were_set_in_memory_stay(tmp_path):
    own = tokenizer("WordPiece")
    own.padding_side = own.truncation_side = "left"
    fewer, _ = trimmed(own)
    fewer.save_pretrained(tmp_path)
    for each in (fewer, AutoTokenizer.from_pretrained(tmp_path)):
        assert (each.padding_side, each.truncation_side) == ("left", "left")


def test_a_tokenizer_that_cannot_be_rewritten_is_refused():
    for own, reason in ((None, "No tokenizer"), (tiny_tokenizer(), "of the kind WordLevel")):
        with pytest.raises(ValueError, match=f"must be a fast tokenizer.*{reason}"):
            require_rewritable(own)

    class Own(type(tokenizer("WordPiece"))):
        pass

    with pytest.raises(ValueError, match="A Own, whose code transformers does not have"):
        require_rewritable(Own(vocab=tokenizer("WordPiece").get_vocab()))


def test_a_missing_library_is_told(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"Install 'optimum-kprune\[vocabulary\]'"):
        require_library()
