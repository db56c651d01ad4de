"""KPruner from end to end on tiny models: what is kept, tuned, saved and refused, and what is left alone."""

import functools
import itertools
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset
from huggingface_hub.errors import RemoteEntryNotFoundError
from tiny import (
    FAMILIES,
    HEAD_COUNT,
    HEADS,
    HIDDEN,
    LAYERS,
    NEURONS,
    assert_masked_dense_equals,
    assert_same_outputs,
    batches_of,
    outputs_of,
    pad,
    ragged_samples,
    same_state,
    samples_for,
    save_tiny,
    sublayers_of,
    texts_of,
    tiny_model,
    tiny_tokenizer,
)
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForNextSentencePrediction,
    BertForSequenceClassification,
    BertLMHeadModel,
)

from optimum_kprune import (
    EncoderAdapter,
    KPruneConfig,
    KPruner,
    OptimumPruner,
    SublayerAdapter,
    pruned_class,
    register_adapter,
    supported_model_types,
)
from optimum_kprune.encoder import adapters
from optimum_kprune.encoder.adapters import BERT
from optimum_kprune.kprune_map import parse_units
from optimum_kprune.prune.loop import SublayerPruner
from optimum_kprune.publish import hub
from optimum_kprune.publish import save as publishing

HEAD_SIZE = HIDDEN // HEAD_COUNT
TOTALS = {"attention": HEAD_COUNT, "ffn": NEURONS}
# Every head with BERT, and two heads with every other family.
CASES = [("bert", head) for head in sorted(HEADS)]
CASES += [
    (family, sorted(HEADS)[(2 * index + offset) % len(HEADS)])
    for index, family in enumerate(family for family in FAMILIES if family != "bert")
    for offset in (0, 1)
]
SAMPLES = ragged_samples()


def settings(**overrides):
    """Settings that give the same on any hardware."""
    defaults = {"num_tokens": None, "measure_tokens": None, "heldout_share": 0}
    return KPruneConfig(**{**defaults, **overrides})


def prune(model, batches=None, **overrides):
    """A pruner that has pruned a model."""
    pruner = KPruner(model, tiny_tokenizer())
    pruner.prune(settings(**overrides), batches_of(samples_for(model)) if batches is None else batches)
    return pruner


@pytest.fixture
def network_free_hub(monkeypatch):
    """Stands in for the Hub: records what is made and uploaded."""
    calls = []

    class RecordingApi:
        def __init__(self, token=None):
            calls.append(("token", token))

        def create_repo(self, repo_id, **arguments):
            calls.append(("create_repo", repo_id, arguments))
            return SimpleNamespace(repo_id=f"me/{repo_id}")

        def hf_hub_download(self, *_, **__):
            raise RemoteEntryNotFoundError("no card", response=SimpleNamespace(headers={}, request=None))

        def upload_folder(self, folder_path, **arguments):
            calls.append(("upload_folder", sorted(path.name for path in Path(folder_path).iterdir()), arguments))
            return "https://hub.invalid/commit/1"

    monkeypatch.setattr(hub, "HfApi", RecordingApi)
    return calls


# The budget


def flops_of_unit(kind, length):
    if kind == "attention":
        return 8 * length * HIDDEN * HEAD_SIZE + 4 * length**2 * HEAD_SIZE
    return 4 * length * HIDDEN


def assert_budget_is_met_from_below(result, rate):
    length = result.sequence_length
    before = LAYERS * sum(total * flops_of_unit(kind, length) for kind, total in TOTALS.items())
    after = sum(len(entry["kept"]) * flops_of_unit(entry["kind"], length) for entry in result.kept)
    assert (result.flops_before, result.flops_after) == (before, after)
    assert result.flops_removed == pytest.approx(1 - after / before)
    left = (1 - rate) * before - after
    assert 0 <= left <= max(flops_of_unit(kind, length) for kind in TOTALS)


@pytest.mark.parametrize("rate", [0.1, 0.37, 0.5, 0.8, 0.95, 0.999])
def test_the_budget_is_met_from_below_at_every_rate(rate):
    assert_budget_is_met_from_below(prune(tiny_model(), compression_rate=rate).result, rate)


@pytest.mark.parametrize("length", [1, 7, 200])
def test_the_sequence_length_of_the_budget_can_be_set(length):
    result = prune(tiny_model(), sequence_length=length).result
    assert result.sequence_length == length
    assert_budget_is_met_from_below(result, 0.5)


def test_the_sequence_length_is_the_mean_of_the_data():
    result = prune(tiny_model(), batches_of(SAMPLES, extra=5)).result
    lengths = [len(sample) for sample in SAMPLES]
    assert result.sequence_length == round(sum(lengths) / len(lengths))
    assert (result.samples, result.tokens) == (len(lengths), sum(lengths))


def test_mu_weighs_heads_against_neurons():
    heads = {
        mu: sum(len(entry["kept"]) for entry in prune(tiny_model(), mu=mu).result.kept if entry["kind"] == "attention")
        for mu in (1e-9, HEAD_SIZE, None, 1e9)
    }
    assert heads[1e-9] < heads[None] < heads[1e9] and heads[None] == heads[HEAD_SIZE]


