"""Models that do not fit the device: offloaded by accelerate to disk or CPU memory, and pruned where they are."""

import threading
import weakref

import accelerate
import pytest
import torch
from accelerate import cpu_offload, cpu_offload_with_hook
from accelerate.hooks import remove_hook_from_submodules
from accelerate.utils.offload import OffloadedWeightsLoader
from datasets import Dataset
from packaging.version import Version
from repeated import repeated
from tiny import (
    FAMILIES,
    outputs_of,
    pad,
    ragged_samples,
    same_state,
    samples_for,
    save_tiny,
    sublayers_of,
    tiny_model,
    tiny_tokenizer,
)
from transformers import Trainer, TrainingArguments

from optimum_kprune import KPruneConfig, KPruner
from optimum_kprune.encoder.hooks import observed_units
from optimum_kprune.encoder.offloading import (
    execution_device,
    named_tensors,
    own_weights,
    sharing_copy,
    weights_let_go,
)
from optimum_kprune.encoder.tasks import task_of

pytestmark = pytest.mark.slow

LAYERS = 9


def settings(**overrides):
    return KPruneConfig(**{"compression_rate": 0.6, "neuron_multiple": 1, **overrides})


def offloaded(model, folder, device_map=None, **options):
    """The pruner of a model that was saved and loaded with its weights left on disk, or as the map says."""
    if device_map is None and Version(accelerate.__version__) < Version("1.15"):
        pytest.skip("accelerate loads no model wholly onto the disk before 1.15")
    places = {"device_map": device_map or {"": "disk"}, "offload_folder": folder / "offload"}
    return KPruner.from_pretrained(save_tiny(folder / "dense", model), task=task_of(model).name, **places, **options)


def half_on_disk(model):
    """A device map with the lower blocks in memory and the upper ones on disk."""
    blocks = [f"bert.encoder.layer.{index}" for index in range(3)]
    return {"bert.embeddings": "cpu", "bert.pooler": "disk", "classifier": "cpu"} | dict(
        zip(blocks, ("cpu", "disk", "disk"), strict=True)
    )


def devices_of(model):
    return {name: parameter.device.type for name, parameter in model.named_parameters()}


class Loads:
    """Counts the bytes of weights loaded from disk that are still in memory, whoever holds them."""

    def __init__(self, monkeypatch):
        self.now = self.most = 0
        load = OffloadedWeightsLoader.__getitem__

        def counted(loader, name):
            array = load(loader, name).numpy().copy()
            self.now += array.nbytes
            self.most = max(self.most, self.now)
            weakref.finalize(array, self.let_go, array.nbytes)
            return torch.from_numpy(array)

        monkeypatch.setattr(OffloadedWeightsLoader, "__getitem__", counted)

    def let_go(self, count):
        self.now -= count


# The same result


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_on_disk_is_pruned_as_one_in_memory(family, tmp_path):
    model = tiny_model(family)
    batches = [pad(samples_for(model, 16))]
    plain, pruner = KPruner(model), offloaded(model, tmp_path)
    assert set(devices_of(pruner.teacher).values()) == {"meta"}
    before = {name: tensor.clone() for name, tensor in named_tensors(pruner.teacher)}
    expected, result = plain.prune(settings(), batches), pruner.prune(settings(), batches)
    assert [sublayer.kept for sublayer in result.sublayers] == [sublayer.kept for sublayer in expected.sublayers]
    assert (result.parameters_before, result.parameters_after) == (
        expected.parameters_before,
        expected.parameters_after,
    )
    assert same_state(pruner.model, plain.model)
    # The teacher is as it was: on disk, with the same weights, and it runs.
    assert set(devices_of(pruner.teacher).values()) == {"meta"}
    assert all(torch.equal(tensor, before[name]) for name, tensor in named_tensors(pruner.teacher))
    batch = pad(samples_for(model)[:4])
    assert all(map(torch.equal, outputs_of(pruner.teacher, batch), outputs_of(model, batch)))


@pytest.mark.parametrize("head", ["question answering", "masked language model", "multiple choice", "base model"])
def test_other_tasks_can_be_pruned_on_disk(head, tmp_path):
    model = tiny_model(head=head)
    batches = [pad(samples_for(model, 16))]
    plain, pruner = KPruner(model), offloaded(model, tmp_path)
    plain.prune(settings(), batches)
    pruner.prune(settings(), batches)
    assert same_state(pruner.model, plain.model)


