"""Models with fewer tokens compute the same with those that stayed."""

import copy

import pytest
import torch
from tiny import PAD, SPECIAL, VOCABULARY, pad, ragged_samples, tiny_model
from torch import nn
from transformers import BertConfig, BertForSequenceClassification
from zoo import batch_of, build

from optimum_kprune import restore_vocabulary
from optimum_kprune.vocabulary.embeddings import special_ids, tables_of, with_fewer, with_tokens

KEPT = [*range(len(SPECIAL)), *range(10, len(VOCABULARY), 3)]
# Families whose embeddings are built in ways of their own: factorised, tied, with positions that begin after the pad.
FAMILIES = ["albert", "deberta-v2", "distilbert", "electra", "modernbert", "mpnet", "t5", "xlm-roberta"]


def numbered(ids, kept=KEPT):
    """The ids as the smaller model has them."""
    return torch.tensor([[kept.index(token) for token in row] for row in ids.tolist()])


def batches():
    """The same texts for both models."""
    samples = [[token if token in KEPT else KEPT[-1] for token in row] for row in ragged_samples(8)]
    batch = pad(samples)
    return batch, {**batch, "input_ids": numbered(batch["input_ids"])}


@torch.no_grad()
@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert", "electra"])
def test_a_model_that_predicts_tokens_predicts_those_that_stayed_as_before(family):
    model = tiny_model(family, "masked language model").eval()
    fewer = with_tokens(model, KEPT)
    before, after = batches()
    torch.testing.assert_close(fewer(**after).logits, model(**before).logits[..., KEPT])
    assert fewer.config.vocab_size == len(KEPT) and fewer.get_input_embeddings().num_embeddings == len(KEPT)
    assert fewer.get_output_embeddings().weight is fewer.get_input_embeddings().weight


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_models_of_every_build_compute_the_same(family):
    model = build(family).eval()
    batch = batch_of(family)
    used = sorted(set(batch["input_ids"].flatten().tolist()) | special_ids(model.config))
    fewer = with_tokens(model, used)
    after = {**batch, "input_ids": numbered(batch["input_ids"], used)}
    torch.testing.assert_close(fewer(**after)[0], model(**batch)[0])


def test_other_weights_are_shared_and_the_model_is_not_changed():
    model = tiny_model()
    before, config = copy.deepcopy(model.state_dict()), copy.deepcopy(model.config.to_dict())
    fewer = with_tokens(model, KEPT)
    assert model.config.to_dict() == config and model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    own, given = dict(fewer.named_parameters()), dict(model.named_parameters())
    for name, values in before.items():
        assert torch.equal(model.state_dict()[name], values)
        if name != tables_of(model, KEPT)[0]:
            assert own[name].data_ptr() == given[name].data_ptr()


def test_tied_weights_without_a_tie_are_cut_too():
    model = tiny_model(head="masked language model", tie_word_embeddings=False).eval()
    names = tables_of(model, KEPT)
    assert any("decoder.weight" in name for name in names) and any("bias" in name for name in names)
    before, after = batches()
    with torch.no_grad():
        torch.testing.assert_close(with_tokens(model, KEPT)(**after).logits, model(**before).logits[..., KEPT])


def test_special_tokens_get_their_new_numbers():
    config = BertConfig(vocab_size=100, pad_token_id=90, bos_token_id=7, eos_token_id=[8, 90], sep_token_id=None)
    fewer = with_fewer(config, [7, 8, 90])
    assert (fewer.vocab_size, fewer.pad_token_id, fewer.bos_token_id, fewer.eos_token_id) == (3, 2, 0, [1, 2])
    assert fewer.sep_token_id is None and config.pad_token_id == 90
    assert special_ids(config) == {7, 8, 90}


def test_padding_is_padding_under_its_new_number():
    kept = [token for token in KEPT if token not in (0, 2)]
    model = tiny_model(bos_token_id=None, eos_token_id=None)
    assert with_tokens(model, kept).get_input_embeddings().padding_idx == kept.index(PAD) == 0


class Odd(BertForSequenceClassification):
    def __init__(self, config):
        super().__init__(config)
        self.other = nn.Linear(config.vocab_size, 2 * config.vocab_size)


def test_a_model_in_which_more_depends_on_the_number_of_tokens_is_refused():
    model = Odd(BertConfig(**tiny_model().config.to_dict()))
    with pytest.raises(ValueError, match=r"row for every token.*Got other\.weight, other\.bias"):
        tables_of(model, KEPT)


def test_a_model_that_is_cut_has_all_tokens_again():
    model = tiny_model("roberta").eval()
    restored = restore_vocabulary(with_tokens(model, KEPT), model, KEPT)
    before, _ = batches()
    with torch.no_grad():
        assert torch.equal(restored(**before).logits, model(**before).logits)
    assert restored.config.to_dict() == {**model.config.to_dict(), "dtype": "float32"}


def test_what_was_learned_with_fewer_tokens_is_restored():
    model = tiny_model()
    fewer = with_tokens(model, KEPT)
    with torch.no_grad():
        fewer.get_input_embeddings().weight.add_(1)
        expected = model.get_input_embeddings().weight.clone()
        expected[KEPT] += 1
    assert torch.equal(restore_vocabulary(fewer, model, KEPT).get_input_embeddings().weight, expected)


def test_restoring_takes_the_map_of_the_model():
    model = tiny_model()
    fewer = with_tokens(model, KEPT)
    with pytest.raises(ValueError, match=r"`kept` must have the ids in `dense`.* Got 3 ids up to 2"):
        restore_vocabulary(fewer, model, [0, 1, 2])
