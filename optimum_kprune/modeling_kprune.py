"""Pruned encoders: the classes that load, run and save a model whose heads and neurons were removed by K-prune.

This file and `kprune_map` need torch and transformers only. The `optimum_kprune` plugin imports them, and every saved
pruned model holds a copy, so that `trust_remote_code=True` loads the model where the plugin is not installed. The map
`kprune` in the config names the units that are left; a model is built in its dense shape and shrunk to them:

    {"adapter": {"blocks": ..., "sublayers": [...]},
     "kept": [{"layer": 0, "kind": "attention", "kept": "0-3,7", "total": 12}, ...],     one entry per sublayer
     "checksum": "...",     of the above and of the shapes of the weights
     "settings": {...}}     of the last prune; saved as kprune_config.json too

`KPrune<class>` is here for every encoder class of transformers, as in `KPruneBertForSequenceClassification`;
`pruned_class(MyClass)` makes that of a class of your own.
"""

import functools
import json
import reprlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import torch
import transformers
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.modeling_utils import load_state_dict
from transformers.models.auto import modeling_auto
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING_NAMES

from .kprune_map import check_checksum, check_map, checksum, parse_units

SETTINGS_NAME = "kprune_config.json"
TAGS = ["optimum-kprune", "kprune", "pruning"]


class Constant(nn.Module):
    """The output projection of a sublayer without units: its bias, whatever the input."""

    def __init__(self, projection: Any) -> None:
        super().__init__()
        self.in_features, self.out_features = 0, projection.out_features
        bias = projection.bias
        self.bias = nn.Parameter(projection.weight.new_zeros(self.out_features)) if bias is None else bias

    def forward(self, features: Tensor) -> Tensor:
        """Returns the bias, once per token of `features`."""
        return self.bias.expand(*features.shape[:-1], self.out_features)


class Bypass(nn.Module):
    """The unit computation of a sublayer without units: hands the hidden states on.

    Attributes:
        constant: name of the `Constant` that lies inside and is the output instead, "" if it lies outside.
        returns_tuple: whether the output is the first of a tuple, as that of attention modules.
    """

    def __init__(self, constant: str, returns_tuple: bool) -> None:
        super().__init__()
        self.constant, self.returns_tuple = constant, returns_tuple

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor | tuple[Tensor, None]:
        """Returns the hidden states or the constant."""
        output = self.get_submodule(self.constant)(hidden_states) if self.constant else hidden_states
        return (output, None) if self.returns_tuple else output


def shrink_sublayer(block: nn.Module, sublayer: dict[str, Any], kept: list[int], total: int) -> None:
    """Removes the units of a sublayer that are not kept, in place; without any unit the sublayer is bypassed.

    Args:
        block: the block that holds the sublayer.
        sublayer: names of the sublayer's modules: a `SublayerAdapter` as a dictionary.
        kept: increasing indices of the units to keep.
        total: number of units that the sublayer has now.

    Raises:
        ValueError: if `kept` or `total` does not fit the sublayer.
    """
    name = f"{sublayer['kind']} sublayer with output {sublayer['output']!r}"
    if kept != sorted(set(kept)) or (kept and not 0 <= kept[0] <= kept[-1] < total):
        raise ValueError(
            f"The units to keep in the {name} must be increasing indices below {total}. Got {reprlib.repr(kept)}."
        )
    if len(kept) == total:
        return
    output: Any = block.get_submodule(sublayer["output"])
    unit_size, remainder = divmod(output.in_features, total)
    if remainder or not unit_size:
        raise ValueError(
            f"The {name} has {output.in_features} features, which {total} units do not share equally. "
            "Give the number of units that the sublayer has now."
        )
    if kept:
        for projection, parts in sublayer["inputs"].items():
            _keep_units(block.get_submodule(projection), 0, parts, kept, total)
        _keep_units(output, 1, 1, kept, total)
    else:
        _bypass(block, sublayer)
    modules = dict(block.named_modules())
    for count, unit in sublayer["counts"].items():
        module, _, attribute = count.rpartition(".")
        if module in modules:
            setattr(modules[module], attribute, len(kept) * (unit_size if unit == "features" else 1))


def _keep_units(linear: Any, dim: int, parts: int, kept: list[int], total: int) -> None:
    """Keeps units along a dimension of the parameters that holds parts x total units x entries of a unit."""
    for name, parameter in list(linear.named_parameters()):
        if dim < parameter.dim():
            # Models are loaded under a default device that holds no data, so the index must name its own.
            index = torch.tensor(kept, device=parameter.device)
            units = parameter.detach().unflatten(dim, (parts, total, -1)).index_select(dim + 1, index)
            data = units.flatten(dim, dim + 2).contiguous()
            setattr(linear, name, nn.Parameter(data, requires_grad=parameter.requires_grad))
    linear.out_features, linear.in_features = linear.weight.shape