@pytest.mark.parametrize(
    "options",
    [
        dict(knowledge="divergence", gradient="batch", correct_inputs=False),
        dict(measure_precision="bfloat16"),
        dict(compression_rate=0.97, memory_budget=0),
    ],
    ids=str,
)
def test_every_setting_gives_the_same(options, tmp_path):
    model = tiny_model()
    batches = [pad(samples_for(model, 16))]
    plain, pruner = KPruner(model), offloaded(model, tmp_path, half_on_disk(model))
    plain.prune(settings(**options), batches)
    pruner.prune(settings(**options), batches)
    assert same_state(pruner.model, plain.model)


def test_a_model_in_half_precision_can_be_pruned_on_disk(tmp_path):
    model = tiny_model().bfloat16()
    batches = [pad(samples_for(model, 16))]
    plain, pruner = KPruner(model), offloaded(model, tmp_path)
    plain.prune(settings(), batches)
    pruner.prune(settings(), batches)
    assert same_state(pruner.model, plain.model) and pruner.model.dtype == torch.bfloat16


def test_a_model_offloaded_to_memory_can_be_pruned(tmp_path):
    model = tiny_model()
    batches = [pad(samples_for(model, 16))]
    plain = KPruner(tiny_model())
    plain.prune(settings(), batches)
    pruner = KPruner(cpu_offload(model, torch.device("cpu"), offload_buffers=True))
    assert set(devices_of(model).values()) == {"meta"} and execution_device(model) == torch.device("cpu")
    pruner.prune(settings(), batches)
    assert same_state(pruner.model, plain.model)
    remove_hook_from_submodules(model)
    assert same_state(model, plain.teacher)


def test_a_sweep_on_disk_equals_one_in_memory(tmp_path):
    model = tiny_model()
    batches = [pad(samples_for(model, 16))]
    expected = KPruner(model).sweep([0.3, 0.7], settings(), batches)
    for found, plain in zip(offloaded(model, tmp_path).sweep([0.3, 0.7], settings(), batches), expected, strict=True):
        assert same_state(found.model, plain.model)


# What comes out


def test_the_pruned_model_is_saved_loaded_and_pruned_again_on_disk(tmp_path):
    model = tiny_model()
    batches = [pad(samples_for(model, 16))]
    pruner = offloaded(model, tmp_path, half_on_disk(model))
    pruner.prune(settings(compression_rate=0.3), batches)
    pruner.save_pretrained(tmp_path / "once", measure_latency=True)
    assert set(devices_of(pruner.model).values()) == {"cpu"}
    whole = KPruner.from_pretrained(tmp_path / "once")
    assert same_state(whole.teacher, pruner.model)
    again = KPruner.from_pretrained(tmp_path / "once", device_map={"": "disk"}, offload_folder=tmp_path / "again")
    for each in (whole, again):
        each.prune(settings(compression_rate=0.9), batches)
    assert same_state(again.model, whole.model)


@pytest.mark.parametrize("device_map", [{"": "disk"}, half_on_disk(tiny_model())])
def test_a_teacher_on_disk_is_evaluated_as_one_in_memory(tmp_path, device_map):
    rows = Dataset.from_list([{"input_ids": ids, "label": index % 3} for index, ids in enumerate(ragged_samples(12))])
    args = TrainingArguments(tmp_path / "run", report_to="none", use_cpu=True, disable_tqdm=True)
    model = tiny_model()
    losses = []
    for teacher in (model, offloaded(model, tmp_path, device_map).teacher):
        trainer = Trainer(teacher, args, train_dataset=rows, eval_dataset=rows, processing_class=tiny_tokenizer())
        pruner = KPruner.from_trainer(trainer)
        pruner.prune(settings())
        losses.append([scores["eval_loss"] for scores in pruner.evaluate().values()])
    assert losses[0] == losses[1]


# Memory


def test_no_more_than_a_few_sublayers_are_in_memory(tmp_path, monkeypatch):
    model = tiny_model(num_hidden_layers=LAYERS)
    dense = sum(parameter.nbytes for parameter in model.parameters())
    block = sum(parameter.nbytes for parameter in model.bert.encoder.layer[0].parameters())
    pruner, loads = offloaded(model, tmp_path), Loads(monkeypatch)
    pruner.prune(settings(compression_rate=0.8), [pad(samples_for(model, 12))])
    pruned = sum(parameter.nbytes for parameter in pruner.model.parameters())
    # One block is run backwards, and one is pruned, beside all that was pruned so far.
    assert 0 < loads.most <= 1.1 * block
    assert loads.most + block + pruned < dense / 2
    assert loads.now == 0


