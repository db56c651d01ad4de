"""Heads of one's own: what of their outputs is compared, and what cannot be."""

from types import SimpleNamespace

import pytest
import torch
from own_models import BATCHES, CONFIG, Around, Host, TwoHeads, own_model, prune
from tiny import HEAD_COUNT, HIDDEN, LAYERS, randomize, tiny_model, tiny_tokenizer
from torch import nn
from transformers import (
    BertForNextSentencePrediction,
    BertForPreTraining,
    BertForQuestionAnswering,
    BertModel,
    ElectraForPreTraining,
)

from optimum_kprune import KPruner
from optimum_kprune.algorithm.divergence import Prediction, curvature_probe, divergence
from optimum_kprune.encoder.custom_heads import choose_task
from optimum_kprune.prune.predictions import Predictions


def predicted(outputs, mask=None, prediction=None, **config):
    mask = torch.ones(2, 3, dtype=torch.bool) if mask is None else mask
    config = SimpleNamespace(**{"problem_type": None} | config)
    with torch.no_grad():
        return choose_task(nn.Module(), None, prediction).predict(outputs, config, mask)


@pytest.mark.parametrize(
    ("shape", "problem", "family", "values"),
    [
        ((2, 5), None, "categorical", (2, 1, 5)),
        ((2, 1), None, "gaussian", (2, 1, 1)),
        ((2, 5), "regression", "gaussian", (2, 1, 5)),
        ((2, 5), "multi_label_classification", "categorical", (2, 5, 2)),
        ((2, 3, 5), None, "categorical", (2, 3, 5)),
        ((2, 3, 1), None, "gaussian", (2, 3, 1)),
        ((2, 3, 5), "multi_label_classification", "categorical", (2, 15, 2)),
    ],
)
def test_shapes_and_problem_types_tell_how_logits_are_compared(shape, problem, family, values):
    logits = torch.randn(shape)
    mask = torch.tensor([[True, True, True], [True, True, False]])
    prediction = predicted({"logits": logits}, mask, problem_type=problem)
    assert (prediction.family, tuple(prediction.values.shape)) == (family, values)
    per_label = shape[-1] if problem == "multi_label_classification" else 1
    torch.testing.assert_close(prediction.weights.sum(dim=1), torch.full((2,), float(per_label)))
    if len(shape) == 3:
        assert not prediction.weights[1, 2 * per_label :].any()


@pytest.mark.parametrize("family", ["categorical", "gaussian"])
def test_the_divergences_of_several_heads_add_up(family):
    """Of heads of texts and of tokens with different numbers of classes; as K_pred, and as its curvature."""
    mask = torch.tensor([[True, True, True], [True, True, False]])
    problem = "regression" if family == "gaussian" else None
    names = {"a_logits": (2, 5), "b_logits": (2, 3, 2), "logits": (2, 4)}
    teacher, student = [{name: torch.randn(shape) for name, shape in names.items()} for _ in range(2)]

    def alone(outputs, name):
        return predicted({name: outputs[name]}, mask, problem_type=problem)

    together, changed = (predicted(outputs, mask, problem_type=problem) for outputs in (teacher, student))
    apart = [divergence(alone(teacher, name), alone(student, name), 2.0) for name in names]
    torch.testing.assert_close(divergence(together, changed, 2.0), sum(apart))

    signs = torch.randint(2, together.values.shape) * 2.0 - 1
    signs[together.values == -1e9] = 0
    probe = curvature_probe(together, changed, 2.0, signs)
    position, apart = 0, []
    for name in names:
        one, other = alone(teacher, name), alone(student, name)
        places, classes = one.values.shape[1:]
        part = signs[:, position : position + places, :classes]
        apart.append(curvature_probe(one, other, 2.0, part))
        position += places
    torch.testing.assert_close(probe, sum(apart))


def test_start_and_end_are_those_of_question_answering():
    outputs = SimpleNamespace(start_logits=torch.randn(2, 3), end_logits=torch.randn(2, 3))
    mask = torch.tensor([[True, True, True], [True, True, False]])
    known = choose_task(BertForQuestionAnswering(tiny_model().config)).predict(outputs, None, mask)
    found = predicted(outputs, mask)
    assert torch.equal(found.values, known.values) and torch.equal(found.weights, known.weights)


def test_a_prediction_may_be_returned_as_it_is():
    own = Prediction(torch.randn(2, 1, 4), torch.ones(2, 1), "gaussian")
    assert predicted(None, prediction=lambda outputs: own) is own


@pytest.mark.slow
@pytest.mark.parametrize("heads", [[0, 1], [1, 0]])
def test_every_head_counts(heads):
    """A head that is left out of the prediction changes what is kept."""
    both = prune(own_model(TwoHeads)).result.kept
    names = ["intent_logits", "slot_logits"]
    listed = prune(own_model(TwoHeads), prediction=lambda outputs: {name: outputs[name] for name in names})
    assert listed.result.kept == both
    assert prune(own_model(TwoHeads), prediction=lambda outputs: outputs[names[heads[0]]]).result.kept != both


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (
            lambda o: (o.logits, None),
            r"must hold.*end with `logits`.*Got tuple of tensor of shape \(1, 3\), NoneType.*prediction=",
        ),
        (lambda o: {"scores": o.logits}, r"Got scores \(tensor of shape \(1, 3\)\) instead.*prediction="),
        (lambda o: {"logits": o.logits.argmax(-1)}, r"floating-point numbers of the shape.*Got torch\.int64"),
        (lambda o: {"logits": o.logits[:, None].expand(1, 2, 3)}, r"shape \(1, 2, 3\) for 1 rows of \d+ tokens"),
        (lambda o: {"logits": o.logits.detach()}, r"must be differentiable.*`torch\.no_grad\(\)`"),
        (lambda o: {"a_logits": o.logits, "b_logits": o.logits[:, :1]}, "compared in one way.*prediction="),
    ],
)
def test_outputs_that_cannot_be_compared_are_told(answer, message):
    pruner = KPruner(Around(tiny_model(), answer))
    with pytest.raises(ValueError, match=message):
        pruner.prune(CONFIG, BATCHES)
    assert pruner.result is None


