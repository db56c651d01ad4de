"""Pruned encoders: the code that loads, runs and saves a model whose heads and neurons were removed by K-prune.

A copy of this file, of `kprune_map` and of `kprune_shrink` is saved with every pruned model, so that
`trust_remote_code=True` loads it where `optimum_kprune` is not installed. All run under transformers 4.57 and later.
They have what loading needs; what prunes and registers is in the library. The copy of this file ends with one line for
each class of the model, which the Auto classes find by the names in the config's `auto_map`.

The map `kprune` in the config names the units that are left. A model is built in its dense shape, and shrunk to them:

    {"format": 2,
     "adapter": {"blocks": ..., "sublayers": [...]},
     "kept": [{"layer": 0, "kind": "attention", "kept": "0-3,7", "total": 12}, ...],     one entry per sublayer
     "output_bias": true,     if output projections have biases that the dense model lacks; else left out
     "checksum": "...",     of `adapter`, `kept` and the shapes of the weights
     "settings": {...}}     of the last prune; saved as kprune_config.json too
"""

import functools
import json
import shutil
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import transformers
from safetensors import safe_open
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from .kprune_map import blocks_of, check_checksum, check_form, check_map, parse_units, told_of_map
from .kprune_shrink import give_bias, give_each_block_its_own, shrink_sublayer

SETTINGS_NAME = "kprune_config.json"
TAGS = ["optimum-kprune", "kprune", "pruning"]


def shrink_model(model: PreTrainedModel, kprune: dict[str, Any]) -> None:
    """Shrinks a model of dense shape to the units that the config field `kprune` keeps, in place.

    Raises:
        ValueError: if the field is malformed, or does not fit the model or its own checksum.
    """
    check_form(kprune)
    adapter = kprune["adapter"]
    with told_of_map():
        blocks = blocks_of(model, adapter["blocks"])
        give_each_block_its_own(blocks, adapter.get("handed_on", {}))
    check_map(model, kprune)
    sublayers = [(block, sublayer) for block in blocks for sublayer in adapter["sublayers"]]
    for (block, sublayer), entry in zip(sublayers, kprune["kept"], strict=True):
        if kprune.get("output_bias"):
            give_bias(block.get_submodule(sublayer["output"]))
        shrink_sublayer(block, sublayer, parse_units(entry["kept"], entry["total"]), entry["total"])
    check_checksum(model, kprune)


@contextmanager
def weights_that_fit() -> Iterator[None]:
    """Adds advice to errors about weights that do not fit."""
    try:
        yield
    except RuntimeError as error:
        error.add_note(
            "A pruned model has the shapes that the field `kprune` of its config tells, and takes weights of these "
            "shapes alone: not those of the dense model, nor of another prune. Load config.json and weights from the "
            "folder in which they were saved together; to resume training, load the model from the checkpoint first."
        )
        raise


def weights_of_encoder(model: PreTrainedModel, names: Iterable[str]) -> list[str]:
    """Returns those of the names that belong to weights of the encoder, sorted: not of the head, nor of the pooler.

    Any Auto class may load a checkpoint, and makes the head and the pooler anew if it has none.
    """
    parts = {name.partition(".")[0] for name, _ in model.base_model.named_parameters()} - {"pooler"}
    prefix = f"{model.base_model_prefix}."
    return sorted(name for name in names if name.removeprefix(prefix).partition(".")[0] in parts)


def require_encoder_weights(model: PreTrainedModel, info: dict[str, Any]) -> None:
    """Raises a ValueError if transformers' loading info lists missing or unexpected weights of the encoder."""
    absent = {*info["missing_keys"], *(entry[0] for entry in info["mismatched_keys"])}
    for told, names in (("lack", absent), ("hold", info["unexpected_keys"])):
        if wrong := weights_of_encoder(model, names):
            raise ValueError(
                f"The weights of {model.name_or_path!r} are not those that its config tells of: they {told} "
                f"{len(wrong)} of the encoder, such as {wrong[0]!r}. Load config.json and weights from the folder in "
                "which they were saved together."
            )


def require_float_weights(files: list[str] | None) -> None:
    """Raises a ValueError if safetensors files hold weights that are not floating point numbers."""
    for file in files or []:
        with safe_open(file, framework="pt") as tensors:
            kinds = {name: tensors.get_slice(name).get_dtype() for name in tensors.keys()}
        for name, kind in kinds.items():
            if name.endswith((".weight", ".bias")) and not kind.startswith(("F", "BF")):
                raise ValueError(
                    f"Weights must be floating point numbers. {name!r} in {file!r} is of type {kind}. Load the "
                    "weights that were saved with the config.json."
                )


def require_head(model: PreTrainedModel, config: Any) -> None:
    """Raises a ValueError if a model was saved with a head that transformers does not have, by its config."""
    dense: Any = vars(type(model)).get("dense_class")
    saved = (config.architectures or [type(model).__name__])[0].removeprefix("KPrune")
    if is_of_transformers(dense) and model.base_model is not model and not hasattr(transformers, saved):
        raise ValueError(
            f"The pruned model was saved from the class {saved}, which transformers does not have: a {dense.__name__} "
            f"has another head. Load it with `optimum_kprune.pruned_class({saved}).from_pretrained(...)`, or the "
            "encoder alone with `AutoModel.from_pretrained(...)`."
        )


