"""Where the prunable sublayers of an encoder live: one row of names per architecture, no code.

An adapter is plain data. It is also written into the config of a pruned model, from which the saved folder can be
rebuilt. To support another architecture, register another row.
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
    """

    blocks: str
    sublayers: tuple[SublayerAdapter, ...]
    front: tuple[str, ...] = ()
    handed_on: dict[str, str] = field(default_factory=dict)
    repeated: dict[str, str] = field(default_factory=dict)

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


BERT = EncoderAdapter(
    blocks="encoder.layer",
    sublayers=(
        SublayerAdapter(
            kind="attention",
            inputs={"attention.self.query": 1, "attention.self.key": 1, "attention.self.value": 1},
            output="attention.output.dense",
            residual="attention.self.query",
            bypass="attention.self",
            returns_tuple=True,
            counts={"attention.self.num_attention_heads": "units", "attention.self.all_head_size": "features"},
        ),
        SublayerAdapter(
            kind="ffn",
            inputs={"intermediate.dense": 1},
            output="output.dense",
            residual="intermediate.dense",
            bypass="intermediate",
        ),
    ),
)

DISTILBERT = EncoderAdapter(
    blocks="transformer.layer",
    sublayers=(
        SublayerAdapter(
            kind="attention",
            inputs={"attention.q_lin": 1, "attention.k_lin": 1, "attention.v_lin": 1},
            output="attention.out_lin",
            residual="attention.q_lin",
            bypass="attention",
            returns_tuple=True,
            # Only transformers 4 reads `dim`, and divides it by the number of heads.
            counts={"attention.n_heads": "units", "attention.dim": "features"},
        ),
        SublayerAdapter(kind="ffn", inputs={"ffn.lin1": 1}, output="ffn.lin2", residual="ffn.lin1", bypass="ffn"),
    ),
)

_ADAPTERS: dict[str, EncoderAdapter] = {
    "bert": BERT,
    "camembert": BERT,
    "distilbert": DISTILBERT,
    "electra": BERT,
    "roberta": BERT,
    "xlm-roberta": BERT,
}


def supported_model_types() -> list[str]:
    """Returns the model types that have an adapter, sorted."""
    return sorted(_ADAPTERS)


def add_adapter(model_type: str, adapter: EncoderAdapter) -> None:
    """Adds an adapter to the table. `register_adapter` does so too, and registers the model type with transformers.

    Raises:
        ValueError: if `model_type` already has a different adapter.
    """
    if _ADAPTERS.setdefault(model_type, adapter) != adapter:
        raise ValueError(
            f"The model type {model_type!r} has an adapter already, and it differs from the one given. "
            "Register the new one under another model type."
        )


def get_adapter(model_type: str) -> EncoderAdapter:
    """Returns the adapter of `model_type`.

    Raises:
        ValueError: if there is none. The message names the supported types, and says how to add one.
    """
    if model_type not in _ADAPTERS:
        raise ValueError(
            f"No adapter for the model type {model_type!r}. Supported are: {', '.join(supported_model_types())}. "
            "Describe where its sublayers are and register it with "
            f"`optimum_kprune.register_adapter({model_type!r}, EncoderAdapter(...))`."
        )
    return _ADAPTERS[model_type]
