"""Tiny random models, data and a tokenizer, made without the network: what the tests share."""

import copy
import random

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoConfig, PreTrainedTokenizerFast
from transformers.models.auto import modeling_auto

from optimum_kprune.calibration.prepare import CalibrationBatches
from optimum_kprune.encoder.config_field import adapter_of
from optimum_kprune.encoder.hooks import evaluating
from optimum_kprune.encoder.partial_forward import find_entries
from optimum_kprune.encoder.sublayers import Encoder
from optimum_kprune.encoder.tasks import task_of
from optimum_kprune.encoder.unsharing import private_copy
from optimum_kprune.kprune_map import parse_units
from optimum_kprune.kprune_shrink import give_bias
from optimum_kprune.prune.costs import costs_of
from optimum_kprune.prune.loop import Loop
from optimum_kprune.prune.pair import Pair
from optimum_kprune.prune.predictions import Predictions
from optimum_kprune.prune.rate import RatePruner
from optimum_kprune.prune.scores import Scores

# The families on which all is tested that does not depend on the layout; `zoo` has the others.
FAMILIES = ["bert", "camembert", "distilbert", "electra", "roberta", "xlm-roberta"]
# Every kind of output there is to preserve: the name of the head, and options of the config.
HEADS = {
    "single label": ("ForSequenceClassification", {"num_labels": 3}),
    "multi label": (
        "ForSequenceClassification",
        {"num_labels": 3, "problem_type": "multi_label_classification"},
    ),
    "regression": ("ForSequenceClassification", {"num_labels": 1}),
    "question answering": ("ForQuestionAnswering", {}),
    "token classification": ("ForTokenClassification", {"num_labels": 3}),
    "masked language model": ("ForMaskedLM", {}),
    "multiple choice": ("ForMultipleChoice", {}),
    "base model": ("", {}),
}
SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
PAD = SPECIAL.index("<pad>")
WORDS = [f"w{index}" for index in range(115)]
VOCABULARY = SPECIAL + WORDS
LAYERS, HIDDEN, HEAD_COUNT, NEURONS = 3, 32, 4, 64


def tiny_model(family="bert", head="single label", seed=0, **options):
    """A model whose outputs depend on its inputs: large weights, random biases and norms. It is in training mode."""
    head_name, head_options = HEADS[head]
    sizes = dict(hidden_size=HIDDEN, num_hidden_layers=LAYERS, num_attention_heads=HEAD_COUNT)
    sizes["hidden_dim" if family == "distilbert" else "intermediate_size"] = NEURONS
    if family == "electra":
        sizes["embedding_size"] = 16
    tokens = dict(vocab_size=len(VOCABULARY), max_position_embeddings=40, bos_token_id=0, eos_token_id=2)
    tokens["pad_token_id"] = PAD
    config = AutoConfig.for_model(family, **{**sizes, **tokens, **head_options, **options})
    torch.manual_seed(seed)
    model = getattr(modeling_auto, f"AutoModel{head_name}").from_config(config)
    randomize(model)
    return model.train()


@torch.no_grad()
def randomize(model):
    for parameter in model.parameters():
        noise = torch.randn_like(parameter)
        is_norm = parameter.dim() == 1 and bool((parameter == 1).all())
        parameter.copy_(1 + 0.3 * noise if is_norm else 0.3 * noise)


def ragged_samples(count=24, seed=0, choices=None):
    """Lists of token ids between special tokens, of 3 to 12 tokens; lists of choices of them if asked for."""
    generator = random.Random(seed)

    def row():
        words = generator.choices(range(len(SPECIAL), len(VOCABULARY)), k=generator.randint(1, 10))
        return [0, *words, 2]

    return [row() if choices is None else [row() for _ in range(choices)] for _ in range(count)]


def samples_for(model, count=24, seed=0):
    return ragged_samples(count, seed, choices=3 if "MultipleChoice" in type(model).__name__ else None)


