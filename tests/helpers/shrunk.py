"""Dense models with given units masked, and the same models shrunk, without a prune."""

import copy

import torch
from tiny import FAMILIES, assert_same_outputs, encoder_of, outputs_of
from transformers import AutoConfig
from transformers.models.auto import modeling_auto

from optimum_kprune.encoder.adapters import get_adapter
from optimum_kprune.encoder.config_field import kprune_field as field_of
from optimum_kprune.encoder.conversion import pruned_model_from
from optimum_kprune.encoder.registration import register_auto_classes
from optimum_kprune.encoder.unsharing import private_copy
from optimum_kprune.kprune_map import format_units
from optimum_kprune.kprune_shrink import shrink_sublayer
from optimum_kprune.result import SublayerResult

HEADS = ["", "ForSequenceClassification", "ForQuestionAnswering", "ForTokenClassification"]
HEADS += ["ForMaskedLM", "ForMultipleChoice"]
CASES = [(model_type, head) for model_type in FAMILIES for head in HEADS]
# Heads and neurons kept in each layer: some of both, no head, no neuron.
KEPT = [[0, 2], [3, 4, 5, 60]], [[], list(range(64))], [[0, 1, 2, 3], []]
TOTAL = (4, 64)


def dense_model(model_type="bert", head="ForSequenceClassification", **options):
    sizes = dict(vocab_size=100, hidden_size=32, num_hidden_layers=3, num_attention_heads=4)
    sizes["num_labels"] = 2 if head == "ForQuestionAnswering" else 3
    sizes["hidden_dim" if model_type == "distilbert" else "intermediate_size"] = 64
    config = AutoConfig.for_model(model_type, **sizes, max_position_embeddings=40, **options)
    torch.manual_seed(0)
    model = getattr(modeling_auto, f"AutoModel{head}").from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return model


def sublayers(model, kept=KEPT):
    """The (block, sublayer, kept, total, layer) of each sublayer of a dense model."""
    adapter = get_adapter(model.config.model_type).to_dict()
    blocks = model.base_model.get_submodule(adapter["blocks"])
    for layer, block in enumerate(blocks):
        for position, sublayer in enumerate(adapter["sublayers"]):
            yield block, sublayer, kept[layer][position], TOTAL[position], layer


def kprune_field(model, kept=KEPT):
    entries = [
        {"layer": layer, "kind": sublayer["kind"], "kept": format_units(units), "total": total}
        for _, sublayer, units, total, layer in sublayers(model, kept)
    ]
    return {"adapter": get_adapter(model.config.model_type).to_dict(), "kept": entries}


def masked_model(model, kept=KEPT):
    masked = copy.deepcopy(model)
    for block, sublayer, units, total, _ in sublayers(masked, kept):
        weight = block.get_submodule(sublayer["output"]).weight
        mask = torch.zeros(total)
        mask[units] = 1
        weight.data *= mask.repeat_interleave(weight.shape[1] // total)
    return masked


def pruned_model(model, kept=KEPT, **told):
    """A copy without the other units; `told` are further entries of its config field."""
    register_auto_classes(model.config.model_type)
    shrunk = copy.deepcopy(model)
    for block, sublayer, units, total, _ in sublayers(shrunk, kept):
        shrink_sublayer(block, sublayer, units, total)
    return pruned_model_from(shrunk, kprune_field(model, kept) | told)


def batch_for(model):
    shape = (2, 3, 7) if "MultipleChoice" in type(model).__name__ else (2, 7)
    mask = torch.ones(shape, dtype=torch.long)
    mask[0, ..., 5:] = 0
    ids = torch.randint(5, 100, shape, generator=torch.Generator().manual_seed(1))
    return {"input_ids": ids, "attention_mask": mask}


def outputs(model):
    return outputs_of(model, batch_for(model))


def assert_same(first, second, tolerance=0.0):
    assert_same_outputs(first, second, batch_for(first), tolerance)


def load(folder, head="ForSequenceClassification", **options):
    return getattr(modeling_auto, f"AutoModel{head}").from_pretrained(folder, **options)


def shrunk_by_half(model):
    """A model of any family without every second unit, without a prune."""
    dense = encoder_of(model)
    copied = private_copy(dense)
    results = []
    for sublayer in copied.sublayers():
        kept = list(range(0, sublayer.units, 2))
        results.append(SublayerResult(sublayer.layer, sublayer.adapter.kind, kept, sublayer.units, 0, 0, 0, 0, 0))
        shrink_sublayer(sublayer.block, sublayer.adapter.to_dict(), kept, sublayer.units)
    return pruned_model_from(copied.pretrained, field_of(model, dense.adapter, results))
