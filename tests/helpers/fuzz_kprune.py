"""Random damage to saved pruned models: each is refused in one sentence, or loads as the model that it was.

As a script, `python tests/helpers/fuzz_kprune.py --cases 2600 --seed 1`, it prints a table of what became of all
cases; `test_hostile_folders` runs some hundreds.
"""

import argparse
import copy
import json
import logging
import random
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import torch
from safetensors.torch import load_file, save_file
from shrunk import TOTAL, pruned_model
from tiny import batches_of, outputs_of, pad, ragged_samples, tiny_model
from torch import nn
from transformers import AutoModelForSequenceClassification, PreTrainedConfig, PreTrainedModel
from transformers.utils import logging as transformers_logging

from optimum_kprune import KPruneConfig, KPruner, modeling_kprune

MODEL_TYPES = ("bert", "distilbert", "roberta")
# What the checksum does: it is that of the map before the damage, it is not there, as in folders of earlier versions,
# or whoever made the damage has computed it anew.
CHECKSUMS = ("as saved", "none", "made anew")
NAMES = ["", ".", "..", "x", "config", "__class__.x", "__class__.__base__.__base__._is_hf_initialized.x"]
NAMES += ["__class__.__base__.__base__.__bool__.x", "_modules", "_modules.x", "forward", "training", "dropout"]
NAMES += ["attention.self.config.__class__.__base__.__base__.auto_map.x", "attention.self.scaling", "__dict__.x"]
NAMES += ["attention", "attention.self", "attention.output.dense", "intermediate", "output", "output.dense", "ffn"]
NAMES += ["output.LayerNorm", "output.LayerNorm.eps", "ffn.lin1", "attention.q_lin", "é.\ud800", "a" * 100_000]
NAMES += ["a." * 10_000, "attention.self.__call__", "attention.self.attention_head_size", "attention.dim"]
VALUES = [None, True, False, 0, 1, -1, 2, 8, 10**30, 0.5, float("nan"), [], [1], {}, {"a": 1}, [[]], *NAMES]
UNITS = ["0-20000000", "0-9999999999999999999", "9" * 5000, "0-1,0-1", "1-0", "0-3", "0,2", "1,3", "0-63", "3-5,60"]
UNITS += ["-1", "٣", " 0", "0-", ",", "0-3," * 1000]
REFUSED, SIZES, SAME = (
    "refused in words",
    "other sizes, told by the note",
    "loads as it was, and can be pruned further",
)
FRESH_HEAD = "loads as it was, with a new head"
GOOD = {REFUSED, SIZES, SAME, FRESH_HEAD}
# What the errors of the package say.
WORDS = ("saved with the weights", "saved together", "saved with the config.json")


@dataclass
class Saved:
    """A saved pruned model: where it lies, what its files hold and what it gives for a batch."""

    folder: Path
    config: dict
    weights: dict[str, torch.Tensor]
    hidden: torch.Tensor
    logits: torch.Tensor


def saved_models(root):
    return [save(root / model_type, model_type) for model_type in MODEL_TYPES]


def save(folder, model_type):
    pruned_model(tiny_model(model_type), settings={"compression_rate": 0.5}).save_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    return Saved(folder, config, load_file(folder / "model.safetensors"), *seen(model))


def seen(model):
    """The hidden states and the logits of a model."""
    batch = pad(ragged_samples(3))
    return outputs_of(model.base_model, batch)[0], outputs_of(model, batch)[0]


def damaged_map(kprune, random):
    """A copy of a map in which one or two places were changed."""
    kprune = copy.deepcopy(kprune)
    for _ in range(random.choice((1, 1, 1, 2))):
        places = list(places_in(kprune, "kprune"))
        holder, key = random.choice(places)
        damage(holder, key, places, random)
    return kprune


def places_in(value, key):
    """Every (holder, key) inside of nested dictionaries and lists."""
    keys = value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        yield value, key
        yield from places_in(value[key], key)


def damage(holder, key, places, random):
    kind = random.choice(("value", "value", "remove", "other", "rename", "repeat", "units"))
    if kind == "remove":
        del holder[key]
    elif kind == "other":
        other, other_key = random.choice(places)
        holder[key] = copy.deepcopy(other[other_key])
    elif kind == "rename" and isinstance(holder, dict):
        holder[random.choice(NAMES)] = holder.pop(key)
    elif kind == "repeat" and isinstance(holder, list):
        holder.insert(random.randrange(len(holder) + 1), copy.deepcopy(holder[key]))
    elif kind == "units" or key == "kept":
        # A damage before this one may have removed them all.
        entry = random.choice([other for other, name in places if name == "total"] or [{}])
        entry[random.choice(("kept", "kept", "total"))] = random.choice([*UNITS, *TOTAL, 2, 32, 10**9])
    else:
        holder[key] = random.choice(VALUES)


def damaged_adapters(kprune):
    """Every name of the first block of sublayers, replaced by every odd name."""
    for name in NAMES:
        for index in range(2):
            for field in ("output", "residual", "bypass"):
                damaged = copy.deepcopy(kprune)
                damaged["adapter"]["sublayers"][index][field] = name
                yield damaged
            for field, value in (("inputs", 1), ("counts", "units"), ("counts", "features")):
                damaged = copy.deepcopy(kprune)
                damaged["adapter"]["sublayers"][index][field][name] = value
                yield damaged
        damaged = copy.deepcopy(kprune)
        damaged["adapter"]["blocks"] = name
        yield damaged