def pad(samples, extra=0):
    """One batch of samples, padded on the right; with `extra` positions more than are needed."""
    nested = isinstance(samples[0][0], list)
    rows = [row for sample in samples for row in sample] if nested else samples
    width = max(map(len, rows)) + extra
    ids = torch.tensor([[*row, *[PAD] * (width - len(row))] for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    batch = {"input_ids": ids, "attention_mask": mask}
    return {name: tensor.unflatten(0, (len(samples), -1)) if nested else tensor for name, tensor in batch.items()}


def batches_of(samples, size=12, extra=0):
    return [pad(samples[start : start + size], extra) for start in range(0, len(samples), size)]


def tiny_tokenizer(**overrides):
    backend = Tokenizer(models.WordLevel({word: index for index, word in enumerate(VOCABULARY)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    names = dict(bos_token="<s>", pad_token="<pad>", eos_token="</s>", unk_token="<unk>", mask_token="<mask>")
    names |= dict(cls_token="<s>", sep_token="</s>", model_input_names=["input_ids", "attention_mask"])
    return PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=30, **{**names, **overrides})


def texts_of(samples):
    """The texts that the tokenizer turns into the samples."""
    return [" ".join(VOCABULARY[token] for token in sample[1:-1]) for sample in samples]


def save_tiny(folder, model=None, tokenizer=True):
    """A checkpoint folder, as a user has it."""
    (tiny_model() if model is None else model).save_pretrained(folder)
    if tokenizer:
        tiny_tokenizer().save_pretrained(folder)
    return folder


@torch.no_grad()
def pair_of(teacher, student, batches, entries=True):
    """Teacher and student at the bottom, in evaluation mode. Without entries, all runs are from the bottom."""
    teacher, student = encoder_of(teacher), encoder_of(student)
    if entries:
        sample = {name: values[:1] for name, values in batches[0].items()}
        teacher.entries = student.entries = find_entries(teacher, sample)
    return Pair(teacher, student, CalibrationBatches(batches, [len(batches)]))


@torch.no_grad()
def predictions_of(teacher, student, batches, task=None):
    """The predictions of such a pair, made."""
    predictions = Predictions(pair_of(teacher, student, batches), task or task_of(teacher))
    predictions.make()
    return predictions


def loop_of(predictions, config, length=10):
    """The loop on such a pair, for one rate."""
    costs = costs_of(config, predictions.pair.teacher.encoder, length)
    return Loop([RatePruner(predictions.pair, Scores(predictions, config, costs.unit_cost), costs, config, length)])


def encoder_of(model):
    return Encoder(model, adapter_of(model))


def sublayers_of(model):
    return encoder_of(model).sublayers()


@torch.no_grad()
def outputs_of(model, batch):
    """The tensors that a model returns in evaluation mode; in training mode it stays."""
    with evaluating(model):
        return [output for output in model(**batch).to_tuple() if isinstance(output, torch.Tensor)]


def same_state(first, second):
    """Whether two models have the same weights to the last bit."""
    one, other = first.state_dict(), second.state_dict()
    return list(one) == list(other) and all(torch.equal(one[name], other[name]) for name in one)


def masked_dense(dense, pruned):
    """The dense model with the pruned one's projections, and output projections zero where units were removed."""
    masked = copy.deepcopy(private_copy(encoder_of(dense)).model)
    for module in masked.modules():
        # Blocks that ran several times still share theirs.
        module._parameters.update(
            {
                name: torch.nn.Parameter(values.clone())
                for name, values in module._parameters.items()
                if values is not None
            }
        )
    kept = [parse_units(entry["kept"], entry["total"]) for entry in pruned.config.kprune["kept"]]
    for target, source, units in zip(sublayers_of(masked), sublayers_of(pruned), kept, strict=True):
        columns = [unit * target.unit_size + column for unit in units for column in range(target.unit_size)]
        target.output.weight.data.zero_()
        if columns:
            target.output.weight.data[:, columns] = source.output.weight.data
            put_rows(target, source, units)
        if source.output.bias is not None:
            # A prune gives one to projections that have none.
            give_bias(target.output)
            target.output.bias.data.copy_(source.output.bias.data)
    return masked


def put_rows(target, source, units):
    """Copies the rows of the units in the input projections; a projection can hold several, one after the other."""
    for name, parts in target.adapter.inputs.items():
        whole, kept = (sublayer.block.get_submodule(name) for sublayer in (target, source))
        for parameter, values in zip(whole.parameters(), kept.parameters(), strict=True):
            rows = parameter.data.view(parts, target.units, -1)
            rows[:, units] = values.data.view(parts, source.units, -1)


def assert_same_outputs(first, second, batch, tolerance=0.0):
    for one, other in zip(outputs_of(first, batch), outputs_of(second, batch), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=tolerance)


def assert_masked_dense_equals(dense, pruned):
    """In float64, where nothing but a mistake makes a difference."""
    masked, pruned = masked_dense(dense, pruned).double(), copy.deepcopy(pruned).double()
    assert_same_outputs(masked, pruned, pad(samples_for(dense, seed=1)), tolerance=1e-9)


def teacher_and_student(head, family="bert", dtype=torch.float64):
    """A model and one that differs from it in the output projections of its lowest block."""
    teacher = tiny_model(family, head).eval().to(dtype)
    student = copy.deepcopy(teacher).requires_grad_(False)
    torch.manual_seed(1)
    for sublayer in encoder_of(student).sublayers()[:2]:
        sublayer.output.weight += 0.3 * torch.randn_like(sublayer.output.weight)
    return teacher, student