def _bypass(block: nn.Module, sublayer: dict[str, Any]) -> None:
    output, inside = sublayer["output"], f"{sublayer['bypass']}."
    constant = Constant(block.get_submodule(output))
    inner = output.removeprefix(inside) if output.startswith(inside) else ""
    _place(block, sublayer["bypass"], Bypass(inner, sublayer["returns_tuple"]))
    _place(block, output, constant)


def _place(root: nn.Module, name: str, module: nn.Module) -> None:
    """Puts a submodule in its place, in the mode of the model; parents that are gone become empty modules."""
    *parents, leaf = name.split(".")
    for parent in parents:
        if parent not in dict(root.named_children()):
            root.add_module(parent, nn.Module())
        root = dict(root.named_children())[parent]
    root.add_module(leaf, module.train(root.training))


def shrink_model(model: PreTrainedModel, kprune: dict[str, Any]) -> None:
    """Shrinks a model of dense shape to the units that the config field `kprune` keeps, in place.

    Raises:
        ValueError: if the field is not what it has to be, or does not fit the model or its own checksum.
    """
    check_map(model, kprune)
    adapter = kprune["adapter"]
    blocks: Any = model.base_model.get_submodule(adapter["blocks"])
    sublayers = [(block, sublayer) for block in blocks for sublayer in adapter["sublayers"]]
    for (block, sublayer), entry in zip(sublayers, kprune["kept"], strict=True):
        shrink_sublayer(block, sublayer, parse_units(entry["kept"], entry["total"]), entry["total"])
    check_checksum(model, kprune)


@contextmanager
def weights_that_fit() -> Iterator[None]:
    """Says of weights that could not be loaded what may be wrong."""
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
    """Returns those names that are of weights of the encoder, sorted: not of the head, nor of the pooler.

    Any Auto class loads the encoder, and makes a head and a pooler anew where the checkpoint has none.
    """
    parts = {name.partition(".")[0] for name, _ in model.base_model.named_parameters()} - {"pooler"}
    prefix = f"{model.base_model_prefix}."
    return sorted(name for name in names if name.removeprefix(prefix).partition(".")[0] in parts)


def require_encoder_weights(model: PreTrainedModel, info: dict[str, Any]) -> None:
    """Raises a ValueError if transformers' loading info tells of missing or unexpected weights of the encoder."""
    absent = {*info["missing_keys"], *(entry[0] for entry in info["mismatched_keys"])}
    for told, names in (("lack", absent), ("hold", info["unexpected_keys"])):
        if wrong := weights_of_encoder(model, names):
            raise ValueError(
                f"The weights of {model.name_or_path!r} are not those that its config tells of: they {told} "
                f"{len(wrong)} of the encoder, such as {wrong[0]!r}. Load config.json and weights from the folder in "
                "which they were saved together."
            )


def require_float_weights(files: list[str] | None) -> None:
    """Raises a ValueError if weight files hold weights that are no floating point numbers."""
    for file in files or []:
        for name, tensor in load_state_dict(file, map_location="meta").items():
            if name.endswith((".weight", ".bias")) and not tensor.is_floating_point():
                raise ValueError(
                    f"Weights must be floating point numbers. {name!r} in {file!r} is of type {tensor.dtype}. Load "
                    "the weights that were saved with the config.json."
                )


def pruned_model_from(model: PreTrainedModel, kprune: dict[str, Any]) -> PreTrainedModel:
    """Returns a shrunk model as an instance of its pruned class, which saves and loads like any other model.

    Args:
        model: a model whose sublayers were shrunk by `shrink_sublayer`, of a dense or a pruned class. It is not
            changed and shares no tensor with the result.
        kprune: the config field, for all sublayers and relative to the dense architecture.

    Returns:
        The pruned model in evaluation mode, on the device and in the dtype of the given one.
    """
    pruned = empty_pruned_model(model, kprune, model.device)
    pruned.load_state_dict(model.state_dict())
    return pruned


