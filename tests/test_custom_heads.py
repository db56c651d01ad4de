"""Models with heads of one's own: what is compared, pruned, saved and loaded again, and what is refused in words."""

import copy
import json
import logging
import pickle
from collections import namedtuple
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny import (
    FAMILIES,
    HEAD_COUNT,
    HIDDEN,
    LAYERS,
    PAD,
    batches_of,
    outputs_of,
    pad,
    ragged_samples,
    randomize,
    same_state,
    save_tiny,
    tiny_model,
    tiny_tokenizer,
)
from torch import nn
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    BertConfig,
    BertForNextSentencePrediction,
    BertForPreTraining,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertLMHeadModel,
    BertModel,
    BertPreTrainedModel,
    ElectraForPreTraining,
    EncoderDecoderModel,
    GPT2Config,
    GPT2ForSequenceClassification,
    T5Config,
    T5ForConditionalGeneration,
    Trainer,
    TrainingArguments,
)
from transformers.modeling_outputs import SequenceClassifierOutput

import optimum_kprune
from optimum_kprune import KPruneCallback, KPruneConfig, KPruner, load_into, pruned_class
from optimum_kprune.algorithm.divergence import Prediction, curvature_probe, divergence
from optimum_kprune.encoder.custom_heads import choose_task
from optimum_kprune.modeling_kprune import KPruneBertForSequenceClassification, KPruneBertModel
from optimum_kprune.prune.hidden_states import Frontier

SAMPLES = ragged_samples(30)
BATCHES = batches_of(SAMPLES)
CONFIG = KPruneConfig(compression_rate=0.5, num_tokens=None)


class Derived(BertForSequenceClassification):
    """The classifier of transformers under another name."""


class OwnConfig(BertConfig):
    """A config of one's own of a type that transformers knows."""

    width: int = 16


class Deep(BertForSequenceClassification):
    """Another classifier, and a forward that takes no more than it needs."""

    config_class = OwnConfig

    def __init__(self, config):
        super().__init__(config)
        self.classifier = nn.Sequential(nn.Linear(config.hidden_size, 16), nn.Tanh(), nn.Linear(16, 5))
        self.post_init()

    def forward(self, input_ids, attention_mask=None, labels=None):
        pooled = self.bert(input_ids, attention_mask=attention_mask).pooler_output
        return SequenceClassifierOutput(logits=self.classifier(pooled))


class TwoHeads(BertPreTrainedModel):
    """Intents of texts and slots of tokens, of one encoder."""

    def __init__(self, config):
        super().__init__(config)
        self.bert = BertModel(config)
        self.intents = nn.Linear(config.hidden_size, 7)
        self.slots = nn.Linear(config.hidden_size, 4)
        self.post_init()

    def forward(self, input_ids, **kwargs):
        encoded = self.bert(input_ids, **kwargs)
        return {
            "intent_logits": self.intents(encoded.pooler_output),
            "slot_logits": self.slots(encoded.last_hidden_state),
        }


class Host(nn.Module):
    """A module that is no transformers model, but holds one, with the classifier of BERT."""

    def __init__(self, model):
        super().__init__()
        self.encoder = model.bert
        self.classifier = model.classifier

    def forward(self, input_ids, attention_mask, labels=None):
        logits = self.classifier(self.encoder(input_ids, attention_mask=attention_mask).pooler_output)
        return {"logits": logits} if labels is None else {"loss": logits.square().mean(), "logits": logits}


class Around(nn.Module):
    """A module around a whole model, head included, that returns what it is told to."""

    def __init__(self, model, answer=lambda outputs: outputs.logits):
        super().__init__()
        self.inner = model
        self.answer = answer

    def forward(self, input_ids, attention_mask=None):
        return self.answer(self.inner(input_ids, attention_mask=attention_mask))


def own_model(model_class):
    torch.manual_seed(0)
    model = model_class(model_class.config_class(**tiny_model().config.to_dict()))
    randomize(model)
    return model


def prune(model, **options):
    pruner = KPruner(model, tiny_tokenizer(), **options)
    pruner.prune(CONFIG, BATCHES)
    return pruner


@pytest.fixture(scope="module")
def expected():
    """The prune of the classifier of transformers, to which the same one in other clothes must be pruned."""
    return prune(tiny_model())


