"""The task of a model: from its checkpoint, as given, or refused."""

from types import SimpleNamespace

import pytest
import torch
from tiny import HEADS, same_state, save_tiny, tiny_model
from transformers import (
    BertForNextSentencePrediction,
    BertGenerationConfig,
    BertLMHeadModel,
    CLIPTextConfig,
    DeiTConfig,
    DINOv3ViTConfig,
    MT5Config,
    Wav2Vec2Config,
)
from zoo import build

from optimum_kprune import KPruner
from optimum_kprune.algorithm.divergence import divergence
from optimum_kprune.encoder.conversion import pruned_class
from optimum_kprune.encoder.tasks import RANKING, from_logits, get_task, task_of_class


@pytest.mark.parametrize("head", sorted(HEADS))
def test_the_task_comes_from_the_checkpoint(head, tmp_path):
    tasks = {
        "question answering": "question-answering",
        "token classification": "token-classification",
        "masked language model": "fill-mask",
        "multiple choice": "multiple-choice",
        "base model": "feature-extraction",
    }
    save_tiny(tmp_path, tiny_model("distilbert", head))
    pruner = KPruner.from_pretrained(tmp_path)
    assert pruner.task.name == tasks.get(head, "text-classification")
    assert same_state(pruner.teacher, tiny_model("distilbert", head))


def test_a_wrong_task_for_the_head_is_refused(tmp_path):
    save_tiny(tmp_path)
    for refused in (
        lambda: KPruner(tiny_model(), task="question-answering"),
        lambda: KPruner.from_pretrained(tiny_model(), task="question-answering"),
        lambda: KPruner.from_pretrained(tmp_path, task="question-answering"),
    ):
        with pytest.raises(ValueError, match=r"BertForSequenceClassification.*'text-classification'.*Got"):
            refused()
    with pytest.raises(ValueError, match=r"text-classification, question-answering.*Got 'sentiment'"):
        KPruner.from_pretrained(tmp_path, task="sentiment")


@pytest.mark.parametrize(
    ("model_class", "said"),
    [(BertForNextSentencePrediction, "ForSequenceClassification"), (BertLMHeadModel, "generates text")],
)
def test_a_head_without_a_task_is_refused(model_class, said):
    with pytest.raises(ValueError, match=rf"{model_class.__name__}.*{said}"):
        KPruner(model_class(tiny_model().config))


@pytest.mark.parametrize(
    ("class_name", "config_class", "task"),
    [
        ("BertGenerationEncoder", BertGenerationConfig, "feature-extraction"),
        ("CLIPTextModel", CLIPTextConfig, "feature-extraction"),
        ("DINOv3ViTModel", DINOv3ViTConfig, "image-feature-extraction"),
        ("MT5EncoderModel", MT5Config, "feature-extraction"),
        ("Wav2Vec2Model", Wav2Vec2Config, "feature-extraction"),
        ("Wav2Vec2ForSequenceClassification", Wav2Vec2Config, "audio-classification"),
        ("DeiTForImageClassificationWithTeacher", DeiTConfig, "image-classification"),
    ],
)
def test_a_class_is_known_by_the_auto_class_that_loads_it(class_name, config_class, task):
    assert task_of_class(class_name, config_class).name == task
    assert task_of_class(f"KPrune{class_name}", pruned_class(config_class)).name == task


def test_a_name_of_a_task_is_that_of_what_the_model_reads():
    assert get_task("feature-extraction", "pixel_values").name == "image-feature-extraction"
    with pytest.raises(ValueError, match=r"one of image-classification, .* reads `pixel_values`\. Got 'fill-mask'"):
        get_task("fill-mask", "pixel_values")


def test_a_head_that_predicts_for_words_alone_is_weighted_by_their_mask():
    """The first positions are those of the words; more predictions than positions belong to nothing that is known."""
    mask = torch.tensor([[1, 1, 0, 1, 1]]).bool()
    plain = SimpleNamespace(problem_type=None)
    assert from_logits(torch.randn(1, 3, 2), plain, mask).weights.tolist() == [[0.5, 0.5, 0.0]]
    with pytest.raises(ValueError, match=r"Got 6 predictions, and hidden states of 5 positions"):
        from_logits(torch.randn(1, 6, 2), plain, mask)


def test_a_decoder_that_needs_inputs_of_its_own_is_refused():
    with pytest.raises(ValueError, match=r"A T5Model has a decoder.*T5EncoderModel, with `AutoModelForTextEncoding`"):
        KPruner(build("t5", head=""))


def test_the_tokens_of_every_sample_count_as_one():
    mask = torch.tensor([[1, 1, 1, 1], [1, 0, 0, 0]]).bool()
    weights = from_logits(torch.randn(2, 4, 3), SimpleNamespace(problem_type=None), mask).weights
    torch.testing.assert_close(weights, torch.tensor([[0.25, 0.25, 0.25, 0.25], [1.0, 0, 0, 0]]))


def ranking(*scores):
    """What a reranker predicts for the candidates of one query."""
    return RANKING.predict(SimpleNamespace(logits=torch.tensor(scores)[None, :, None]), None, torch.ones(1, 1).bool())


def test_the_ranking_of_one_candidate_is_the_sigmoid_of_its_score():
    p, q = torch.sigmoid(torch.tensor([2.0, -0.5]))
    expected = p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()
    torch.testing.assert_close(divergence(ranking(2.0), ranking(-0.5), 1.0), expected[None])


def test_the_ranking_of_several_is_the_softmax_over_their_scores_and_zero():
    dense, pruned = torch.tensor([2.0, -1.0, 0.5, 0.0]), torch.tensor([1.0, -2.0, 0.0, 0.0])
    expected = (dense.softmax(0) * (dense.log_softmax(0) - pruned.log_softmax(0))).sum()
    torch.testing.assert_close(divergence(ranking(2.0, -1.0, 0.5), ranking(1.0, -2.0, 0.0), 1.0), expected[None])


def test_scores_that_all_shift_keep_their_order_and_are_told_apart_by_zero():
    assert divergence(ranking(2.0, 1.0), ranking(1.0, 0.0), 1.0).item() > 0.01