@pytest.mark.parametrize(("family", "rate"), zip(itertools.cycle(FAMILIES), (0, 0.1, 0.4, 0.6, 0.8, 0.95)))
@pytest.mark.parametrize("multiple", [3, 8])
def test_kept_neurons_are_multiples_within_the_budget(family, rate, multiple):
    result = prune(tiny_model(family), compression_rate=rate, neuron_multiple=multiple).result
    counts = [len(entry["kept"]) for entry in result.kept if entry["kind"] == "ffn"]
    assert all(count % multiple == 0 or count == NEURONS for count in counts)
    # What the last sublayer cannot round up is left over, and a unit that does not fit.
    unit = max(flops_of_unit(kind, result.sequence_length) for kind in TOTALS)
    most_left = unit + multiple * flops_of_unit("ffn", result.sequence_length)
    assert 0 <= (1 - rate) * result.flops_before - result.flops_after <= most_left


@pytest.mark.parametrize("rate", [0, 0.5, 0.95])
def test_a_multiple_above_the_width_keeps_all_neurons_or_none(rate):
    result = prune(tiny_model(), compression_rate=rate, neuron_multiple=NEURONS + 1).result
    assert {len(entry["kept"]) for entry in result.kept if entry["kind"] == "ffn"} <= {0, NEURONS}
    assert result.flops_removed >= rate


def test_neurons_of_a_model_pruned_before_are_rounded_too():
    once = prune(tiny_model(), neuron_multiple=1)
    result = prune(once.model, batches_of(SAMPLES), compression_rate=0.3, neuron_multiple=8).result
    neurons = [entry for entry in result.kept if entry["kind"] == "ffn"]
    assert all(len(entry["kept"]) % 8 == 0 or len(entry["kept"]) == entry["total"] for entry in neurons)
    assert any(entry["total"] % 8 for entry in neurons) and result.flops_removed >= 0.3


# The pruned model is the dense one with masks and with other weights in its projections


@pytest.mark.parametrize(("family", "head"), CASES)
def test_masked_dense_equals_pruned_within_the_budget(family, head):
    dense = tiny_model(family, head)
    pruner = prune(dense)
    assert_budget_is_met_from_below(pruner.result, 0.5)
    assert_masked_dense_equals(dense, pruner.model)
    batch = pad(samples_for(dense, seed=1))
    before, after = outputs_of(dense, batch)[0], outputs_of(pruner.model, batch)[0]
    assert (before - after).abs().max() > 1e-3


@pytest.mark.parametrize("family", FAMILIES)
def test_without_tuning_only_columns_disappear(family):
    dense = tiny_model(family)
    pruned = prune(dense, tuning=False).model
    for before, after, entry in zip(
        sublayers_of(dense), sublayers_of(pruned), pruned.config.kprune["kept"], strict=True
    ):
        units = torch.tensor(parse_units(entry["kept"], entry["total"]), dtype=torch.long)
        assert len(units) == after.units
        kept = torch.zeros(before.units, dtype=torch.bool).index_fill(0, units, True)
        if after.units:
            assert torch.equal(after.output.weight, before.output.weight[:, kept.repeat_interleave(before.unit_size)])
        assert torch.equal(after.output.bias, before.output.bias)


@pytest.mark.parametrize(("family", "head"), CASES[::2])
def test_rate_zero_without_tuning_changes_nothing(family, head):
    dense = tiny_model(family, head)
    pruner = prune(dense, compression_rate=0, tuning=False)
    assert [len(entry["kept"]) for entry in pruner.result.kept] == [HEAD_COUNT, NEURONS] * LAYERS
    assert same_state(dense, pruner.model)
    assert_same_outputs(dense, pruner.model, pad(samples_for(dense, seed=1)))
    assert pruner.result.flops_removed == 0
    assert pruner.result.parameters_after == pruner.result.parameters_before == dense.num_parameters()
    assert [entry.error for entry in pruner.result.sublayers] == pytest.approx([0] * 2 * LAYERS, abs=1e-6)


def test_parameters_are_counted():
    dense = tiny_model("roberta", "masked language model")
    pruner = prune(dense)
    result = pruner.result
    removed = sum(entry.parameters_before - entry.parameters for entry in result.sublayers)
    assert result.parameters_before == dense.num_parameters()
    assert result.parameters_after == pruner.model.num_parameters() == dense.num_parameters() - removed
    assert removed > 0
    for entry, sublayer in zip(result.sublayers, sublayers_of(pruner.model), strict=True):
        assert entry.parameters == sublayer.parameters


def test_half_precision_models_can_be_pruned():
    dense = tiny_model().to(torch.bfloat16)
    pruner = prune(dense)
    assert_budget_is_met_from_below(pruner.result, 0.5)
    assert {parameter.dtype for parameter in pruner.model.parameters()} == {torch.bfloat16}
    assert all(entry.error < 0.6 for entry in pruner.result.sublayers)


# Sublayers without units


def mean_of_first_sublayer(model, samples):
    """The mean over real tokens of what the lowest attention sublayer adds, one sample at a time."""
    outputs = []
    handle = model.bert.encoder.layer[0].attention.output.dense.register_forward_hook(
        lambda module, args, output: outputs.append(output.detach()[0])
    )
    for sample in samples:
        outputs_of(model, pad([sample]))
    handle.remove()
    return torch.cat(outputs).mean(dim=0)


@pytest.mark.parametrize(("tuning", "bias"), [(True, "refit"), (True, "keep"), (True, "drop"), (False, "refit")])
def test_the_bias_of_an_emptied_sublayer(tuning, bias):
    dense = tiny_model()
    settings = {"compression_rate": 0.95, "tuning": tuning, "bias": bias, "token_weights": "equal"}
    pruner = prune(dense, batches_of(SAMPLES, extra=3), **settings)
    assert pruner.result.kept[0]["kept"] == [], "the lowest sublayer was to lose all heads here"
    original = dense.bert.encoder.layer[0].attention.output.dense.bias
    expected = original if not tuning or bias == "keep" else torch.zeros_like(original)
    if tuning and bias == "refit":
        expected = mean_of_first_sublayer(dense, SAMPLES)
    torch.testing.assert_close(sublayers_of(pruner.model)[0].output.bias, expected, rtol=1e-5, atol=1e-5)
    assert_masked_dense_equals(dense, pruner.model)