@torch.no_grad()
def answers(model):
    outputs = model.eval()(**pad(SAMPLES))
    outputs = list(outputs.values()) if isinstance(outputs, dict) else [outputs]
    return [output for output in outputs if isinstance(output, torch.Tensor)]


def assert_same_answers(first, second):
    for one, other in zip(answers(first), answers(second), strict=True):
        assert torch.equal(one, other)


# The same model in other clothes is pruned in the same way


def test_a_derived_class_is_pruned_as_the_class_it_is_derived_from(expected):
    dense = own_model(Derived)
    dense.load_state_dict(tiny_model().state_dict())
    pruner = prune(dense)
    assert type(pruner.model) is pruned_class(Derived) and pruner.task.name == "text-classification"
    assert pruner.result.kept == expected.result.kept
    assert same_state(pruner.model, expected.model)


@pytest.mark.parametrize("answer", [None, "tensor", "named tuple", "object", "prediction"])
def test_the_encoder_in_a_module_is_pruned_as_in_the_model_of_transformers(answer, expected):
    named = namedtuple("Answer", ["loss", "logits"])
    forms = {
        "tensor": lambda outputs: outputs.logits,
        "named tuple": lambda outputs: named(None, outputs.logits),
        "object": lambda outputs: SimpleNamespace(logits=outputs.logits),
        "prediction": lambda outputs: {"scores": outputs.logits},
    }
    dense = Host(tiny_model()) if answer is None else Around(tiny_model(), forms[answer])
    before = copy.deepcopy(dense)
    told = {"prediction": lambda outputs: outputs["scores"]} if answer == "prediction" else {}
    pruner = prune(dense, **told)
    assert pruner.result.kept == expected.result.kept
    assert pruner.result.parameters_after == sum(parameter.numel() for parameter in pruner.model.parameters())
    inner = pruner.model.encoder if answer is None else pruner.model.inner
    assert type(inner) is (KPruneBertModel if answer is None else KPruneBertForSequenceClassification)
    assert same_state(inner, expected.model.bert if answer is None else expected.model)
    assert type(pruner.model) is type(dense) and not any(module.training for module in pruner.model.modules())
    assert all(parameter.requires_grad for parameter in pruner.model.parameters())
    assert same_state(dense, before) and dense.training
    assert not {p.data_ptr() for p in dense.parameters()} & {p.data_ptr() for p in pruner.model.parameters()}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_pruned_inside_of_a_module(family, tmp_path):
    pruner, expected = prune(Around(tiny_model(family))), prune(tiny_model(family))
    assert same_state(pruner.model.inner, expected.model)
    pruner.save_pretrained(tmp_path / "out")
    assert_same_answers(load_into(Around(tiny_model(family, seed=1)), tmp_path / "out"), pruner.model)


