"""Where the prunable sublayers of an encoder live: one row of names per architecture, no code.

An adapter is plain data. It is also written into the config of a pruned model, from which the saved folder can be
rebuilt. To support another architecture, register another row.
"""

from dataclasses import asdict, dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class SublayerAdapter:
    """Names of the modules of one residual sublayer, relative to its block.

    Attributes:
        kind: `"attention"` (units are heads) or `"ffn"` (units are neurons).
        inputs: names of the input projections (`nn.Linear`), whose rows belong to the units. The value is the number
            of projections that are fused in the module, one below the other (1 when it is not fused).
        output: the output projection (`nn.Linear`), whose columns belong to the units.
        residual: the module whose first input is the residual stream X, to which the sublayer adds Sub(X).
        bypass: the module that computes the units. It is replaced when no unit is left.
        returns_tuple: whether `bypass` returns a tuple that begins with the hidden states.
        counts: attributes that hold the number of `"units"` or of `"features"` (units x unit size).
    """

    kind: Literal["attention", "ffn"]
    inputs: dict[str, int]
    output: str
    residual: str
    bypass: str
    returns_tuple: bool = False
    counts: dict[str, Literal["units", "features"]] = field(default_factory=dict)


@dataclass(frozen=True)
class EncoderAdapter:
    """The stack of blocks of an encoder and the sublayers of each block, bottom to top.

    Attributes:
        blocks: name of the `nn.ModuleList` of blocks, relative to `model.base_model`.
        sublayers: the sublayers of one block, in the order in which they are applied.
    """

    blocks: str
    sublayers: tuple[SublayerAdapter, ...]

    def to_dict(self) -> dict[str, Any]:
        """Returns the adapter as nested dictionaries and lists that JSON can hold."""
        return {"blocks": self.blocks, "sublayers": [asdict(sublayer) for sublayer in self.sublayers]}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "EncoderAdapter":
        """Returns the adapter that `to_dict` wrote."""
        return cls(data["blocks"], tuple(SublayerAdapter(**sublayer) for sublayer in data["sublayers"]))


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