def is_of_transformers(dense: Any) -> bool:
    """Whether transformers has a class, under its own name."""
    return dense is not None and getattr(transformers, dense.__name__, None) is dense


class PickledByDenseClass:
    """Makes instances of classes by `make_pruned_class` picklable: a pickle names the dense class instead.

    No module has these classes under a name by which a pickle could find them.
    """

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        reduced: Any = super().__reduce_ex__(protocol)
        make, arguments, *state = reduced
        # A class that was derived from a pruned one is in a module, and found there.
        dense = vars(type(self)).get("dense_class")
        return (make, arguments, *state) if dense is None else (_new_instance, (dense,), *state)


def _new_instance(dense: type) -> Any:
    """Returns an instance of the pruned class of a dense class, whose state the pickle sets."""
    made = make_pruned_class(dense)
    return made.__new__(made)


class KPruneConfigMixin(PickledByDenseClass):
    """A config with the field `kprune`: the units that are left."""

    kprune: dict[str, Any] | None = None

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> None:
        """Saves the config, the code that loads the model and the settings of the prune.

        Models and trainers save their config by this method, so that every copy of the model is complete.
        """
        super().save_pretrained(save_directory, *args, **kwargs)  # type: ignore[misc]
        dense: Any = vars(type(self)).get("dense_class", type(self))
        save_code(Path(save_directory), getattr(self, "auto_map", None) or {}, dense)
        settings = (self.kprune or {}).get("settings")
        if settings:
            text = json.dumps(settings, indent=2) + "\n"
            Path(save_directory, SETTINGS_NAME).write_text(text, encoding="utf-8")


def save_code(folder: Path, auto_map: dict[str, str], config_class: Any) -> None:
    """Writes this file and those it imports into a folder, with a line for each dense class that `auto_map` names.

    Classes of remote code are saved beside it, with the files that they need.
    """
    text = Path(__file__).read_text(encoding="utf-8")
    lines = []
    for name in dict.fromkeys(str(made).rpartition(".KPrune")[2] for made in auto_map.values()):
        dense = _class_named(name, config_class)
        # An `auto_map` came with some config: text in it that is no name of a class must not become code.
        if is_of_transformers(dense):
            lines.append(f"KPrune{name} = make_pruned_class(transformers.{name})\n")
        elif dense is not None:
            transformers.dynamic_module_utils.custom_object_save(dense, folder)
            module = dense.__module__.rpartition(".")[2]
            lines.append(f"from .{module} import {name}\nKPrune{name} = make_pruned_class({name})\n")
    if lines:
        # If this file is itself a saved copy, it has the lines of its model already.
        text += "".join(line for line in lines if line not in text)
        (folder / Path(__file__).name).write_text(text, encoding="utf-8")
        for name in ("kprune_map.py", "kprune_shrink.py"):
            shutil.copyfile(Path(__file__).with_name(name), folder / name)


def _class_named(name: str, config_class: Any) -> Any:
    """Returns a class of transformers, or of the remote code that a config is from; None if there is none."""
    package = f"{config_class.__module__.rpartition('.')[0]}."
    if hasattr(transformers, name) or not package.startswith("transformers_modules."):
        return getattr(transformers, name, None)
    modules = [module for key, module in list(sys.modules.items()) if key.startswith(package)]
    found = (vars(module).get(name) for module in modules)
    return next((made for made in found if isinstance(made, type) and made.__module__.startswith(package)), None)