def empty_pruned_model(model: PreTrainedModel, kprune: dict[str, Any], device: torch.device) -> PreTrainedModel:
    """Returns the pruned model of a shrunk one in evaluation mode on a device, with weights that hold anything."""
    model_class = pruned_class(type(model))
    fields = model.config.to_dict() | {
        "model_type": model_class.config_class.model_type,
        "architectures": [model_class.__name__],
        "attn_implementation": model.config._attn_implementation,
        "kprune": {**kprune, "checksum": checksum(model, kprune)},
    }
    # Tokenizer files that do not name their class are read by the model type, which is a new one.
    fields["tokenizer_class"] = fields.get("tokenizer_class") or TOKENIZER_MAPPING_NAMES.get(model.config.model_type)
    # Without data there is nothing to initialise. The switches of transformers for that and for the dtype hold for the
    # whole process: what other threads make or load at the time would come out wrong, or this model.
    with torch.device("meta"):
        pruned = model_class._from_config(model_class.config_class(**fields), dtype=None)
    pruned.config.dtype = model.dtype
    for parameter in pruned.to_empty(device=device).parameters():
        parameter.data = parameter.to(model.dtype)
    for name, buffer in model.named_buffers():
        if not buffer.is_meta:
            pruned.get_buffer(name).copy_(buffer)
    pruned.tie_weights()
    pruned.add_model_tags(list(model.model_tags or []))
    return pruned.eval()


def register_auto_classes(model_type: str) -> None:
    """Makes the Auto classes and the pipelines load the pruned models of a dense model type from this file.

    Raises:
        ValueError: if transformers does not know the model type.
    """
    if model_type not in CONFIG_MAPPING:
        raise ValueError(
            f"Expected a `config.model_type` that transformers {transformers.__version__} knows. Got {model_type!r}."
        )
    dense_config: Any = CONFIG_MAPPING[model_type]
    config_class = pruned_class(dense_config)
    AutoConfig.register(config_class.model_type, config_class, exist_ok=True)
    for auto_class, dense in auto_classes(dense_config).items():
        getattr(modeling_auto, auto_class).register(config_class, pruned_class(dense), exist_ok=True)


def pruned_class(dense: type) -> Any:
    """Returns the pruned class of a config or model class, which loads what was saved of its pruned models.

    `pruned_class(MyModel).from_pretrained(folder)` loads a model with a head of your own: the class is made from
    `MyModel`, which must be at hand. That of a pruned class, also a remote one, is its equal; a class that you derive
    from a pruned one is pruned already.

    Raises:
        ValueError: if models of the class generate text, or the class takes the name of one of transformers.
    """
    own = dense_class_of(dense)
    return dense if own is dense and issubclass(dense, _Pruned) else _make_class(own)


def dense_class_of(model_class: Any) -> Any:
    """Returns the class that a pruned class was made from, and any other class as it is."""
    return vars(model_class).get("dense_class", model_class)


def is_of_transformers(dense: type) -> bool:
    """Whether a class is one that transformers has under its name."""
    return getattr(transformers, dense.__name__, None) is dense


def __getattr__(name: str) -> type:
    dense: Any = getattr(transformers, name.removeprefix("KPrune"), None) if name.startswith("KPrune") else None
    is_config = isinstance(dense, type) and issubclass(dense, PreTrainedConfig)
    if is_config or dense in auto_classes(getattr(dense, "config_class", None) or PreTrainedConfig).values():
        return _make_class(dense)
    raise AttributeError(
        f"Module {__name__!r} has no {name!r}, only `KPrune<class>` for the config classes of transformers and for "
        "those of its encoder classes that the Auto classes load."
    )


@functools.cache
def auto_classes(config_class: Any) -> dict[str, Any]:
    """Returns the model class that each Auto class gives for a dense config.

    Not those that generate: their cache relies on every attention sublayer, also on bypassed ones.
    """
    autos = {name: value for name, value in vars(modeling_auto).items() if name.startswith("AutoModel")}
    models = {name: value._model_mapping.get(config_class, None) for name, value in autos.items()}
    return {
        name: model for name, model in models.items() if hasattr(model, "can_generate") and not model.can_generate()
    }


class _Pruned:
    """A pruned class, of configs or models: made from a dense class, by which alone it can be found in a pickle."""

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        reduced: Any = super().__reduce_ex__(protocol)
        make, arguments, *state = reduced
        dense = vars(type(self)).get("dense_class")
        return (make, arguments, *state) if dense is None else (_new, (dense,), *state)


def _new(dense: type) -> Any:
    made = pruned_class(dense)
    return made.__new__(made)


@functools.cache
def _make_class(dense: Any) -> Any:
    if getattr(transformers, dense.__name__, dense) is not dense:
        raise ValueError(
            f"The class {dense.__module__}.{dense.__qualname__} must have a name of its own, or a saved model would "
            "be loaded as that of transformers. Rename it."
        )
    if issubclass(dense, PreTrainedConfig):
        made: Any = _make_config_class(dense)
    elif dense.can_generate():
        raise ValueError(
            f"A {dense.__name__} generates text: its cache relies on every attention sublayer, also on those that a "
            "prune removes. Prune an encoder with the head of one of its tasks."
        )
    else:
        made = _make_model_class(dense)
    made.__name__ = made.__qualname__ = f"KPrune{dense.__name__}"
    return made


