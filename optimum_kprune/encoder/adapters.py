"""Where the prunable sublayers of an encoder live: the form of an adapter, and the table of them by model type.

An adapter is plain data. It is also written into the config of a pruned model, from which the saved folder can be
rebuilt. To support another architecture, register another adapter.
"""

from dataclasses import MISSING, dataclass, field, fields
from typing import Any, Literal


@dataclass(frozen=True)
class SublayerAdapter:
    """Names of the modules of one residual sublayer, relative to its block.

    Most architectures need the first seven attributes only; the others say what else belongs to the units.

    Attributes:
        kind: `"attention"` (units are heads, or groups of heads that share keys and values) or `"ffn"` (units are
            neurons).
        inputs: names of the input projections (`nn.Linear`), whose rows belong to the units. The value is the number
            of projections that are fused in the module, one below the other (1 when it is not fused, and also when
            the rows of all fused projections of a head lie together).
        output: the output projection (`nn.Linear`), whose columns belong to the units.
        residual: the module whose first input is the residual stream X, to which the sublayer adds Sub(X).
        bypass: the module that computes the units. It is replaced when no unit is left. "" if no module can be taken
            out: then one unit always stays.
        returns_tuple: whether `bypass` returns a tuple that begins with the hidden states; or how many items the tuple
            has, if they are not two.
        counts: attributes that hold the number of `"units"` or of `"features"` (units x unit size).
        tensors: other parameters and buffers with entries of units: the dimension along which these lie. Those that a
            model does not have are skipped.
        arguments: arguments of the forward of `bypass` with an entry per unit, such as a relative position bias
            (rows, heads, tokens, tokens): the dimension along which these lie.
        uncorrected: input projections that read something else too, such as a table of positions, and are therefore
            not corrected (docs/method.md, section 4).
        scale: what the output is multiplied with before it is added to X: a number, the name of a parameter (d,), or
            the name of a module that normalises it.
    """

    kind: Literal["attention", "ffn"]
    inputs: dict[str, int]
    output: str
    residual: str
    bypass: str
    returns_tuple: bool | int = False
    counts: dict[str, Literal["units", "features"]] = field(default_factory=dict)
    tensors: dict[str, int] = field(default_factory=dict)
    arguments: dict[str, int] = field(default_factory=dict)
    uncorrected: tuple[str, ...] = ()
    scale: float | str = 1.0

    def to_dict(self) -> dict[str, Any]:
        """Returns the adapter as a dictionary that JSON can hold, without what is left at its default."""
        return _plain(self, ("kind", "inputs", "output", "residual", "bypass", "returns_tuple", "counts"))


@dataclass(frozen=True)
class EncoderAdapter:
    """The stack of blocks of an encoder and the sublayers of each block, bottom to top.

    Attributes:
        blocks: name of the `nn.ModuleList` of blocks, relative to `model.base_model`. A `*` stands for every item of a
            list of lists, such as the stages of a pyramid.
        sublayers: the sublayers of one block, in the order in which they are applied.
        front: modules before the blocks, relative to `model.base_model`, that are not run again where a model is
            entered above its bottom, such as the convolutions that read a waveform.
        handed_on: modules that only block 0 has, and whose result the blocks hand on as an argument: the name of the
            module, relative to its block, and of the argument. Every block gets a copy of its own.
        repeated: fields of the config that say how many blocks have weights of their own where blocks run several
            times, and the fields to whose values they are set. Every pass gets a copy of its own.
        when: fields of the config that a model must have, if models of its type are built in several ways. Each way
            has an adapter of its own.
    """

    blocks: str
    sublayers: tuple[SublayerAdapter, ...]
    front: tuple[str, ...] = ()
    handed_on: dict[str, str] = field(default_factory=dict)
    repeated: dict[str, str] = field(default_factory=dict)
    when: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Returns the adapter as nested dictionaries and lists that JSON can hold, without what is at its default."""
        return _plain(self, ("blocks",)) | {"sublayers": [sublayer.to_dict() for sublayer in self.sublayers]}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "EncoderAdapter":
        """Returns the adapter that `to_dict` wrote."""
        sublayers = tuple(SublayerAdapter(**_with_tuples(sublayer)) for sublayer in data["sublayers"])
        return cls(**_with_tuples({**data, "sublayers": sublayers}))


def _plain(adapter: Any, always: tuple[str, ...]) -> dict[str, Any]:
    """Returns fields of an adapter as JSON holds them: those to be written always, and those not at their default."""
    written = {}
    for item in fields(adapter):
        value = getattr(adapter, item.name)
        default = item.default if item.default_factory is MISSING else item.default_factory()
        if item.name in always or (item.name != "sublayers" and value != default):
            written[item.name] = list(value) if isinstance(value, tuple) else value
    return written


def _with_tuples(data: dict[str, Any]) -> dict[str, Any]:
    """Returns fields as JSON holds them with tuples in place of lists."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in data.items()}


# The adapters by model type. `families.py` has those that come with the library.
_ADAPTERS: dict[str, tuple[EncoderAdapter, ...]] = {}


def supported_model_types() -> list[str]:
    """Returns the model types that have an adapter, sorted."""
    return sorted(_ADAPTERS)


def adapters_of_type(model_type: str) -> tuple[EncoderAdapter, ...]:
    """Returns the adapters of a model type: none, one, or one for each way in which such models are built."""
    return _ADAPTERS.get(model_type, ())


def add_adapter(model_type: str, adapter: EncoderAdapter) -> None:
    """Adds an adapter to the table. `register_adapter` does so too, and registers the model type with transformers.

    Raises:
        ValueError: if `model_type` already has a different adapter for the same models.
    """
    known = adapters_of_type(model_type)
    if any(other.when == adapter.when and other != adapter for other in known):
        raise ValueError(
            f"The model type {model_type!r} has an adapter already, and it differs from the one given. "
            "Register the new one under another model type."
        )
    if adapter not in known:
        _ADAPTERS[model_type] = (*known, adapter)


def get_adapter(model_type: str, config: Any = None) -> EncoderAdapter:
    """Returns the adapter of `model_type`: of several, the one that asks for most of what the config says.

    Args:
        model_type: the model type.
        config: the config of the model. It is needed where models of the type are built in several ways.

    Raises:
        ValueError: if there is none. The message names what is supported, and says how to add one.
    """
    known = adapters_of_type(model_type)
    if not known:
        raise ValueError(
            f"No adapter for the model type {model_type!r}. Supported are: {', '.join(supported_model_types())}. "
            "Describe where its sublayers are and register it with "
            f"`optimum_kprune.register_adapter({model_type!r}, EncoderAdapter(...))`; `suggest_adapter(model)` may "
            "find them."
        )
    fitting = [
        adapter
        for adapter in known
        if all(getattr(config, name, None) == value for name, value in adapter.when.items())
    ]
    if not fitting:
        given = {name: getattr(config, name, None) for adapter in known for name in adapter.when}
        raise ValueError(
            f"Models of the type {model_type!r} can be pruned if their config has one of "
            f"{[adapter.when for adapter in known]}. Got {given}. Load the model with these fields if it allows them."
        )
    return max(fitting, key=lambda adapter: len(adapter.when))