class KPruneMixin(PickledByDenseClass):
    """A model that has only the units named by `config.kprune`.

    Attributes:
        dense_class: the class of the model before it was pruned. It comes after this class among the bases.
    """

    dense_class: Any

    def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
        with _of_dense_class(config, self.dense_class.config_class):
            super().__init__(config, *args, **kwargs)  # type: ignore[call-arg]
        model: Any = self
        config.auto_map = auto_map_of(model, getattr(config, "auto_map", None) or {})
        model.add_model_tags(TAGS)
        if getattr(config, "kprune", None) is not None:
            require_head(model, config)
            shrink_model(model, config.kprune)
            model.post_init()

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """Loads the model into memory of its own; raises a ValueError if weights of its encoder do not fit."""
        with_info = kwargs.pop("output_loading_info", False)
        # Pruned models are saved like this. A pickle, which can run code, is never opened.
        kwargs["use_safetensors"] = True
        with weights_that_fit():
            model, info = super().from_pretrained(*args, output_loading_info=True, **kwargs)  # type: ignore[misc]
        if not getattr(model, "is_quantized", False):
            require_encoder_weights(model, info)
        _own_memory(model)
        return (model, info) if with_info else model

    @classmethod
    def _load_pretrained_model(cls, model: Any, state_dict: Any, checkpoint_files: Any, *args: Any, **kw: Any) -> Any:
        # Only here are the files known, and the weights not yet loaded. Quantizers have types of their own.
        if not getattr(model, "is_quantized", False):
            require_float_weights(checkpoint_files)
        return super()._load_pretrained_model(model, state_dict, checkpoint_files, *args, **kw)  # type: ignore[misc]

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        """Saves the model. Its weights have the names of its modules, by which all of its classes find them."""
        # Transformers would write the names of older versions, but reads them into its own classes only.
        super().save_pretrained(*args, **{"save_original_format": False, **kwargs})  # type: ignore[misc]

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Loads weights of the same prune, as a trainer does to resume."""
        with weights_that_fit():
            return super().load_state_dict(*args, **kwargs)  # type: ignore[misc]


@contextmanager
def _of_dense_class(config: Any, dense: Any) -> Iterator[None]:
    """Makes a config one of the dense model, and back at the end.

    Some classes build their encoder by an Auto class, which goes by the class of the config and by its `auto_map`. It
    must build the dense encoder, which is shrunk with the rest, and not ask whether to trust this code again.
    """
    pruned, auto_map = type(config), vars(config).pop("auto_map", None)
    config.__class__ = dense
    try:
        yield
    finally:
        config.__class__, config.auto_map = pruned, auto_map


def auto_classes(config_class: Any) -> dict[str, tuple[Any, ...]]:
    """Returns the model classes of a dense config by the names of the Auto classes that load them.

    Leaves out classes that generate text: their cache relies on every attention sublayer, also on bypassed ones.
    `AutoModel` loads what has no head. Of an encoder-decoder model, that is also the encoder alone, which comes first.
    """
    found = {name: auto._model_mapping.get(config_class, None) or () for name, auto in _autos().items()}
    classes = {name: models if isinstance(models, tuple) else (models,) for name, models in found.items()}
    classes["AutoModel"] = tuple(dict.fromkeys([*classes["AutoModelForTextEncoding"], *classes["AutoModel"]]))
    # An Auto class can map a config to a class for another config, which is made from it.
    own = {
        name: [made for made in models if issubclass(config_class, made.config_class)]
        for name, models in classes.items()
    }
    loaded = {name: tuple(made for made in models if _is_encoder(made)) for name, models in own.items()}
    return {name: models for name, models in loaded.items() if models}


@functools.cache
def _autos() -> dict[str, Any]:
    """Returns the Auto classes of models by their names."""
    return {name: getattr(transformers, name) for name in dir(transformers) if name.startswith("AutoModel")}


def _is_encoder(model_class: Any) -> bool:
    """Whether a class from the mappings of the Auto classes is a model of transformers that does not generate text."""
    return hasattr(model_class, "can_generate") and not model_class.can_generate()


def auto_map_of(model: Any, told: dict[str, str]) -> dict[str, str]:
    """Returns the names in this file by which the Auto classes find the config, the model and its encoder.

    Classes that neither transformers nor remote code has are left out, because this file could not make them. If that
    holds for the config, all are.

    Args:
        model: the pruned model.
        told: the `auto_map` of the config that it is made from, in which remote code names its classes.
    """
    dense, autos = model.dense_class, auto_classes(model.dense_class.config_class)
    classes = {"AutoConfig": dense.config_class} | {name: dense for name, models in autos.items() if dense in models}
    base: Any = getattr(type(model.base_model), "dense_class", type(model.base_model))
    encoders = autos.get("AutoModel", ())
    # A Qwen3ForQuestionAnswering calls its encoder by a name under which no encoder looks for its weights.
    if base in encoders and base.base_model_prefix == dense.base_model_prefix:
        classes.setdefault("AutoModel", encoders[0])
    if not is_of_transformers(dense.config_class):
        names = {name: str(made).rpartition(".")[2].removeprefix("KPrune") for name, made in told.items()}
        classes |= {name: made for name in names for made in (dense, base) if made.__name__ == names[name]}
    found = {made: _class_named(made.__name__, dense.config_class) is made for made in classes.values()}
    file = __name__.rpartition(".")[2]
    return {
        auto_class: f"{file}.KPrune{made.__name__}"
        for auto_class, made in classes.items()
        if found[made] and found[dense.config_class]
    }


def _own_memory(model: nn.Module) -> None:
    """Copies weights out of the file that they are mapped from.

    In the file they are not aligned, which changes the last bits of products. But a model must give the same outputs
    before it is saved and after it is loaded.
    """
    for parameter in model.parameters():
        if parameter.device.type == "cpu":
            parameter.data = parameter.data.clone()


@functools.cache
def make_pruned_class(dense: Any) -> Any:
    """Returns the pruned class of a config or model class: always the same class for the same argument."""
    if issubclass(dense, PretrainedConfig):
        mixin: Any = KPruneConfigMixin
        fields: dict[str, Any] = {"model_type": f"kprune-{dense.model_type}"}
    else:
        mixin = KPruneMixin
        fields = {"config_class": make_pruned_class(dense.config_class)}
    # Remote code is marked by `_auto_class`, by which transformers would save the file of the pruned class as it is.
    fields |= {"dense_class": dense, "__doc__": mixin.__doc__, "_auto_class": None}
    return type(f"KPrune{dense.__name__}", (mixin, dense), fields)