def test_a_module_that_hands_all_arguments_on_gets_what_its_encoder_reads(expected):
    class HandsOn(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = tiny_model()

        def forward(self, **batch):
            return self.inner(**batch)

    assert prune(HandsOn()).result.kept == expected.result.kept


# What is compared


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

    def watched(frontier, step):
        prediction = original(frontier, step)
        seen.append((prediction.values[:, 0], frontier.student.model(**step.batch)))
        return prediction

    original = Frontier.student_prediction
    monkeypatch.setattr(Frontier, "student_prediction", watched)
    torch.manual_seed(0)
    prune(Mix("hidden_states"))
    assert len(seen) > len(BATCHES)
    for prediction, whole in seen:
        torch.testing.assert_close(prediction, whole)


def test_a_head_that_reads_the_attention_of_blocks_is_told():
    with pytest.raises(RuntimeError) as caught:
        prune(Mix("attentions"))
    assert any("attention of the blocks" in note and "leave it out" in note for note in caught.value.__notes__)


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
        with pytest.raises(ValueError, match="must be differentiable in the hidden states behind the last block"):
            prune(head(tiny_model()))


# What is in the module


def test_one_of_several_encoders_is_chosen_by_name():
    class Towers(nn.Module):
        def __init__(self):
            super().__init__()
            self.left, self.right = tiny_model(head="base model"), tiny_model("distilbert", head="base model", seed=1)

        def forward(self, input_ids, attention_mask):
            towers = [tower(input_ids, attention_mask=attention_mask) for tower in (self.left, self.right)]
            return towers[0].last_hidden_state[:, 0] * towers[1].last_hidden_state[:, 0]

    dense = Towers()
    with pytest.raises(ValueError, match=r"'left' \(BertModel\), 'right' \(DistilBertModel\).*encoder='left'"):
        KPruner(dense)
    with pytest.raises(ValueError, match=r"must name.*Got 'middle' instead.*'left', 'right'"):
        KPruner(dense, encoder="middle")
    pruned = prune(dense, encoder="right").model
    assert type(pruned.right).__name__ == "KPruneDistilBertModel"
    assert same_state(pruned.left, dense.left) and type(pruned.left) is BertModel


@pytest.mark.parametrize("times", [0, 2])
def test_a_forward_that_does_not_run_its_encoder_once_is_told(times):
    class Repeated(Host):
        def forward(self, input_ids, attention_mask):
            states = [self.encoder(input_ids, attention_mask=attention_mask)[0] for _ in range(times)]
            return torch.stack([torch.zeros(*input_ids.shape, HIDDEN), *states]).mean(dim=(0, 2))

    with pytest.raises(ValueError, match="must run its encoder once"):
        prune(Repeated(tiny_model()))


def test_what_else_refers_to_the_encoder_refers_to_the_pruned_one(tmp_path):
    class Tied(Host):
        def __init__(self, model):
            super().__init__(model)
            self.decoder = nn.Linear(HIDDEN, 120)
            self.decoder.weight = self.encoder.embeddings.word_embeddings.weight
            self.layers = self.encoder.encoder.layer

        def forward(self, input_ids, attention_mask):
            return {"logits": self.decoder(self.encoder(input_ids, attention_mask=attention_mask)[0])}

    pruner = prune(Tied(tiny_model()))
    pruned = pruner.model
    assert pruned.layers is pruned.encoder.encoder.layer
    assert pruned.decoder.weight is pruned.encoder.embeddings.word_embeddings.weight
    pruner.save_pretrained(tmp_path / "out")
    assert_same_answers(load_into(Tied(tiny_model(seed=1)), tmp_path / "out"), pruned)


def test_a_module_in_a_trainer_is_pruned_and_evaluated(tmp_path):
    rows = Dataset.from_list([{"input_ids": sample, "labels": 0} for sample in SAMPLES])
    options = dict(report_to="none", use_cpu=True, disable_tqdm=True)
    trainer = Trainer(
        Host(tiny_model()),
        TrainingArguments(tmp_path, **options),
        train_dataset=rows,
        eval_dataset=rows,
        processing_class=tiny_tokenizer(),
    )
    pruner = KPruner.from_trainer(trainer)
    pruner.prune(CONFIG)
    losses = pruner.evaluate()
    assert losses["dense"]["eval_loss"] != losses["pruned"]["eval_loss"]


# Saved and loaded


@pytest.mark.parametrize("model_class", [Derived, Deep, TwoHeads])
def test_a_class_of_ones_own_is_saved_and_loaded_by_its_pruned_class(model_class, tmp_path, caplog):
    pruner = prune(own_model(model_class))
    pruned = pruner.model
    assert type(pruned).__name__ == f"KPrune{model_class.__name__}" and isinstance(pruned, model_class)
    with caplog.at_level(logging.WARNING):
        pruner.save_pretrained(tmp_path / "out")
    loading = f"optimum_kprune.pruned_class({model_class.__name__}).from_pretrained("
    assert loading in caplog.text and loading in (tmp_path / "out" / "README.md").read_text()
    loaded = optimum_kprune.pruned_class(model_class).from_pretrained(tmp_path / "out")
    assert type(loaded) is type(pruned) and same_state(loaded, pruned)
    assert_same_answers(loaded, pruned)
    encoder = AutoModel.from_pretrained(tmp_path / "out")
    assert type(encoder) is KPruneBertModel
    for one, other in zip(outputs_of(encoder, pad(SAMPLES)), outputs_of(pruned.base_model, pad(SAMPLES)), strict=True):
        assert torch.equal(one, other)


def test_the_remote_code_of_a_class_of_ones_own_is_that_of_its_encoder(tmp_path):
    """A config of one's own is nothing that the modelling file could make."""
    encoder = {"AutoConfig": "modeling_kprune.KPruneBertConfig", "AutoModel": "modeling_kprune.KPruneBertModel"}
    for model_class, remote in ((TwoHeads, encoder), (Deep, {})):
        folder = tmp_path / model_class.__name__
        prune(own_model(model_class)).save_pretrained(folder)
        assert json.loads((folder / "config.json").read_text())["auto_map"] == remote
        assert (folder / "modeling_kprune.py").exists() == bool(remote)


def test_an_encoder_under_another_name_than_in_transformers_is_saved_so_that_it_is_found(tmp_path):
    class Renamed(BertPreTrainedModel):
        base_model_prefix = "backbone"

        def __init__(self, config):
            super().__init__(config)
            self.backbone = BertModel(config)
            self.head = nn.Linear(config.hidden_size, 3)

        def forward(self, input_ids, attention_mask=None):
            return self.head(self.backbone(input_ids, attention_mask=attention_mask).pooler_output)

    pruner = prune(own_model(Renamed))
    pruner.save_pretrained(tmp_path / "out")
    assert same_state(AutoModel.from_pretrained(tmp_path / "out"), pruner.model.backbone)
    assert_same_answers(load_into(own_model(Renamed), tmp_path / "out"), pruner.model)


def test_another_head_than_the_own_one_is_refused(tmp_path):
    prune(own_model(Deep)).save_pretrained(tmp_path / "out")
    with pytest.raises(ValueError, match=r"from the class Deep.*pruned_class\(Deep\)\.from_pretrained"):
        AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    with pytest.raises(ValueError, match=r"from the class Deep.*KPruner\(pruned_class\(Deep\)\.from_pretrained"):
        KPruner.from_pretrained(tmp_path / "out")
    own_model(Deep).save_pretrained(tmp_path / "dense")
    with pytest.raises(ValueError, match=r"from the class Deep.*KPruner\(Deep\.from_pretrained"):
        KPruner.from_pretrained(tmp_path / "dense")
    assert type(KPruner.from_pretrained(tmp_path / "dense", task="feature-extraction").teacher) is BertModel


def test_a_pruned_class_of_ones_own_can_be_pruned_further_and_derived_from(tmp_path):
    once = prune(own_model(TwoHeads))
    once.save_pretrained(tmp_path / "once")
    again = prune(pruned_class(TwoHeads).from_pretrained(tmp_path / "once"))
    assert type(again.model) is type(once.model)
    assert again.model.num_parameters() < once.model.num_parameters()

    class Fresh(KPruneBertForSequenceClassification):
        """A class of one's own on the pruned class of transformers."""

    prune(tiny_model()).save_pretrained(tmp_path / "classifier")
    derived = Fresh.from_pretrained(tmp_path / "classifier")
    assert type(prune(derived).model) is Fresh


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value))])
def test_pruned_models_and_tasks_can_be_copied(copied):
    for pruner in (prune(own_model(Deep)), prune(Host(tiny_model()))):
        twin = copied(pruner.model)
        assert type(twin) is type(pruner.model) and same_state(twin, pruner.model)
        assert_same_answers(twin, pruner.model)
        assert type(copied(pruner.task)) is type(pruner.task)
    assert type(copied(prune(own_model(Deep)).model.config)) is pruned_class(OwnConfig)