@pytest.mark.parametrize("family", FAMILIES)
def test_models_with_emptied_sublayers_work(family):
    dense = tiny_model(family, "token classification")
    pruner = prune(dense, compression_rate=0.999)
    assert [] in [entry["kept"] for entry in pruner.result.kept]
    assert_masked_dense_equals(dense, pruner.model)
    assert all(output.isfinite().all() for output in outputs_of(pruner.model, pad(SAMPLES)))


# Tuning


def states_behind_sublayers(model, batch):
    """X + Sub(X) of every sublayer of a BERT model at real tokens, and Sub(X)."""
    sums, added, handles = [], [], []
    for layer in model.bert.encoder.layer:
        for module in (layer.attention.output, layer.output):
            handles.append(module.dense.register_forward_hook(lambda m, args, output: added.append(output)))
            handles.append(module.LayerNorm.register_forward_pre_hook(lambda m, args: sums.append(args[0])))
    outputs_of(model, batch)
    for handle in handles:
        handle.remove()
    real = batch["attention_mask"].bool()
    return [total[real] for total in sums], [output[real] for output in added]


@pytest.mark.parametrize("tuning", [True, False])
def test_the_reported_error_is_the_distance_of_the_hidden_states(tuning):
    dense, batch = tiny_model(), pad(SAMPLES)
    pruner = prune(dense, batches_of(SAMPLES, 5), compression_rate=0.6, tuning=tuning, token_weights="equal")
    wanted, _ = states_behind_sublayers(dense, batch)
    got, added = states_behind_sublayers(pruner.model, batch)
    for entry, teacher, student, output in zip(pruner.result.sublayers, wanted, got, added, strict=True):
        to_add = teacher - (student - output)
        expected = ((teacher - student).square().sum() / to_add.square().sum()).item()
        assert entry.error == pytest.approx(expected, rel=1e-3, abs=1e-6)


def test_tuning_lowers_the_error():
    dense = tiny_model(head="base model")
    tuned, untuned = (prune(dense, compression_rate=0.6, tuning=tuning).result for tuning in (True, False))
    assert tuned.kept[0] == untuned.kept[0]
    errors = [[entry.error for entry in result.sublayers] for result in (tuned, untuned)]
    assert all(one < other for one, other in zip(*errors, strict=True))


def test_tuning_brings_the_outputs_closer_on_other_data():
    dense = tiny_model(head="token classification")
    training, other = batches_of(ragged_samples(60), 60), pad(ragged_samples(30, seed=1))
    real = other["attention_mask"].bool()
    distances = []
    for tuning in (True, False):
        model = prune(dense, training, compression_rate=0.6, tuning=tuning).model
        distances.append((outputs_of(model, other)[0] - outputs_of(dense, other)[0])[real].square().mean().item())
    assert distances[0] < 0.5 * distances[1]


# The same again


def test_the_same_seed_gives_the_same_bytes(tmp_path):
    for name in ("first", "second"):
        pruner = KPruner(tiny_model(), tiny_tokenizer())
        pruner.prune(settings(), texts_of(SAMPLES), save_directory=tmp_path / name)
    for file in ("model.safetensors", "config.json", "kprune_config.json"):
        assert (tmp_path / "first" / file).read_bytes() == (tmp_path / "second" / file).read_bytes()


@pytest.mark.parametrize("head", ["single label", "question answering", "masked language model"])
def test_a_second_prune_starts_from_the_teacher(head):
    dense = tiny_model(head=head)
    batches = batches_of(samples_for(dense))
    pruner = prune(dense, batches, compression_rate=0.8)
    pruner.prune(settings(), batches)
    once = prune(dense, batches)
    assert pruner.result.kept == once.result.kept
    assert same_state(pruner.model, once.model)


def test_the_state_of_the_random_generators_does_not_matter_and_is_left_alone():
    dense = tiny_model()
    torch.manual_seed(1)
    first = prune(dense)
    state = torch.get_rng_state()
    torch.manual_seed(2)
    second = prune(dense)
    assert same_state(first.model, second.model)
    torch.manual_seed(1)
    assert torch.equal(torch.get_rng_state(), state)


# Forms of calibration data


def forms_of(samples, tokenizer):
    texts = texts_of(samples)
    return {
        "texts": texts,
        "generator of texts": (text for text in texts),
        "raw": Dataset.from_dict({"text": texts}),
        "raw with labels": Dataset.from_dict({"text": texts, "label": [0] * len(texts)}),
        "tokenized": Dataset.from_dict(dict(tokenizer(texts))),
        "tokenized with labels": Dataset.from_dict({**tokenizer(texts), "labels": list(range(len(texts)))}),
        "padded": Dataset.from_dict(dict(tokenizer(texts, padding="max_length", max_length=20))),
    }


def test_all_forms_of_the_same_data_agree():
    pruner = KPruner(tiny_model(), tiny_tokenizer())
    pruner.prune(settings(), texts_of(SAMPLES))
    expected = pruner.model
    for form, data in forms_of(SAMPLES, tiny_tokenizer()).items():
        pruner.prune(settings(), data)
        assert same_state(pruner.model, expected), form