def damaged_weights(weights):
    """Every tensor dropped, renamed, of other types and, where that is another shape, transposed."""
    for name, tensor in weights.items():
        rest = {other: value for other, value in weights.items() if other != name}
        yield name, rest
        yield name, rest | {f"{name}_": tensor}
        yield name, rest | {name.replace(".weight", ".x").replace(".bias", ".x"): tensor}
        for dtype in (torch.int8, torch.int32, torch.int64, torch.bool, torch.uint8):
            yield name, rest | {name: (tensor * 10).to(dtype)}
        yield name, rest | {name: tensor[:-1].clone()}
        if tensor.dim() == 2 and tensor.shape[0] != tensor.shape[1]:
            yield name, rest | {name: tensor.T.contiguous()}


def outcome_of_map(saved, kprune, checksum):
    """Loads a folder with a damaged map."""
    if checksum == "none" and isinstance(kprune, dict):
        kprune.pop("checksum", None)
    write_config(saved, {**saved.config, "kprune": kprune})
    try:
        if checksum != "made anew":
            return outcome(saved)
        with mock.patch.object(modeling_kprune, "check_checksum"):
            return outcome(saved)
    finally:
        write_config(saved, saved.config)


def outcome_of_weights(saved, weights):
    """Loads a folder with damaged weights."""
    file = saved.folder / "model.safetensors"
    save_file(weights, file, {"format": "pt"})
    try:
        return outcome(saved)
    finally:
        save_file(saved.weights, file, {"format": "pt"})


def write_config(saved, config):
    (saved.folder / "config.json").write_text(json.dumps(config))


def outcome(saved):
    """What becomes of a folder: one of `GOOD`, or a description of what must not be."""
    try:
        model = AutoModelForSequenceClassification.from_pretrained(saved.folder)
    except ValueError as error:
        return REFUSED if any(words in str(error) for words in WORDS) else f"raw at load: {error!r}"[:100]
    except RuntimeError as error:
        told = any("saved together" in note for note in getattr(error, "__notes__", ()))
        return SIZES if told else f"raw at load: {error!r}"[:100]
    except Exception as error:
        return f"raw at load: {error!r}"[:100]
    try:
        hidden, logits = seen(model)
    except Exception as error:
        return f"forward raises: {error!r}"[:100]
    if not torch.equal(hidden, saved.hidden):
        return "other hidden states"
    if not torch.equal(logits, saved.logits):
        return FRESH_HEAD if has_fresh_head(model, saved) else "other logits"
    try:
        pruner = KPruner(model)
        pruner.prune(KPruneConfig(compression_rate=0.3, num_tokens=None), batches_of(ragged_samples(12)))
        seen(pruner.model)
    except Exception as error:
        return f"raw when pruned further: {error!r}"[:100]
    return SAME


def has_fresh_head(model, saved):
    state = model.state_dict()
    head = {name for name in state if "classifier" in name or "pooler" in name}
    return any(name not in saved.weights or not torch.equal(state[name], saved.weights[name]) for name in head)


class Classes:
    """The attributes of all classes that models are made of, to see whether loading a folder changes one."""

    def __init__(self, saved):
        self.classes = {nn.Module, PreTrainedConfig, PreTrainedModel}
        for one in saved:
            model = AutoModelForSequenceClassification.from_pretrained(one.folder)
            for value in (model.config, *model.modules()):
                self.classes.update(type(value).__mro__)
        self.before = self.attributes()

    def attributes(self):
        return {kind: {name: id(value) for name, value in vars(kind).items()} for kind in self.classes}

    def changed(self):
        now = self.attributes()
        return [kind.__name__ for kind in self.classes if now[kind] != self.before[kind]]


def cases_of_maps(saved, count, seed):
    """Yields (name of the table's row, a function that gives the outcome) of random damage."""
    generator = random.Random(seed)
    for index in range(count):
        one, checksum = saved[index % len(saved)], CHECKSUMS[index // len(saved) % len(CHECKSUMS)]
        kprune = damaged_map(one.config["kprune"], generator)
        if kprune != one.config["kprune"]:
            yield (
                f"map, checksum {checksum}",
                lambda one=one, kprune=kprune, checksum=checksum: outcome_of_map(one, kprune, checksum),
            )


def cases_of_adapters(saved):
    for one in saved:
        for checksum in CHECKSUMS:
            for kprune in damaged_adapters(one.config["kprune"]):
                yield (
                    f"adapter, checksum {checksum}",
                    lambda one=one, kprune=kprune, checksum=checksum: outcome_of_map(one, kprune, checksum),
                )


def cases_of_weights(saved):
    for one in saved:
        for _, weights in damaged_weights(one.weights):
            yield "weights", lambda one=one, weights=weights: outcome_of_weights(one, weights)


def run(saved, cases):
    """Counts (row, outcome) over cases; also that classes of the process were changed."""
    classes, counts = Classes(saved), Counter()
    for row, case in cases:
        result = case()
        if changed := classes.changed():
            result = f"classes changed: {changed}"
            classes.before = classes.attributes()
        counts[row, result] += 1
    return counts


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=2600, help="random damages of the map (default: 2600)")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    logging.disable(logging.CRITICAL)
    with tempfile.TemporaryDirectory() as root:
        saved = saved_models(Path(root))
        cases = [
            *cases_of_maps(saved, arguments.cases, arguments.seed),
            *cases_of_adapters(saved),
            *cases_of_weights(saved),
        ]
        counts = run(saved, cases)
    for (row, result), count in sorted(counts.items()):
        print(f"{row:<28} {result:<60} {count:>6}")
    wrong = sum(count for (_, result), count in counts.items() if result not in GOOD)
    print(f"{sum(counts.values())} cases, {wrong} wrong")


if __name__ == "__main__":
    main()