def test_a_backward_pass_through_a_model_on_disk_would_hold_it_whole(tmp_path, monkeypatch):
    """What the count of the test above sees where nothing is done about it."""
    model = tiny_model(num_hidden_layers=LAYERS)
    pruner, loads = offloaded(model, tmp_path), Loads(monkeypatch)
    batch = pad(samples_for(model)[:4])
    outputs = pruner.teacher(**batch)
    encoder = sum(parameter.nbytes for parameter in model.bert.encoder.parameters() if parameter.dim() > 1)
    assert loads.now >= encoder
    del outputs
    assert loads.now == 0


def test_a_student_shares_the_weights_until_a_block_gets_its_own(tmp_path):
    model = tiny_model()
    teacher = offloaded(model, tmp_path, half_on_disk(model)).teacher
    student = sharing_copy(teacher)
    assert devices_of(student) == devices_of(teacher)
    pairs = zip(student.parameters(), teacher.parameters(), strict=True)
    assert all(one.data_ptr() == other.data_ptr() and one is not other for one, other in pairs)
    assert not any(weight.requires_grad for weight in student.parameters())
    assert all(weight.requires_grad for weight in teacher.parameters())
    before = {name: tensor.clone() for name, tensor in named_tensors(teacher)}
    for layer in (0, 2):
        block = student.bert.encoder.layer[layer]
        with own_weights(block), torch.no_grad():
            assert set(devices_of(block).values()) == {"cpu"}
            for weight in block.parameters():
                weight += 1
    assert set(devices_of(student.bert.encoder.layer).values()) == {"meta"}
    for name, tensor in named_tensors(student):
        change = 1 if ".layer.0." in name or ".layer.2." in name else 0
        assert torch.equal(tensor, before[name] + change)
    assert all(torch.equal(tensor, before[name]) for name, tensor in named_tensors(teacher))


def test_one_model_on_disk_is_pruned_and_used_in_several_threads(tmp_path):
    """Each tree loads weights of its own; tied ones would be taken away from the others."""
    model = tiny_model(head="masked language model")
    batch = pad(samples_for(model)[:4])
    pruner = offloaded(model, tmp_path)
    teacher, expected = pruner.teacher, outputs_of(pruner.teacher, batch)
    found = {}

    def pruned_on(teacher):
        one = KPruner(teacher, tiny_tokenizer())
        one.prune(settings(), [pad(samples_for(model))])
        return one.model

    def prune(name):
        found[name] = pruned_on(teacher)

    alone = pruned_on(teacher)
    threads = [threading.Thread(target=prune, args=[name]) for name in "ab"]
    with repeated(lambda: torch.equal(outputs_of(teacher, batch)[0], expected[0])) as served:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert all(same_state(one, alone) for one in found.values()) and len(found) == 2
    assert set(served) == {True}


# Errors


def test_weights_on_disk_that_are_not_finite_are_named(tmp_path):
    model = tiny_model()
    model.bert.encoder.layer[1].output.dense.weight.data[0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"not finite: bert\.encoder\.layer\.1\.output\.dense\.weight\."):
        offloaded(model, tmp_path).prune(settings(), [pad(samples_for(model, 16))])


def test_weights_that_another_hook_moves_are_refused():
    model, _ = cpu_offload_with_hook(tiny_model(), torch.device("cpu"))
    with pytest.raises(ValueError, match="CpuOffload"):
        KPruner(model)


def test_quantized_weights_are_refused():
    model = tiny_model()
    model.hf_quantizer = object()
    with pytest.raises(ValueError, match="Quantized weights cannot be pruned"):
        KPruner(model)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_copy_shares_the_weights_and_computes_the_same(family):
    model = tiny_model(family)
    copied = sharing_copy(model)
    assert model.training and not copied.training
    assert not {id(module) for module in model.modules()} & {id(module) for module in copied.modules()}
    pairs = zip(model.parameters(), copied.parameters(), strict=True)
    assert all(one.data_ptr() == other.data_ptr() and one is not other for one, other in pairs)
    batch = pad(ragged_samples())
    assert all(map(torch.equal, outputs_of(model, batch), outputs_of(copied, batch)))


# Backward passes through offloaded blocks


def test_blocks_that_are_run_again_let_go_of_their_weights():
    model = sharing_copy(cpu_offload(tiny_model(), torch.device("cpu")))
    batch, blocks = pad(samples_for(model)[:4]), model.bert.encoder.layer
    seen = []
    watched = observed_units(sublayers_of(model), lambda *_: None, lambda index, gradients: seen.append(index))
    with torch.enable_grad(), watched, weights_let_go(blocks[1:]):
        model(**batch).logits.sum().backward()
    assert sorted(seen) == list(range(2 * len(blocks)))
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
