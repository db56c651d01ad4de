"""Batches in fewer tokens are those that the smaller tokenizer makes of the texts."""

import pytest
import torch
import vocabularies
from transformers import BertTokenizer
from vocabularies import texts, tokenizer, trimmed

from optimum_kprune.vocabulary.pieces import Pieces
from optimum_kprune.vocabulary.retokenize import Retokenizer


def retokenizer(own, fewer, kept, limit=1000):
    return Retokenizer(Pieces(own), Pieces(fewer), kept, fewer.pad_token_id, limit)


def test_rows_are_written_as_the_smaller_tokenizer_reads_them(both):
    own, fewer, _ = both
    write = retokenizer(*both)
    for text in texts(200, seed=5):
        assert write.row(own(text)["input_ids"]).ids == fewer(text)["input_ids"]
        pair = own(text, "ba ke. 山川")["input_ids"]
        assert write.row(pair).ids == fewer(text, "ba ke. 山川")["input_ids"]


@pytest.mark.parametrize("name", vocabularies.CLASSES)
def test_tokenizers_of_other_classes_are_trimmed_saved_and_loaded(name, tmp_path):
    own = vocabularies.tokenizer_of_class(name)
    fewer, kept = trimmed(own)
    write = retokenizer(own, fewer, kept)
    fewer.save_pretrained(tmp_path)
    loaded = type(own).from_pretrained(tmp_path)
    assert loaded.get_vocab() == fewer.get_vocab()
    for text in texts(50, seed=9):
        ids = fewer(text)["input_ids"]
        assert write.row(own(text)["input_ids"]).ids == ids == loaded(text)["input_ids"]
        assert fewer.unk_token_id not in ids


def test_a_token_comes_from_that_of_its_first_character(both):
    own, fewer, _ = both
    write = retokenizer(*both)
    for text in texts(50, seed=6):
        before, after = own(text, return_offsets_mapping=True), fewer(text, return_offsets_mapping=True)
        row = write.row(before["input_ids"])
        for (start, end), origin, token in zip(after["offset_mapping"], row.origins, row.ids, strict=True):
            if token in fewer.all_special_ids or start == end:
                continue
            first, last = before["offset_mapping"][origin]
            assert first <= start < last


def test_a_token_across_two_comes_from_the_first():
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "##b", "##c", "##d", "##bc", "##cd", "ab"]
    own, fewer = (BertTokenizer(vocab={name: at for at, name in enumerate(each)}) for each in (names, names[:-1]))
    ids = own("abcd", add_special_tokens=False)["input_ids"]
    row = retokenizer(own, fewer, range(10)).row(ids)
    assert own.convert_ids_to_tokens(ids) == ["ab", "##cd"]
    assert fewer.convert_ids_to_tokens(row.ids) == ["a", "##bc", "##d"] and row.origins == [0, 0, 1]


def test_words_that_stayed_are_not_touched(both):
    own, _, kept = both
    stayed = [row for row in own(texts(2000, seed=2))["input_ids"] if set(row) <= set(kept)]
    assert len(stayed) >= 3
    for ids in stayed:
        row = retokenizer(*both).row(ids)
        assert [kept[token] for token in row.ids] == ids and row.origins == list(range(len(ids)))


def test_batches_are_those_of_the_smaller_tokenizer(both):
    own, fewer, _ = both
    given = texts(8, seed=7)
    for side in ("right", "left"):
        own.padding_side = fewer.padding_side = side
        batch = dict(own(given, given, padding=True, return_tensors="pt"))
        made = retokenizer(*both).batch(batch)
        expected = fewer(given, given, padding=True, return_tensors="pt")
        assert list(made) == list(batch)
        for name, values in made.items():
            assert torch.equal(values, expected[name])
    own.padding_side = fewer.padding_side = "right"


def test_other_inputs_go_with_their_tokens_and_choices_stay_together():
    own = tokenizer("WordPiece")
    both = (own, *trimmed(own))
    ids = torch.tensor([own(text)["input_ids"] for text in ("ba ke noκαтраλο", "ba ke edliκα")])
    boxes = torch.arange(ids.numel() * 4).view(*ids.shape, 4)
    batch = {"input_ids": ids[None], "bbox": boxes[None], "of the sample": torch.ones(1, 3)}
    made = retokenizer(*both).batch(batch)
    write = retokenizer(*both)
    rows = [write.row(row.tolist()) for row in ids]
    assert made["input_ids"].shape[:2] == (1, 2) and torch.equal(made["of the sample"], torch.ones(1, 3))
    for row, new, box, old in zip(rows, made["input_ids"][0], made["bbox"][0], boxes, strict=True):
        assert new[: len(row.ids)].tolist() == row.ids
        assert torch.equal(box[: len(row.ids)], old[row.origins]) and not box[len(row.ids) :].any()


def test_positions_of_the_data_are_refused():
    own = tokenizer("WordPiece")
    ids = torch.tensor([own("ba ke")["input_ids"]])
    with pytest.raises(ValueError, match="must leave positions to the model"):
        retokenizer(own, *trimmed(own)).batch({"input_ids": ids, "position_ids": ids})


def test_rows_are_cut_to_the_limit_at_the_end_of_the_longest_text(both):
    own, fewer, kept = both
    long, short = " ".join(texts(3, seed=8)), "ba"
    whole = retokenizer(*both).row(own(short, long)["input_ids"])
    cut = retokenizer(own, fewer, kept, limit=len(whole.ids) - 5).row(own(short, long)["input_ids"])
    end = len(whole.ids) - 6
    assert cut.ids == whole.ids[:end] + whole.ids[-1:]
    assert cut.origins == whole.origins[:end] + whole.origins[-1:]


def test_a_word_that_was_cut_is_spelled():
    own = tokenizer("WordPiece")
    fewer, kept = trimmed(own)
    gone = next(token for token in range(len(own)) if token not in kept and own.decode(token).startswith("##"))
    row = retokenizer(own, fewer, kept).row([own.cls_token_id, gone, own.sep_token_id])
    name = own.convert_ids_to_tokens(gone).removeprefix("##")
    assert fewer.convert_ids_to_tokens(row.ids)[1:-1] == [f"##{character}" for character in name]
    assert row.origins == [0, *[1] * len(name), 2]