def test_one_value_per_token_is_not_taken_for_classes():
    model = ElectraForPreTraining(tiny_model("electra").config)
    with pytest.raises(ValueError, match=r"one value per token.*logits\[\.\.\., None\]"):
        prune(model, prediction=lambda outputs: outputs.logits)
    assert prune(model, prediction=lambda outputs: outputs.logits[..., None]).result.flops_removed >= 0.5


def test_a_class_of_transformers_without_a_task_needs_a_prediction():
    config = tiny_model().config
    with pytest.raises(ValueError, match=r"BertForNextSentencePrediction.*prediction="):
        KPruner(BertForNextSentencePrediction(config))
    model = BertForPreTraining(config)
    randomize(model)
    pruner = prune(model, prediction=lambda outputs: [outputs.prediction_logits, outputs.seq_relationship_logits])
    assert type(pruner.model).__name__ == "KPruneBertForPreTraining"


def test_embeddings_are_those_of_the_last_hidden_state():
    """Of a class that is derived from a base model, or of any module if the task says so."""
    expected = prune(tiny_model(head="base model")).result.kept
    derived = type("Encoder", (BertModel,), {})(tiny_model(head="base model").config)
    derived.load_state_dict(tiny_model(head="base model").state_dict())
    assert prune(derived).result.kept == expected
    module = Around(tiny_model(head="base model"), lambda outputs: {"last_hidden_state": outputs[0]})
    assert prune(module, task="feature-extraction").result.kept == expected
    with pytest.raises(ValueError, match=r"`last_hidden_state`.*Got tensor of shape \(1, 3\).*prediction="):
        prune(Around(tiny_model()), task="feature-extraction")


def test_a_task_says_how_texts_are_read():
    assert KPruner(Host(tiny_model())).task.name == "feature-extraction"
    pruner = KPruner(Host(tiny_model()), tiny_tokenizer(), task="token-classification")
    assert pruner.task.name == "token-classification"
    pruner.prune(CONFIG, [["w1", "w2", "w3"], ["w4", "w5"]] * 20)
    with pytest.raises(ValueError, match="must be one of"):
        KPruner(Host(tiny_model()), task="sentiment")


class Mix(nn.Module):
    """A head on the mean of what all blocks give, their hidden states or their attention, and on the last states."""

    def __init__(self, kind):
        super().__init__()
        self.encoder = tiny_model(head="base model", attn_implementation="eager")
        self.kind = kind
        self.head = nn.Linear(HIDDEN if kind == "hidden_states" else HEAD_COUNT, 3)

    def forward(self, input_ids, attention_mask):
        outputs = self.encoder(input_ids, attention_mask=attention_mask, **{f"output_{self.kind}": True})
        mean = torch.stack(outputs[self.kind][-LAYERS:]).mean(dim=0)
        mixed = self.head(mean[:, 0] if self.kind == "hidden_states" else mean[:, :, 0, 0])
        return mixed + outputs.last_hidden_state[:, 0, :3]


def test_a_head_may_read_the_hidden_states_behind_every_block(monkeypatch):
    """Where a student is entered, there is nothing of the blocks below: its prediction must be that of a whole run."""
    seen = []

    def watched(predictions, step, student):
        prediction = original(predictions, step, student)
        seen.append((prediction.values[:, 0], student.encoder.model(**step.batch)))
        return prediction

    original = Predictions.of_student
    monkeypatch.setattr(Predictions, "of_student", watched)
    torch.manual_seed(0)
    prune(Mix("hidden_states"))
    assert len(seen) > len(BATCHES)
    for prediction, whole in seen:
        torch.testing.assert_close(prediction, whole)


def test_a_head_that_reads_the_attention_of_blocks_is_told():
    with pytest.raises(ValueError, match=r"cannot run with half of all units: .* head that reads the attention"):
        prune(Mix("attentions"))


def test_a_head_that_does_not_read_the_last_block_is_told():
    class Early(Host):
        def forward(self, input_ids, attention_mask):
            outputs = self.encoder(input_ids, attention_mask=attention_mask, output_hidden_states=True)
            return self.classifier(outputs.hidden_states[-2][:, 0])

    class NoGradient(Host):
        def forward(self, input_ids, attention_mask):
            with torch.no_grad():
                outputs = self.encoder(input_ids, attention_mask=attention_mask)
            return self.classifier(outputs.pooler_output)

    for head in (Early, NoGradient):
        with pytest.raises(ValueError, match="must be differentiable in the hidden states after the last block"):
            prune(head(tiny_model()))