def test_batches_agree_with_texts_but_for_rounding():
    pruner = KPruner(tiny_model(), tiny_tokenizer())
    from_texts = pruner.prune(settings(), texts_of(SAMPLES)), pruner.model
    for batches in (batches_of(SAMPLES), iter(batches_of(SAMPLES, 5, extra=4))):
        result = pruner.prune(settings(), batches)
        assert result.kept == from_texts[0].kept
        assert_same_outputs(pruner.model, from_texts[1], pad(SAMPLES), tolerance=1e-3)


def test_integers_of_another_width_are_the_same_tokens():
    wide = batches_of(SAMPLES)
    narrow = [{name: tensor.int() for name, tensor in batch.items()} for batch in wide]
    assert prune(tiny_model(), narrow).result.kept == prune(tiny_model(), wide).result.kept


@pytest.mark.parametrize(
    ("head", "labels"),
    [
        ("single label", {"labels": torch.tensor([0, 1, 2, 0])}),
        ("regression", {"labels": torch.tensor([0.5, 1, 2, 0])}),
        ("question answering", {"start_positions": torch.zeros(4, dtype=torch.long), "end_positions": torch.ones(4)}),
        ("multiple choice", {"labels": torch.tensor([0, 1, 2, 0])}),
    ],
)
def test_labels_in_batches_do_not_matter(head, labels):
    dense = tiny_model(head=head)
    batches = batches_of(samples_for(dense), 4)
    labelled = [batch | labels for batch in batches]
    assert same_state(prune(dense, labelled).model, prune(dense, batches).model)


def test_the_part_that_is_measured_does_not_depend_on_order_or_batch_size():
    pruner = KPruner(tiny_model(), tiny_tokenizer())
    expected = pruner.prune(settings(measure_tokens=60), texts_of(SAMPLES))
    for texts, batch_size in ((texts_of(SAMPLES), 3), (texts_of(SAMPLES[::-1]), 32)):
        result = pruner.prune(settings(measure_tokens=60), texts, batch_size=batch_size)
        assert result.kept == expected.kept
    assert expected.kept != pruner.prune(settings(), texts_of(SAMPLES)).kept


def test_measuring_on_a_part_of_the_data_still_meets_the_budget_and_fits_on_all():
    part = prune(tiny_model(), measure_tokens=50).result
    assert part.tokens == prune(tiny_model()).result.tokens
    assert_budget_is_met_from_below(part, 0.5)


# The teacher


def everything_of(model):
    """All that a prune must leave as it was."""
    return {
        "weights": {name: tensor.clone() for name, tensor in model.state_dict().items()},
        "requires_grad": [parameter.requires_grad for parameter in model.parameters()],
        "gradients": [parameter.grad for parameter in model.parameters()],
        "training": [module.training for module in model.modules()],
        "hooks": [(list(module._forward_hooks), list(module._forward_pre_hooks)) for module in model.modules()],
        "replaced": [name for name, module in model.named_modules() if "forward" in module.__dict__],
        "config": model.config.to_dict(),
        "class": type(model),
    }


def assert_unchanged(model, before):
    after = everything_of(model)
    weights, others = before.pop("weights"), {name: value for name, value in after.items() if name != "weights"}
    assert others == before
    assert all(torch.equal(tensor, weights[name]) for name, tensor in after["weights"].items())


def particular_teacher():
    """A model with a frozen part and a part in evaluation mode, in training for the rest."""
    teacher = tiny_model()
    teacher.bert.embeddings.requires_grad_(False)
    teacher.bert.encoder.layer[1].eval()
    return teacher


def test_the_teacher_is_unchanged_by_a_prune():
    teacher = particular_teacher()
    before = everything_of(teacher)
    pruner = prune(teacher)
    assert_unchanged(teacher, before)
    assert pruner.teacher is teacher and pruner.model is not teacher
    addresses = {parameter.data_ptr() for parameter in teacher.parameters()}
    assert not addresses & {parameter.data_ptr() for parameter in pruner.model.parameters()}


def test_the_student_shares_weights_until_they_are_pruned(monkeypatch):
    """A prune takes memory for the weights that it makes, not for a second model."""
    teacher, shared = tiny_model(), []

    def watched(pruning, lower, students):
        weights = {weight.data_ptr() for weight in teacher.parameters()}
        shared.append([student.output.weight.data_ptr() in weights for student in students])
        return original(pruning, lower, students)

    original = SublayerPruner._prune_target
    monkeypatch.setattr(SublayerPruner, "_prune_target", watched)
    prune(teacher)
    assert shared == [[True] * count for count in range(2 * LAYERS, 0, -1)]


def test_the_pruned_model_is_ready_to_use_and_to_train():
    model = prune(particular_teacher()).model
    assert not any(module.training for module in model.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())
    model.train()(**pad(SAMPLES), labels=torch.zeros(len(SAMPLES), dtype=torch.long)).loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@functools.cache
def forward_passes_of_a_prune():
    """How often the last block is called."""
    model, calls = tiny_model(), []
    model.bert.encoder.layer[2].register_forward_hook(lambda *_: calls.append(1))
    prune(model, batches_of(SAMPLES))
    return len(calls)


def interrupt_at(number, error):
    """A hook that raises an error when it is called for the given time, also in the copies of its model."""
    calls = []

    def hook(*_):
        calls.append(1)
        if len(calls) == number:
            raise error("stop here")

    return hook


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
@pytest.mark.parametrize("share", [0, 0.3, 0.7, 1])
def test_the_teacher_is_unchanged_by_a_prune_that_is_interrupted(share, error):
    teacher = particular_teacher()
    number = 1 + int(share * (forward_passes_of_a_prune() - 1))
    teacher.bert.encoder.layer[2].register_forward_hook(interrupt_at(number, error))
    before, pruner = everything_of(teacher), KPruner(teacher)
    with pytest.raises(error, match="stop here"):
        pruner.prune(settings(), batches_of(SAMPLES))
    assert_unchanged(teacher, before)
    assert pruner.model is teacher and pruner.result is None and pruner.config is None