def test_a_module_is_saved_as_encoder_and_head_and_put_together_again(tmp_path, caplog):
    pruner = prune(Host(tiny_model()), task="fill-mask", prediction=lambda outputs: outputs["logits"])
    with caplog.at_level(logging.WARNING):
        pruner.save_pretrained(tmp_path / "out", measure_latency=True)
    card = (tmp_path / "out" / "README.md").read_text()
    for text in (caplog.text, card):
        assert "optimum_kprune.load_into(module, " in text and "module = Host(...)" in text
    assert "pruner = KPruner(model=..., processing_class=..., task='fill-mask', prediction=...)" in card
    assert "pipeline_tag" not in card and " tokens, encoder alone | " in card and "encoder alone can be" in card
    assert same_state(AutoModel.from_pretrained(tmp_path / "out"), pruner.model.encoder)
    loaded = load_into(Host(tiny_model(seed=1)), tmp_path / "out")
    assert same_state(loaded, pruner.model)
    assert_same_answers(loaded, pruner.model)
    assert same_state(prune(loaded).teacher, pruner.model)


@pytest.mark.parametrize("mistake", ["other head", "no encoder", "no folder"])
def test_what_does_not_fit_is_not_loaded_into_a_module(mistake, tmp_path):
    prune(Host(tiny_model())).save_pretrained(tmp_path / "out")
    save_tiny(tmp_path / "dense")
    module = {"other head": Host(tiny_model(num_labels=5)), "no encoder": Around(tiny_model())}.get(mistake)
    module = module or Host(tiny_model())
    before = copy.deepcopy(module)
    folder = tmp_path / ("dense" if mistake == "no folder" else "out")
    messages = {
        "other head": r"differs.*kinds of number of classifier\.bias, classifier\.weight",
        "no encoder": r"must hold its encoder as 'encoder'.*Around",
        "no folder": "must hold head.safetensors",
    }
    with pytest.raises((ValueError, OSError), match=messages[mistake]):
        load_into(module, folder)
    assert same_state(module, before)


