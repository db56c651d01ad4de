"""What tokenizers say of their tokens: characters, words, and what is merged."""

import pytest
from vocabularies import FAMILIES, texts, tokenizer

from optimum_kprune.vocabulary.choice import with_parts
from optimum_kprune.vocabulary.pieces import Pieces


@pytest.mark.parametrize("kind", FAMILIES)
def test_every_token_can_be_written_in_basic_tokens(kind):
    pieces = Pieces(tokenizer(kind))
    basic = {pieces.names[token] for token in pieces.basic()}
    for token in pieces.names.keys() - pieces.special:
        assert set(pieces.characters(token)) <= basic
        assert "".join(name.removeprefix("##") for name in pieces.characters(token)) == pieces.text(token)


def test_a_token_with_a_character_of_no_token_stays():
    own = tokenizer("WordPiece")
    vocabulary = {token: index for index, token in enumerate([*own.get_vocab(), "##q7", "q"])}
    pieces = Pieces(type(own)(vocab=vocabulary))
    assert vocabulary["##q7"] in pieces.basic()


@pytest.mark.parametrize("kind", FAMILIES)
def test_words_begin_where_the_tokenizer_splits_them(kind):
    """In bytes, a few words more begin than spaces tell."""
    own = tokenizer(kind)
    pieces = Pieces(own)
    for text in texts(30, seed=1):
        encoded = own(text.replace(".", ""), add_special_tokens=False)
        ids, words = encoded["input_ids"], encoded.word_ids()
        found = [pieces.begins_word(token, before) for token, before in zip(ids, [None, *ids], strict=False)]
        split = [word != before for word, before in zip(words, [None, *words], strict=False)]
        assert found == split if kind != "BPE" else all(by for at, by in zip(found, split, strict=True) if at)


def test_tokens_are_made_of_the_two_that_are_merged_last():
    """As the tokenizer does it: its own parts, merged again, give the token, and every part can be made itself."""
    pieces = Pieces(tokenizer("BPE"))
    merged = [token for token in pieces.names if pieces.parts(token)]
    assert len(merged) > 150
    for token in merged:
        assert "".join(pieces.names[part] for part in pieces.parts(token)) == pieces.names[token]
        for part in with_parts([token], pieces.parts):
            assert pieces.tokenize(pieces.names[part]) == [part]


@pytest.mark.parametrize("kind", ["WordPiece", "Unigram"])
def test_nothing_is_merged_elsewhere(kind):
    pieces = Pieces(tokenizer(kind))
    assert not any(pieces.parts(token) for token in pieces.names)