def test_a_collator_that_fails_in_the_middle_changes_nothing():
    def collator(samples, calls=[]):  # noqa: B006
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("a bad sample")
        return pad([sample["input_ids"] for sample in samples])

    teacher = particular_teacher()
    before, pruner = everything_of(teacher), KPruner(teacher, tiny_tokenizer())
    with pytest.raises(RuntimeError, match="a bad sample"):
        pruner.prune(settings(), texts_of(SAMPLES), data_collator=collator, batch_size=5)
    assert_unchanged(teacher, before)
    assert pruner.model is teacher and pruner.result is None


def test_after_a_failure_the_last_success_stays():
    pruner = prune(tiny_model())
    model, result, config = pruner.model, pruner.result, pruner.config
    pruner.teacher.bert.encoder.layer[2].register_forward_hook(interrupt_at(4, KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        pruner.prune(settings(compression_rate=0.8), batches_of(SAMPLES))
    assert (pruner.model, pruner.result, pruner.config) == (model, result, config)


@pytest.mark.parametrize("option", ["output_hidden_states", "output_attentions", "return_dict"])
def test_options_of_the_models_outputs_do_not_matter(option):
    teacher = tiny_model(attn_implementation="eager")
    expected = prune(teacher).result.kept
    setattr(teacher.config, option, option != "return_dict")
    assert prune(teacher).result.kept == expected


# Saved and loaded


@pytest.mark.parametrize("family", FAMILIES)
def test_saved_equals_loaded_in_the_same_process(family, tmp_path):
    pruner = prune(tiny_model(family))
    pruner.save_pretrained(tmp_path / "out")
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    assert type(loaded) is type(pruner.model)
    assert_same_outputs(pruner.model, loaded, pad(SAMPLES))


def test_the_folder_holds_all_that_is_needed(tmp_path):
    folder = tmp_path / "new" / "out"
    pruner = KPruner(tiny_model(), tiny_tokenizer())
    result = pruner.prune(settings(lambda_rep=0.3), texts_of(SAMPLES), save_directory=folder)
    expected = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    expected |= {"modeling_kprune.py", "kprune_map.py", "kprune_config.json", "kprune_report.json", "README.md"}
    assert {path.name for path in folder.iterdir()} == expected
    assert [path.name for path in folder.parent.iterdir()] == ["out"]
    assert folder.stat().st_mode & 0o777 == 0o755
    settings_file = json.loads((folder / "kprune_config.json").read_text())
    assert settings_file == pruner.config.to_dict() and settings_file["lambda_rep"] == 0.3
    report = json.loads((folder / "kprune_report.json").read_text())
    assert report == result.to_dict() | {"arguments": report["arguments"]}
    assert [{name: entry[name] for name in ("layer", "kind", "kept", "total")} for entry in report["sublayers"]] == (
        result.kept
    )
    assert (report["parameters_before"], report["flops_removed"]) == (result.parameters_before, result.flops_removed)


def test_the_config_of_the_model_tells_what_was_kept():
    pruner = prune(tiny_model("distilbert"))
    entries = [
        entry | {"kept": parse_units(entry["kept"], entry["total"])} for entry in pruner.model.config.kprune["kept"]
    ]
    assert entries == pruner.result.kept


def test_what_was_kept_is_told_from_bottom_to_top():
    kept = prune(tiny_model()).result.kept
    assert [(entry["layer"], entry["kind"]) for entry in kept] == [
        (layer, kind) for layer in range(LAYERS) for kind in ("attention", "ffn")
    ]
    for entry in kept:
        assert list(entry) == ["layer", "kind", "kept", "total"]
        assert entry["total"] == TOTALS[entry["kind"]]
        assert entry["kept"] == sorted(set(entry["kept"])) and set(entry["kept"]) <= set(range(entry["total"]))
        assert all(type(unit) is int for unit in entry["kept"])


def test_the_result_prints_as_a_table():
    result = prune(tiny_model()).result
    header, *rows, total, lost = str(result).splitlines()
    assert header.split() == ["layer", "kind", "kept", "MFLOPs", "parameters", "error", "seconds"]
    for row, entry in zip(rows, result.kept, strict=True):
        assert f"{len(entry['kept'])} of {entry['total']}" in row
        assert row.split()[:2] == [str(entry["layer"]), entry["kind"]]
    assert lost == "What was lost was not measured: no calibration data was held out."
    assert f"{result.flops_removed:.2%}" in total and f"{result.parameters_after:,}" in total
    assert len({len(line) for line in [header, *rows]}) == 1


@pytest.mark.parametrize("rates", [(0.3, 0.5), (0.95, 0.5), (0.5, 0.999), (0.95, 0)])
def test_a_saved_model_can_be_pruned_further(rates, tmp_path):
    dense = tiny_model()
    once = prune(dense, compression_rate=rates[0])
    once.save_pretrained(tmp_path / "once")
    again = KPruner.from_pretrained(tmp_path / "once")
    result = again.prune(settings(compression_rate=rates[1]), batches_of(SAMPLES))
    assert result.flops_removed >= rates[1]
    entries = list(zip(once.model.config.kprune["kept"], again.model.config.kprune["kept"], result.kept, strict=True))
    for before, after, pruned in entries:
        earlier = parse_units(before["kept"], before["total"])
        assert parse_units(after["kept"], after["total"]) == [earlier[unit] for unit in pruned["kept"]]
        assert pruned["total"] == len(earlier) and after["total"] == TOTALS[after["kind"]]
    again.save_pretrained(tmp_path / "again")
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "again")
    assert_same_outputs(again.model, loaded, pad(SAMPLES))
    assert_masked_dense_equals(dense, again.model)


# The output folder


def untouchable():
    """Calibration data that must not be read."""
    raise AssertionError("work has begun")
    yield


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_an_output_folder_in_use_is_refused_before_any_work(kind, tmp_path):
    place = tmp_path / "out"
    if kind == "folder":
        place.mkdir()
    content = place / "mine.txt" if kind == "folder" else place
    content.write_text("precious")
    pruner = KPruner(tiny_model(), tiny_tokenizer())
    with pytest.raises(FileExistsError, match=r"new or empty.*out"):
        pruner.prune(settings(), untouchable(), save_directory=place)
    pruner.prune(settings(), batches_of(SAMPLES))
    with pytest.raises(FileExistsError, match="new or empty"):
        pruner.save_pretrained(place)
    assert content.read_text() == "precious"
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == [content.name]


@pytest.mark.parametrize("case", ["file as parent", "working folder", "link"])
def test_an_output_folder_that_cannot_be_made_is_refused_before_any_work_or_is_made(case, tmp_path, monkeypatch):
    """Whatever cannot be written must be told at once; a folder that is empty is fine, however it is named."""
    (tmp_path / "file").write_text("precious")
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    monkeypatch.chdir(tmp_path / "empty")
    place = {"file as parent": tmp_path / "file" / "out", "working folder": ".", "link": tmp_path / "link"}[case]
    pruner = KPruner(tiny_model(), tiny_tokenizer())
    try:
        pruner.prune(settings(), batches_of(SAMPLES), save_directory=place)
    except OSError:
        assert pruner.result is None, "the folder was refused only when the work was done"
    else:
        assert (tmp_path / "empty" / "model.safetensors").is_file()


def test_an_empty_folder_is_used(tmp_path):
    place = tmp_path / "out"
    place.mkdir()
    prune(tiny_model()).save_pretrained(place)
    assert (place / "model.safetensors").is_file()


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
@pytest.mark.parametrize("exists", [True, False])
def test_a_save_that_fails_leaves_nothing_behind(error, exists, tmp_path, monkeypatch):
    def fail(folder, *report):
        assert (folder / "model.safetensors").is_file()
        raise error("disk full")

    monkeypatch.setattr(publishing, "write_report", fail)
    place = tmp_path / "out"
    if exists:
        place.mkdir()
    pruner = KPruner(tiny_model(), tiny_tokenizer())
    with pytest.raises(error, match="disk full"):
        pruner.prune(settings(), batches_of(SAMPLES), save_directory=place)
    assert list(tmp_path.rglob("*")) == ([place] if exists else [])
    monkeypatch.undo()
    pruner.save_pretrained(place)
    assert (place / "kprune_report.json").is_file()


def test_a_prune_that_fails_writes_nothing(tmp_path):
    teacher = tiny_model()
    teacher.bert.encoder.layer[2].register_forward_hook(interrupt_at(12, KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        KPruner(teacher).prune(settings(), batches_of(SAMPLES), save_directory=tmp_path / "new" / "out")
    assert not list(tmp_path.iterdir())


def test_there_is_nothing_to_save_or_push_before_a_prune(tmp_path, network_free_hub):
    pruner = KPruner(tiny_model())
    with pytest.raises(ValueError, match="Call `prune` first"):
        pruner.save_pretrained(tmp_path / "out")
    with pytest.raises(ValueError, match="Call `prune` first"):
        pruner.push_to_hub("name")
    assert not list(tmp_path.iterdir()) and not network_free_hub


def test_push_to_hub_uploads_what_is_saved(tmp_path, network_free_hub):
    pruner = prune(tiny_model())
    pruner.save_pretrained(tmp_path / "out")
    address = pruner.push_to_hub("name", token="secret", private=True, commit_message="Pruned")
    assert address == "https://hub.invalid/commit/1"
    assert network_free_hub == [
        ("token", "secret"),
        ("create_repo", "name", {"private": True, "exist_ok": True}),
        ("token", "secret"),
        (
            "upload_folder",
            sorted(path.name for path in (tmp_path / "out").iterdir()),
            {"repo_id": "me/name", "commit_message": "Pruned"},
        ),
    ]


# Loading what is to be pruned


def test_the_pruner_is_an_optimum_pruner_and_takes_models_and_paths(tmp_path):
    save_tiny(tmp_path)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    pruners = [KPruner(loaded), KPruner.from_pretrained(loaded), KPruner.from_pretrained(tmp_path)]
    pruners.append(KPruner.from_pretrained(str(tmp_path), task="text-classification", dtype="float32"))
    for pruner in pruners:
        assert isinstance(pruner, OptimumPruner) and pruner.task.name == "text-classification"
        assert same_state(pruner.teacher, loaded) and pruner.model is pruner.teacher
    assert pruners[2].processing_class is not None and pruners[0].processing_class is None
    with pytest.raises(ValueError, match="dtype"):
        KPruner.from_pretrained(loaded, dtype="float32")


@pytest.mark.parametrize("mistake", ["empty", "no weights", "broken weights", "weights of the pruned model"])
def test_a_folder_that_holds_no_whole_model_is_told(mistake, tmp_path):
    save_tiny(tmp_path / "dense")
    folder, weights = tmp_path / "dense", tmp_path / "dense" / "model.safetensors"
    message = r"dense'.*could not be loaded.*saved with its config\.json"
    if mistake == "empty":
        folder, message = tmp_path / "empty", r"empty'.*no config\.json.*`save_pretrained`"
        folder.mkdir()
    elif mistake == "no weights":
        weights.unlink()
    elif mistake == "broken weights":
        weights.write_bytes(b"broken")
    else:
        prune(tiny_model()).save_pretrained(tmp_path / "pruned")
        weights.write_bytes((tmp_path / "pruned" / "model.safetensors").read_bytes())
    with pytest.raises(OSError, match=message):
        KPruner.from_pretrained(folder)


def test_arguments_of_loading_reach_the_model(tmp_path):
    save_tiny(tmp_path)
    pruner = KPruner.from_pretrained(tmp_path, dtype=torch.bfloat16, attn_implementation="eager")
    assert pruner.teacher.dtype == torch.bfloat16 and pruner.teacher.config._attn_implementation == "eager"


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


@pytest.mark.parametrize("model_class", [BertForNextSentencePrediction, BertLMHeadModel])
def test_a_head_without_a_task_is_refused(model_class):
    with pytest.raises(ValueError, match=rf"{model_class.__name__}.*ForSequenceClassification"):
        KPruner(model_class(tiny_model().config))


def test_a_freshly_initialised_head_warns(tmp_path, caplog):
    save_tiny(tmp_path, tiny_model(head="base model"))
    pruner = KPruner.from_pretrained(tmp_path, task="text-classification")
    assert pruner.task.name == "text-classification"
    (warning,) = [record.getMessage() for record in caplog.records if record.name.startswith("optimum_kprune")]
    assert "classifier.weight" in warning and "freshly initialised" in warning and "Fine-tune it" in warning


def test_a_head_of_another_size_than_that_of_the_checkpoint_warns(tmp_path, caplog):
    save_tiny(tmp_path)
    KPruner.from_pretrained(tmp_path, num_labels=7, ignore_mismatched_sizes=True)
    assert "freshly initialised" in caplog.text and "classifier.weight" in caplog.text


@pytest.mark.parametrize("head", ["single label", "base model"])
def test_a_head_that_is_complete_does_not_warn(head, tmp_path, caplog):
    save_tiny(tmp_path, tiny_model(head=head))
    KPruner.from_pretrained(tmp_path)
    assert "freshly initialised" not in caplog.text
    # Encoders are published without the pooler.
    model = tiny_model(head="base model")
    weights = {name: tensor for name, tensor in model.state_dict().items() if "pooler" not in name}
    model.save_pretrained(tmp_path / "without", state_dict=weights)
    KPruner.from_pretrained(tmp_path / "without")
    assert "freshly initialised" not in caplog.text


# The tokenizer


@pytest.mark.parametrize("family", FAMILIES)
def test_a_folder_without_a_tokenizer_warns_and_gives_none(family, tmp_path, caplog):
    """transformers makes a tokenizer without words, which turns every text into unknown tokens."""
    save_tiny(tmp_path, tiny_model(family), tokenizer=False)
    pruner = KPruner.from_pretrained(tmp_path)
    assert pruner.processing_class is None
    assert "No tokenizer" in caplog.text and "processing_class" in caplog.text


def test_texts_without_a_tokenizer_are_refused_and_tokens_are_not(tmp_path):
    pruner = KPruner(tiny_model())
    with pytest.raises(ValueError, match=r"`processing_class` must be a tokenizer.*Pass processing_class="):
        pruner.prune(settings(), texts_of(SAMPLES))
    same_length = Dataset.from_dict({"input_ids": torch.randint(5, 100, (30, 8)).tolist()})
    for data in (same_length, batches_of(SAMPLES)):
        pruner.prune(settings(), data)
        assert_budget_is_met_from_below(pruner.result, 0.5)
    pruner.save_pretrained(tmp_path / "out")
    assert not list((tmp_path / "out").glob("tokenizer*"))


def test_a_tokenizer_that_is_given_is_used_and_saved(tmp_path):
    save_tiny(tmp_path / "dense", tokenizer=False)
    pruner = KPruner.from_pretrained(tmp_path / "dense", processing_class=tiny_tokenizer())
    pruner.prune(settings(), texts_of(SAMPLES), save_directory=tmp_path / "out")
    assert KPruner.from_pretrained(tmp_path / "out").processing_class("w1 w2")["input_ids"] == [0, 6, 7, 2]


# Other types of models


@pytest.fixture
def own_adapters(monkeypatch):
    """Adapters that are registered in a test are forgotten behind it."""
    monkeypatch.setattr(adapters, "_ADAPTERS", dict(adapters._ADAPTERS))


def test_an_unsupported_model_is_refused_with_the_way_out():
    with pytest.raises(ValueError) as caught:
        KPruner(tiny_model("ernie"))
    message = str(caught.value)
    assert "'ernie'" in message and ", ".join(supported_model_types()) in message and "register_adapter" in message


def test_an_adapter_can_be_registered_from_outside(own_adapters, tmp_path):
    """ERNIE is named like BERT: one row makes it prunable, loadable and savable."""
    assert "ernie" not in supported_model_types()
    register_adapter("ernie", BERT)
    assert "ernie" in supported_model_types()
    dense = tiny_model("ernie")
    pruner = prune(dense)
    assert_budget_is_met_from_below(pruner.result, 0.5)
    assert_masked_dense_equals(dense, pruner.model)
    pruner.save_pretrained(tmp_path / "out")
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    assert_same_outputs(pruner.model, loaded, pad(SAMPLES))


class ToyConfig(BertConfig):
    model_type = "toy"


class ToyForSequenceClassification(BertForSequenceClassification):
    config_class = ToyConfig


def test_a_model_type_that_transformers_does_not_have_is_pruned_and_loaded_by_its_class(own_adapters, tmp_path):
    register_adapter("toy", BERT)
    fields = {name: value for name, value in tiny_model().config.to_dict().items() if name != "model_type"}
    pruner = prune(ToyForSequenceClassification(ToyConfig(**fields)))
    assert_budget_is_met_from_below(pruner.result, 0.5)
    pruner.save_pretrained(tmp_path / "out")
    loaded = pruned_class(ToyForSequenceClassification).from_pretrained(tmp_path / "out")
    assert_same_outputs(pruner.model, loaded, pad(SAMPLES))


MODERN = EncoderAdapter(
    blocks="layers",
    sublayers=(
        SublayerAdapter("attention", {"attn.Wqkv": 3}, "attn.Wo", "attn_norm", "attn", returns_tuple=True),
        SublayerAdapter("ffn", {"mlp.Wi": 2}, "mlp.Wo", "mlp_norm", "mlp"),
    ),
)


@pytest.mark.parametrize("rate", [0.5, 0.95])
def test_an_adapter_can_tell_of_norms_before_fused_projections_gates_and_no_biases(rate, own_adapters):
    register_adapter("modernbert", MODERN)
    dense = tiny_model("modernbert", cls_token_id=0, sep_token_id=2)
    pruner = prune(dense, compression_rate=rate)
    length = pruner.result.sequence_length
    gated = [6 * length * HIDDEN * NEURONS if entry["kind"] == "ffn" else None for entry in pruner.result.kept]
    for entry, flops in zip(pruner.result.sublayers, gated, strict=True):
        assert flops is None or entry.flops_before == flops
    assert rate <= pruner.result.flops_removed < rate + 0.1
    assert_masked_dense_equals(dense, pruner.model)


def test_an_adapter_is_not_replaced_by_another(own_adapters):
    register_adapter("bert", BERT)
    with pytest.raises(ValueError, match="'bert' has an adapter already"):
        register_adapter("bert", MODERN)


def test_a_rate_that_was_set_later_is_validated_too():
    config = settings()
    config.compression_rate = 1.5
    with pytest.raises(ValueError, match=r"'compression_rate'.*Got 1\.5"):
        KPruner(tiny_model()).prune(config, batches_of(SAMPLES))


# Values that are not finite, and too little data


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_named(value):
    model = tiny_model()
    model.bert.encoder.layer[1].output.dense.weight.data[3, 4] = value
    with pytest.raises(ValueError, match=r"not finite: bert\.encoder\.layer\.1\.output\.dense\.weight\."):
        KPruner(model).prune(settings(), untouchable())


@pytest.mark.parametrize("knowledge", ["fisher", "divergence"])
@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("layer.0.attention.self.value", "layer 0 attention"),
        ("layer.1.attention.self.value", "layer 1 attention"),
        ("layer.1.intermediate.dense", "layer 1 ffn"),
    ],
)
def test_the_sublayer_whose_activations_are_not_finite_is_named(module, name, knowledge):
    model = tiny_model()
    model.bert.encoder.get_submodule(module).weight.data *= 1e38
    pruner = KPruner(model)
    with pytest.raises(ValueError, match=rf"activations of {name} are not finite.*dtype=torch\.float32"):
        pruner.prune(settings(knowledge=knowledge), batches_of(SAMPLES))
    assert pruner.model is model


@pytest.mark.parametrize(
    ("count", "said"),
    [(3, "expect a poor model"), (24, "the fit is loose"), (100, None)],
)
def test_few_tokens_warn(count, said, caplog):
    samples = ragged_samples(count)
    prune(tiny_model(), batches_of(samples))
    messages = [record.getMessage() for record in caplog.records if "tokens, but" in record.getMessage()]
    assert len(messages) == (said is not None)
    tokens = sum(map(len, samples))
    for message in messages:
        assert f"has {tokens} tokens, but the widest sublayer has {NEURONS} features" in message and said in message
        assert f"{10 * NEURONS} tokens or more" in message


@pytest.mark.parametrize("data", [[], iter([]), Dataset.from_dict({"text": ["w1"]}).select([])])
def test_no_data_is_refused(data):
    pruner = KPruner(tiny_model(), tiny_tokenizer())
    with pytest.raises(ValueError, match="must hold"):
        pruner.prune(settings(), data)
    assert pruner.model is pruner.teacher


def test_a_model_without_layers_is_refused_at_once():
    with pytest.raises(ValueError, match="has no layers"):
        KPruner(tiny_model(num_hidden_layers=0))


def test_a_feed_forward_in_chunks_is_refused_at_once():
    with pytest.raises(ValueError, match="chunk_size_feed_forward=0"):
        KPruner(tiny_model(chunk_size_feed_forward=1))


def test_a_prune_in_inference_mode_is_like_any_other():
    texts = texts_of(ragged_samples())
    config = KPruneConfig(compression_rate=0.5, num_tokens=None)
    expected = KPruner(tiny_model(), tiny_tokenizer()).prune(config, texts).kept
    model = tiny_model()
    with torch.inference_mode():
        assert KPruner(model, tiny_tokenizer()).prune(config, texts).kept == expected