def test_a_damaged_head_is_refused(tmp_path):
    prune(Host(tiny_model())).save_pretrained(tmp_path)
    file = tmp_path / "head.safetensors"
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
    save_file({name: tensor.to(torch.int8) for name, tensor in load_file(file).items()}, file, metadata)
    with pytest.raises(ValueError, match=r"kinds of number of classifier\.bias"):
        load_into(Host(tiny_model()), tmp_path)
    file.write_bytes(file.read_bytes()[:-3])
    with pytest.raises(OSError, match=r"head\.safetensors.*cannot be read"):
        load_into(Host(tiny_model()), tmp_path)


def test_a_class_that_needs_more_than_its_config_can_be_pruned_as_a_module(tmp_path):
    class Wider(BertForSequenceClassification):
        def __init__(self, config, width):
            super().__init__(config)
            self.classifier = nn.Linear(config.hidden_size, width)

    dense = Wider(tiny_model().config, 6)
    with pytest.raises(ValueError, match=r"needs width too.*encoder=\.\.\."):
        KPruner(dense)
    pruner = prune(dense, encoder="bert")
    pruner.save_pretrained(tmp_path / "out")
    assert_same_answers(load_into(Wider(tiny_model().config, 6), tmp_path / "out"), pruner.model)


def test_a_class_under_the_name_of_one_of_transformers_is_refused():
    taken = type("BertForSequenceClassification", (BertForSequenceClassification,), {})
    with pytest.raises(ValueError, match=r"must have a name of its own.*Rename it"):
        KPruner(taken(tiny_model().config))


# Adapters, quantized weights, and other things that are no plain encoders


class StandIn(nn.Module):
    """What PEFT puts around a projection, or a library of quantization in its place."""

    def __init__(self, base_layer):
        super().__init__()
        self.base_layer = base_layer

    def forward(self, hidden):
        return self.base_layer(hidden)


def replaced(replacement):
    model = tiny_model()
    block = model.bert.encoder.layer[1].intermediate
    block.dense = replacement(block.dense)
    return model


def of_peft(base_layer):
    return type("Linear", (StandIn,), {"__module__": "peft.tuners.lora.layer"})(base_layer)


def test_adapters_of_peft_are_to_be_merged():
    for model in (replaced(of_peft), of_peft(tiny_model()), Host(replaced(of_peft))):
        with pytest.raises(ValueError, match=r"adapters of PEFT.*merge_and_unload\(\)"):
            KPruner(model)


