"""The prunable sublayers of a loaded model, read through its adapter."""

import inspect
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from accelerate.utils import align_module_device
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..algorithm.cost import unit_flops
from ..algorithm.tuning import Projection
from ..kprune_map import blocks_of, head_dimension, heads_per_unit, tensor_in
from ..modeling_kprune import is_of_transformers
from .adapters import EncoderAdapter, SublayerAdapter
from .offloading import execution_device
from .rows import RowByRow, rows_in


class Place(NamedTuple):
    """Where hidden states enter an encoder.

    Attributes:
        layer: index of a block. The number of blocks stands for the end of the stack.
        position: position of a sublayer in the block.
    """

    layer: int = 0
    position: int = 0


BOTTOM = Place()


@dataclass(frozen=True)
class Entries:
    """The places at which a model can be entered, besides the bottom.

    Attributes:
        modules: by place, the name of the module in the block whose output enters there, such as the norm after the
            sublayer below; "" where a plain sum enters, or the place is the start of a block.
        items: number of items of the tuples that blocks return; 0 if they return the hidden states alone.
    """

    modules: dict[Place, str] = field(default_factory=dict)
    items: int = 0

    def highest(self, place: Place) -> Place:
        """Returns the highest place up to a given one at which the model can be entered."""
        return max((entry for entry in self.modules if entry <= place), default=BOTTOM)