def _make_config_class(dense: Any) -> type[PreTrainedConfig]:
    class PrunedConfig(_Pruned, dense):
        """A config with the field `kprune`: the units that are left."""

        kprune: dict[str, Any] | None = None
        model_type = f"kprune-{dense.model_type}"
        dense_class: ClassVar = dense
        _auto_class = "AutoConfig" if is_of_transformers(dense) else None

        def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> None:
            """Saves the config, and beside it the settings of the prune: models and trainers save through here."""
            super().save_pretrained(save_directory, *args, **kwargs)
            settings = (self.kprune or {}).get("settings")
            if settings:
                text = json.dumps(settings, indent=2) + "\n"
                Path(save_directory, SETTINGS_NAME).write_text(text, encoding="utf-8")

    return PrunedConfig


def _own_auto_class(dense: Any) -> str | None:
    """The Auto class of a model class. It can stand under several: its own is the one that ends like it."""
    if not is_of_transformers(dense):
        return None
    found = [name for name, model_class in auto_classes(dense.config_class).items() if model_class is dense]
    suffixes = {name: name.removeprefix("AutoModel") for name in found}
    return max(found, key=lambda name: (dense.__name__.endswith(suffixes[name]), len(name)), default=None)


def _auto_map(dense: Any, own: str | None) -> dict[str, str]:
    """Where the Auto classes find the pruned classes in a folder: in the file that travels with the weights."""
    autos, file = auto_classes(dense.config_class), __name__.rpartition(".")[2]
    classes = {"AutoConfig": dense.config_class} | {name: autos[name] for name in ("AutoModel", own) if name in autos}
    return {name: f"{file}.KPrune{made.__name__}" for name, made in classes.items() if is_of_transformers(made)}


def _make_model_class(dense: Any) -> type[PreTrainedModel]:
    own = _own_auto_class(dense)
    auto_map = _auto_map(dense, own)

    class PrunedModel(_Pruned, dense):
        """A model that has only the units named by `config.kprune`."""

        config_class = pruned_class(dense.config_class)
        dense_class: ClassVar = dense
        _auto_class = own

        def __init__(self, config: PreTrainedConfig, *args: Any, **kwargs: Any) -> None:
            if type(self) is PrunedModel and own not in (None, "AutoModel"):
                _require_head(config, dense)
            super().__init__(config, *args, **kwargs)
            config.auto_map = dict(auto_map)
            self.add_model_tags(TAGS)
            if getattr(config, "kprune", None) is not None:
                shrink_model(self, config.kprune)
                self.post_init()

        @classmethod
        def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
            """Loads the model into memory of its own, and requires that its encoder is whole."""
            with_info = kwargs.pop("output_loading_info", False)
            # Pruned models are saved so; a pickle in the place of the weights is not looked at.
            kwargs["use_safetensors"] = True
            with weights_that_fit():
                model, info = super().from_pretrained(*args, output_loading_info=True, **kwargs)
            if getattr(model, "hf_quantizer", None) is None:
                require_encoder_weights(model, info)
            _own_memory(model)
            return (model, info) if with_info else model

        @staticmethod
        def _load_pretrained_model(
            model: Any, state_dict: Any, checkpoint_files: Any, load_config: Any, **kwargs: Any
        ) -> Any:
            # Quantizers have types of their own.
            if load_config.hf_quantizer is None:
                require_float_weights(checkpoint_files)
            return dense._load_pretrained_model(model, state_dict, checkpoint_files, load_config, **kwargs)

        def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
            """Loads weights of the same prune, as trainers do that resume."""
            with weights_that_fit():
                return super().load_state_dict(*args, **kwargs)

    return PrunedModel


def _own_memory(model: nn.Module) -> None:
    """Moves weights out of the file that they are mapped from.

    There they are not aligned, which changes the last bits of products: a model must give the same outputs before it
    is saved and after it is loaded.
    """
    for parameter in model.parameters():
        if parameter.device.type == "cpu":
            parameter.data = parameter.data.clone()


def _require_head(config: PreTrainedConfig, dense: type) -> None:
    """Raises a ValueError if the model of a config was saved with a head that is none of transformers."""
    saved = (config.architectures or [dense.__name__])[0].removeprefix("KPrune")
    if getattr(config, "kprune", None) is not None and not hasattr(transformers, saved):
        raise ValueError(
            f"The pruned model was saved from the class {saved}, which transformers does not have: a {dense.__name__} "
            f"has another head. Load it with `optimum_kprune.pruned_class({saved}).from_pretrained(...)`, or the "
            "encoder alone with `AutoModel.from_pretrained(...)`."
        )