def test_a_folder_with_adapters_alone_is_told(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(OSError, match=r"adapters of PEFT alone.*merge_and_unload\(\)"):
        KPruner.from_pretrained(tmp_path)


def test_the_callback_says_before_training_that_adapters_are_to_be_merged(tmp_path):
    rows = Dataset.from_list([{"input_ids": [0, 5, 2], "labels": 0}] * 8)
    options = dict(report_to="none", use_cpu=True, disable_tqdm=True)
    trainer = Trainer(
        replaced(of_peft),
        TrainingArguments(tmp_path, **options),
        train_dataset=rows,
        callbacks=[KPruneCallback(CONFIG)],
    )
    with pytest.raises(ValueError, match="merge_and_unload"):
        trainer.train()
    assert trainer.state.global_step == 0


def test_adapters_of_the_real_peft_are_to_be_merged():
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(target_modules=["query"], task_type="SEQ_CLS", init_lora_weights=False)
    added = tiny_model()
    added.add_adapter(config)
    wrapped = peft.get_peft_model(tiny_model(), config)
    for model in (added, wrapped, wrapped.base_model.model):
        with pytest.raises(ValueError, match="merge_and_unload"):
            KPruner(model)
    assert prune(wrapped.merge_and_unload()).result.flops_removed >= 0.5


class Int8Weight(torch.Tensor):
    """A subclass of tensors, as libraries of quantization put them in the place of weights."""


def with_weight(make):
    def replacement(linear):
        del linear.weight
        linear.weight = make()
        return linear

    return replacement


PLAIN = {
    "module of another class": (StandIn, "StandIn"),
    "subclass of Linear": (lambda linear: type("QLinear", (nn.Linear,), {})(HIDDEN, 64), "QLinear"),
    "tensor subclass": (
        with_weight(lambda: nn.Parameter(torch.zeros(64, HIDDEN).as_subclass(Int8Weight))),
        "Linear with a weight of .*Int8Weight",
    ),
    "integers": (
        with_weight(lambda: nn.Parameter(torch.zeros(64, HIDDEN, dtype=torch.int8), requires_grad=False)),
        "Parameter of torch.int8",
    ),
    "parametrized": (torch.nn.utils.parametrizations.spectral_norm, "ParametrizedLinear"),
    "no module": (lambda linear: None, "no such module"),
}


@pytest.mark.parametrize("kind", PLAIN)
def test_projections_that_are_no_plain_matrices_are_named(kind):
    replacement, named = PLAIN[kind]
    with pytest.raises(ValueError, match=rf"'intermediate\.dense' of layer 1 must be a plain.*{named}.*Prune first"):
        KPruner(replaced(replacement))


def test_a_model_that_pytorch_quantized_is_told():
    quantize = pytest.importorskip("torch.ao.quantization").quantize_dynamic
    with pytest.raises(ValueError, match=r"must be a plain `nn\.Linear`.*quantized\.dynamic"):
        KPruner(quantize(tiny_model().eval(), {nn.Linear}, dtype=torch.qint8))


def test_a_model_without_weights_is_told():
    with pytest.raises(ValueError, match="on the meta device"):
        KPruner(tiny_model().to("meta"))


def decoders():
    sizes = dict(vocab_size=120, pad_token_id=PAD, bos_token_id=0, eos_token_id=2)
    bert = tiny_model().config
    yield GPT2ForSequenceClassification(GPT2Config(n_layer=1, n_head=2, n_embd=8, **sizes))
    yield T5ForConditionalGeneration(T5Config(d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2, **sizes))
    yield EncoderDecoderModel(encoder=BertModel(bert), decoder=BertLMHeadModel(copy.deepcopy(bert)))


def test_decoders_are_refused_with_the_reason(tmp_path):
    for model in decoders():
        with pytest.raises(ValueError, match=r"decoder.*K-prune is for encoders") as caught:
            KPruner(model)
        assert "register_adapter" not in str(caught.value)
        folder = tmp_path / type(model).__name__
        model.save_pretrained(folder)
        with pytest.raises(ValueError, match=r"decoder.*K-prune is for encoders"):
            KPruner.from_pretrained(folder)


def test_what_is_no_model_is_told_what_to_do():
    pipeline = type("SentenceTransformer", (nn.Sequential,), {"__module__": "sentence_transformers.base"})
    cases = {
        r"Got str instead.*KPruner\.from_pretrained": lambda: KPruner("bert"),
        "module that holds one. Got a Linear": lambda: KPruner(nn.Linear(2, 2)),
        r"from_sentence_transformer": lambda: KPruner(pipeline(tiny_model(head="base model"))),
        r"Pass `model\.module`": lambda: KPruner(nn.DataParallel(tiny_model())),
        "A compiled model cannot be observed": lambda: KPruner(Around(torch.compile(tiny_model(), backend="eager"))),
        "as it was before": lambda: KPruner(compiled_in_place()),
        r"must be a `transformers\.Trainer`.*KPruner\(model": lambda: KPruner.from_trainer(tiny_model()),
        "must be a KPruneConfig. Got float": lambda: KPruneCallback(0.5),
        "`prediction` must be a function": lambda: KPruner(tiny_model(), prediction="logits"),
        "must name a submodule": lambda: KPruner(tiny_model(), encoder="x"),
        "has no module 'encoder.layer'": lambda: KPruner(without_blocks()),
    }
    for message, mistake in cases.items():
        with pytest.raises(ValueError, match=message):
            mistake()


def compiled_in_place():
    model = tiny_model()
    model.compile(backend="eager")
    return model


def without_blocks():
    model = tiny_model()
    model.bert.encoder = nn.Identity()
    return model