@dataclass(frozen=True)
class Sublayer:
    """One residual sublayer X -> X + Sub(X) of a model.

    Its modules are looked up in the block at every use, because a prune replaces them.

    Attributes:
        block: the block of the encoder that holds the sublayer.
        place: index of that block, and position of the sublayer in it.
        adapter: names of the sublayer's modules in its block.
        units: number of heads or neurons; 0 if an earlier prune removed all of them.
        unit_size: features in a unit (the head dimension, or 1).
    """

    block: nn.Module
    place: Place
    adapter: SublayerAdapter
    units: int
    unit_size: int

    @property
    def layer(self) -> int:
        """Index of the block."""
        return self.place.layer

    @property
    def name(self) -> str:
        """Name of the sublayer in messages."""
        return f"layer {self.layer} {self.adapter.kind}"

    @property
    def features(self) -> int:
        """Number of columns of the output projection."""
        return self.units * self.unit_size

    @property
    def width(self) -> int:
        """Size of the hidden states, d."""
        return self.output.out_features

    @property
    def least_units(self) -> int:
        """How many units must stay: one where no module can be taken out in place of the last."""
        return min(self.units, 0 if self.adapter.bypass else 1)

    @property
    def inputs(self) -> list[Any]:
        """The input projections."""
        return [self.block.get_submodule(name) for name in self.adapter.inputs]

    @property
    def corrected_inputs(self) -> list[Any]:
        """The input projections that read the same hidden states, and nothing else."""
        names = [name for name in self.adapter.inputs if name not in self.adapter.uncorrected]
        return [self.block.get_submodule(name) for name in names]

    @property
    def scale(self) -> Tensor | float:
        """What the output is multiplied with before it is added, a number or (d,); 1 if it is normalised instead."""
        if not isinstance(self.adapter.scale, str):
            return self.adapter.scale
        modules = dict(self.block.named_modules())
        # A weight may be offloaded.
        with align_module_device(modules.get(self.adapter.scale.rpartition(".")[0], self.block)):
            found = tensor_in(modules, self.adapter.scale)
            return 1.0 if found is None else found.detach().float()

    @property
    def normaliser(self) -> nn.Module | None:
        """The module that normalises the output before it is added; None if there is none."""
        return dict(self.block.named_modules()).get(str(self.adapter.scale))

    @property
    def output(self) -> Any:
        """The output projection."""
        return self.block.get_submodule(self.adapter.output)

    @property
    def residual(self) -> nn.Module:
        """The module whose first input is the residual stream."""
        return self.block.get_submodule(self.adapter.residual)

    @property
    def parameters(self) -> int:
        """Number of parameters in the projections of the sublayer."""
        # Without units, the input projections are gone with the bypassed module.
        names = [*self.adapter.inputs, self.adapter.output] if self.units else [self.adapter.output]
        return sum(p.numel() for name in names for p in self.block.get_submodule(name).parameters())

    def unit_flops(self, sequence_length: int) -> float:
        """Returns the FLOPs of one unit on a sequence of that many tokens; 0 without units."""
        if not self.units:
            return 0.0
        weights = sum(projection.weight.numel() for projection in (*self.inputs, self.output))
        return unit_flops(self.adapter.kind, weights // self.units, self.unit_size, sequence_length)

    @property
    def unit_parameters(self) -> int:
        """Number of parameters that go with one unit; 0 without units."""
        if not self.units:
            return 0
        modules = dict(self.block.named_modules())
        others = [tensor_in(modules, name) for name in self.adapter.tensors]
        rows = [weight for projection in self.inputs for weight in projection.parameters()]
        belonging = [*rows, self.output.weight, *(tensor for tensor in others if isinstance(tensor, nn.Parameter))]
        return sum(tensor.numel() for tensor in belonging) // self.units

    def projection(self) -> Projection:
        """Returns the output projection, seen from the features: weight (features, d) and bias (d,), in float64."""
        weight = self.output.weight.detach()[:, : self.features].T.double()
        bias = self.output.bias
        return Projection(weight, weight.new_zeros(weight.shape[1]) if bias is None else bias.detach().double())


class Encoder:
    """A model with the adapter that names its sublayers. It can be run from any of its blocks on.

    Args:
        model: the model, with its head.
        adapter: where its sublayers are.
        name: name of the submodule that is the transformers model with the blocks; "" for the model itself.
        entries: see `entries`.
        by_rows: whether samples have several rows, such as the candidates of a query, of a model that reads one.

    Attributes:
        model: the model, with its head.
        pretrained: the transformers model in it, or the model itself.
        running: what is run on the inputs: the model, row by row if asked for; or, of several towers in a model of
            transformers, the one alone.
        options: arguments of its forward besides the inputs.
        blocks: its blocks, bottom to top.
        entries: the places at which it can be entered; see `partial_forward.find_entries`.
        front_outputs: zeros in the shapes of what the modules of the front return, by module and shapes of its inputs.
        device: the device on which the model reads its inputs.
    """

    def __init__(
        self,
        model: nn.Module,
        adapter: EncoderAdapter,
        name: str = "",
        entries: Entries | None = None,
        by_rows: bool = False,
    ) -> None:
        self.model = model
        pretrained: Any = model.get_submodule(name)
        self.pretrained = pretrained
        self.adapter = adapter
        self.name = name
        self.entries = entries or Entries()
        self.front_outputs: dict[Any, Any] = {}
        # The whole would need the inputs of its other towers, and compares samples with one another.
        self.running: nn.Module = pretrained if name and is_of_transformers(type(model)) else model
        self.options = {"return_dict": True} if _takes_return_dict(self.running) else {}
        self._by_rows = by_rows
        if by_rows:
            self.running = RowByRow(self.running)
        self.device = execution_device(pretrained)
        self.blocks = blocks_of(pretrained, adapter.blocks)

    def of(self, model: nn.Module, entries: Entries | None = None) -> "Encoder":
        """Returns a model like this one's, such as a copy, as an encoder that reads as this one does."""
        return Encoder(model, self.adapter, self.name, entries, self._by_rows)

    def reading_rows(self, batch: dict[str, Tensor]) -> tuple["Encoder", dict[str, Tensor]]:
        """Returns the encoder without samples of several rows, and a batch of samples as a batch of their rows."""
        if not self._by_rows:
            return self, batch
        return Encoder(self.model, self.adapter, self.name), rows_in(batch)

    @property
    def config(self) -> Any:
        """The config of the transformers model."""
        return self.pretrained.config

    def to_device(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Returns a batch on the device on which the model reads its inputs."""
        return {name: values.to(self.device) for name, values in batch.items()}

    def sublayers(self) -> list[Sublayer]:
        """Returns the sublayers with their present sizes, bottom to top."""
        return [
            self.sublayer(Place(layer, position))
            for layer in range(len(self.blocks))
            for position in range(len(self.adapter.sublayers))
        ]

    def targets(self) -> list[Sublayer]:
        """Returns the sublayers that have units, which can be pruned, bottom to top."""
        return [sublayer for sublayer in self.sublayers() if sublayer.units]

    def sublayer(self, place: Place) -> Sublayer:
        """Returns a sublayer with its present size.

        Raises:
            ValueError: if the adapter does not fit the model.
        """
        adapter, block = self.adapter.sublayers[place.position], self.blocks[place.layer]
        modules, unit_size = dict(block.named_modules()), 1
        features = getattr(modules.get(adapter.output), "in_features", 0)
        if adapter.kind == "attention" and features:
            unit_size = head_dimension(self.config) * heads_per_unit(modules, adapter.output, adapter.inputs)
        if features % unit_size:
            raise ValueError(
                f"The output projection of layer {place.layer} {adapter.kind} has {features} features, no multiple of "
                f"{unit_size}, those of a unit. Check the adapter of {self.config.model_type!r}."
            )
        return Sublayer(block, place, adapter, features // unit_size, unit_size)


def _takes_return_dict(model: nn.Module) -> bool:
    """Returns whether the forward of a model takes `return_dict`."""
    # Transformers wraps its forward methods, and then they take `return_dict` without naming it.
    named = "return_dict" in inspect.signature(model.forward).parameters
    return named or type(model).forward.__module__.partition(".")[0] == "transformers"


def has_decoder(model: PreTrainedModel) -> bool:
    """Returns whether a model has a decoder after its encoder, which a prune leaves as it is."""
    return getattr(model.base_model, "decoder", None) is not None


def max_positions(model: PreTrainedModel) -> int | None:
    """Returns the longest input of a model, in tokens; None if its config does not say."""
    positions: Any = getattr(model.config, "max_position_embeddings", None)
    # XLNet writes -1 for no limit.
    if positions in (None, -1):
        return None
    embedding = getattr(getattr(model.base_model, "embeddings", None), "position_embeddings", None)
    # The RoBERTa family starts counting positions after the index of padding, which costs rows of the table.
    padding_index = getattr(embedding, "padding_idx", None)
    return positions if padding_index is None else positions - padding_index - 1
