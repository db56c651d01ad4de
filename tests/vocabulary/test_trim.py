"""Model, tokenizer and text with fewer tokens belong together, and what is told of them is true."""

from dataclasses import replace

import pytest
import torch
import vocabularies
from tiny import encoder_of, outputs_of, tiny_model, tiny_tokenizer
from vocabularies import FAMILIES

from optimum_kprune import KPruner
from optimum_kprune.calibration.prepare import prepare_batches
from optimum_kprune.calibration.spec import main_input
from optimum_kprune.encoder.tasks import task_of
from optimum_kprune.prune.heldout import heldout_quality
from optimum_kprune.vocabulary.trim import require_trimmable, trim


def trimmed(kind="WordPiece", wanted=80, model=None, heldout_share=0.2):
    """The dense model, its calibration data, and what trimming makes of them."""
    pruner = KPruner(model or vocabularies.model(kind), vocabularies.tokenizer(kind))
    spec, dense = pruner._input_spec(0), encoder_of(pruner.teacher)
    calibration = prepare_batches(vocabularies.texts(100), spec, heldout_share=heldout_share)
    return dense, calibration, trim(dense, pruner.task, spec, calibration, wanted)


@pytest.mark.parametrize(("kind", "wanted"), [("WordPiece", 80), ("BPE", 400), ("Unigram", 70)])
def test_texts_of_tokens_that_stayed_give_the_same_outputs(kind, wanted):
    dense, calibration, found = trimmed(kind, wanted)
    kept = torch.tensor(found.own.kept)
    compared = 0
    for before, after in zip(calibration.batches, found.calibration.batches, strict=True):
        for row in range(len(main_input(before))):
            real = before["attention_mask"][row].bool()
            if torch.isin(main_input(before)[row][real], kept).all():
                compared += 1
                old, new = ({"input_ids": main_input(each)[row : row + 1]} for each in (before, after))
                old["input_ids"] = old["input_ids"][:, real]
                new["input_ids"] = new["input_ids"][:, after["attention_mask"][row].bool()]
                for one, other in zip(outputs_of(dense.model, old), outputs_of(found.encoder.model, new), strict=True):
                    torch.testing.assert_close(one, other)
    assert compared


def test_what_is_told_is_what_the_tokenizers_say():
    dense, calibration, found = trimmed()
    own, fewer, result = vocabularies.tokenizer("WordPiece"), found.own.tokenizer, found.result
    held = [ids[ids != 0].tolist() for batch in calibration.heldout for ids in main_input(batch)]
    texts = [own.decode(ids, skip_special_tokens=True) for ids in held]
    assert (result.size_before, result.size, result.texts, result.is_heldout) == (len(own), 80, len(held), True)
    assert result.tokens_before == pytest.approx(sum(map(len, own(texts)["input_ids"])) / len(texts))
    assert result.tokens_after == pytest.approx(sum(map(len, fewer(texts)["input_ids"])) / len(texts))
    gone = [token not in found.own.kept for ids in held for token in ids]
    assert result.fell_back == pytest.approx(sum(gone) / len(gone))
    removed = (len(own) - 80) * dense.config.hidden_size
    assert result.parameters_removed == removed
    assert result.megabytes_removed == pytest.approx(removed * 4 / 1e6, abs=1e-4)
    assert "80 of 249 tokens" in str(result) and "held-out texts" in str(result)


def test_without_held_out_text_the_calibration_data_is_measured():
    _, calibration, found = trimmed(wanted=0.9, heldout_share=0)
    assert not found.result.is_heldout and found.calibration.expected is None
    assert found.result.texts == calibration.samples and 0 < found.result.fell_back <= 0.1


def test_what_is_expected_is_what_the_dense_model_predicts_from_its_own_tokens():
    dense, calibration, found = trimmed()
    outputs = [outputs_of(dense.model, batch)[0] for batch in calibration.heldout]
    expected = torch.cat([each.values for each in found.calibration.expected])
    torch.testing.assert_close(expected[:, 0], torch.cat(outputs))


@pytest.mark.parametrize("head", ["ForQuestionAnswering", "ForTokenClassification", "ForMaskedLM"])
def test_of_tokens_that_are_others_nothing_is_expected(head):
    model = vocabularies.model("WordPiece", head)
    dense = encoder_of(model)
    pruner = KPruner(model, vocabularies.tokenizer("WordPiece"))
    spec, texts = pruner._input_spec(0), vocabularies.texts(40)
    data = list(zip(texts, texts, strict=True)) if head == "ForQuestionAnswering" else texts
    calibration = prepare_batches(data, spec, heldout_share=0.3)
    found = trim(dense, task_of(model), spec, calibration, 80)
    assert found.calibration.heldout and found.calibration.expected is None


def test_a_model_to_which_the_numbers_of_tokens_mean_something_is_refused():
    """The positions of RoBERTa begin after the number of its padding."""
    model = vocabularies.model("BPE", pad_token_id=470, max_position_embeddings=520)
    with pytest.raises(ValueError, match="RobertaForSequenceClassification computes something else with them"):
        trimmed("BPE", 300, model)


@pytest.mark.parametrize("kind", FAMILIES)
def test_a_size_out_of_the_range_is_refused(kind):
    dense, own = encoder_of(vocabularies.model(kind)), vocabularies.tokenizer(kind)
    with pytest.raises(ValueError, match=r"must be at least \d+ and below") as caught:
        require_trimmable(dense, own, 10)
    least = int(str(caught.value).split("at least ")[1].split()[0])
    for size in (least - 1, len(own), 10**6):
        with pytest.raises(ValueError, match=f"Got {size:,}"):
            require_trimmable(dense, own, size)
    for wanted in (least, len(own) - 1, 0.5, 1.0):
        require_trimmable(dense, own, wanted)


def test_a_tokenizer_of_another_kind_is_refused():
    with pytest.raises(ValueError, match="of the kind WordLevel"):
        require_trimmable(encoder_of(tiny_model()), tiny_tokenizer(), 100)
    with pytest.raises(ValueError, match="No tokenizer was given"):
        require_trimmable(encoder_of(tiny_model()), None, 100)


def test_halved_batches_are_compared_with_the_same_predictions():
    _, _, found = trimmed()
    task = task_of(found.encoder.model)
    whole = heldout_quality(found.encoder, found.encoder, found.calibration, task)
    halved = heldout_quality(found.encoder, found.encoder, found.calibration.halved(), task)
    assert whole.divergence > 1e-4 and halved.divergence == pytest.approx(whole.divergence, rel=1e-4)
    own = replace(found.calibration, expected=None)
    assert heldout_quality(found.encoder, found.encoder, own, task).divergence == pytest.approx(0, abs=1e-9)
