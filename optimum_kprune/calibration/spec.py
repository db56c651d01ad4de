"""What a model reads: which inputs, within which limits, prepared by what; and what a batch of them is."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ..defaults import FULL_BATCH
from .columns import TEXT_COLUMNS
from .modality import MODALITIES, TEXT, Modality, ProcessingClass

# One sample: per input name, numbers (nested as (choices, tokens) for multiple choice), or an array for media.
Sample = dict[str, Any]
# The inputs of a model by name. The main input comes first.
Batch = dict[str, Tensor]

TEXT_INPUTS = frozenset({"input_ids", "attention_mask", "token_type_ids", "position_ids"})
LABEL_NAMES = frozenset(
    {"label", "labels", "label_ids", "start_positions", "end_positions", "next_sentence_label", "sentence_order_label"}
)
# The longest input of BERT and its kin. Texts are cut there for models that can read more, too.
DEFAULT_MAX_LENGTH = 512


def main_input(batch: Mapping[str, Any]) -> Any:
    """Returns the main input of a batch, which comes first: ids, pixels or audio."""
    return next(iter(batch.values()))


def samples_in(batch: Batch) -> int:
    """Returns the number of samples in a batch."""
    return len(main_input(batch))


def token_mask(batch: Batch) -> Tensor:
    """Returns (rows, tokens) boolean, true at real tokens. All tokens are real where there is no attention mask."""
    mask = batch.get("attention_mask")
    mask = torch.ones_like(main_input(batch)) if mask is None else mask
    return mask.reshape(-1, mask.shape[-1]).bool()


def real_entries(batch: Batch) -> Tensor:
    """Returns which entries of the main input are no padding, boolean, in the shape of its first dimensions."""
    values, mask = main_input(batch), batch.get("attention_mask")
    if mask is None or mask.shape != values.shape[: mask.dim()]:
        mask = values.new_ones(values.shape[:2])
    return mask.bool()


@dataclass(frozen=True)
class InputSpec:
    """What a model reads, and how raw data is prepared for it.

    Attributes:
        task: name of the task in `transformers.pipeline`. For texts, it says how they are tokenized.
        processing_class: the tokenizer, image processor or feature extractor, or a processor that holds it. It is
            needed only for raw data and to pad.
        text_columns: columns that hold the texts, in order: one; two for a pair (question, context); or the prompt
            and its choices. The column of the images or of the audio for models that read those. `None` finds them.
        preprocess_function: replaces the preparation here. It maps raw rows, a dictionary of lists, to a dictionary
            of lists of inputs, as in `Dataset.map(..., batched=True)`.
        max_length: tokens at which texts are cut. `None` takes the smallest of the limit of the tokenizer,
            `max_positions` and 512.
        max_positions: the longest input of the model, in tokens.
        vocab_size: rows of the model's table of embeddings. `None` does not check `input_ids` against it.
        type_vocab_size: the same for `token_type_ids`.
        model_inputs: names of the arguments of the model's forward. Other columns and labels are dropped. `None` takes
            `input_ids`, `attention_mask`, `token_type_ids`, `position_ids` and the main input.
        seed: seed of the choice of samples and of masked tokens.
        main_input: name of the input that holds the texts, images or audio, as in `main_input_name` of a model.
        positions: maps a batch to a boolean (rows, positions) mask: which positions of the hidden states are real.
            `None` takes the tokens that `attention_mask` marks.
        image_channels: colour channels of the images. `None` is 3.
        dtype: type of the inputs that are no whole numbers.
        batch_tokens: most tokens in a batch of more than one sample, padding included.

    Raises:
        ValueError: if a value cannot be used. The message says which values can.
    """

    task: str
    processing_class: ProcessingClass | None = None
    text_columns: Sequence[str] | None = None
    preprocess_function: Callable[[dict[str, list]], Mapping[str, Any]] | None = None
    max_length: int | None = None
    max_positions: int | None = None
    vocab_size: int | None = None
    type_vocab_size: int | None = None
    model_inputs: Collection[str] | None = None
    seed: int = 0
    main_input: str = "input_ids"
    positions: Callable[[Batch], Tensor] | None = None
    image_channels: int | None = None
    dtype: torch.dtype = torch.float32
    batch_tokens: int = FULL_BATCH

    def __post_init__(self) -> None:
        """Checks what can be checked before any data is read."""
        if self.main_input not in MODALITIES:
            raise ValueError(
                f"The main input of the model must be one of {', '.join(MODALITIES)}. Got {self.main_input!r} instead."
            )
        if self.is_text and self.task not in TEXT_COLUMNS:
            raise ValueError(f"`task` must be one of {', '.join(TEXT_COLUMNS)}. Got {self.task!r} instead.")
        if self.processing_class is not None and self._part is None:
            raise ValueError(
                f"`processing_class` must be {self.modality.prepared_by}, or a processor that holds one: the model "
                f"reads `{self.main_input}`. Got {type(self.processing_class).__name__} instead. Load it with the "
                "Auto class for it, from the folder of the model."
            )
        if isinstance(self.text_columns, str):
            raise ValueError(
                f"`text_columns` must be a list of column names. Got {self.text_columns!r} instead. "
                f"Pass text_columns=[{self.text_columns!r}]."
            )
        if self.model_inputs is not None and self.main_input not in self.model_inputs:
            raise ValueError(
                f"The model must read `{self.main_input}`, the main input of its encoder. Got a model that reads "
                f"{', '.join(self.model_inputs)} instead."
            )
        self._check_lengths()

    def _check_lengths(self) -> None:
        require_count("max_length", self.max_length)
        require_count("max_positions", self.max_positions)
        if self.max_length and not self.is_text:
            raise ValueError(
                f"`max_length` is for texts. Got {self.max_length} for a model that reads {self.modality.data}. Leave "
                "it out, and give the samples in the length that the model should see."
            )
        if self.max_length and self.max_positions and self.max_length > self.max_positions:
            raise ValueError(
                f"`max_length` must be at most {self.max_positions}, the longest input of the model. Got "
                f"{self.max_length} instead."
            )

    @property
    def modality(self) -> Modality:
        """The kind of input, and the words for it."""
        return MODALITIES[self.main_input]

    @property
    def is_text(self) -> bool:
        """Whether the model reads texts."""
        return self.modality is TEXT

    @property
    def kept_names(self) -> frozenset[str]:
        """Names of the tensors that reach the model."""
        usual = TEXT_INPUTS | {self.main_input}
        return frozenset(usual if self.model_inputs is None else self.model_inputs) - LABEL_NAMES

    @property
    def read_names(self) -> frozenset[str]:
        """Names of the columns to read.

        The mask of texts is among them even if the model takes none, because it tells real tokens from padding.
        """
        return self.kept_names | {self.main_input} | ({"attention_mask"} if self.is_text else set())

    @property
    def _part(self) -> Any:
        """What prepares the main input, or None."""
        return self.modality.part_of(self.processing_class)

    @property
    def processor(self) -> Any:
        """The tokenizer, image processor or feature extractor, for uses that need it.

        Raises:
            ValueError: if there is none.
        """
        if self._part is None:
            raise ValueError(
                f"`processing_class` must be {self.modality.prepared_by} when the calibration data is "
                f"{self.modality.data}. Got None instead. Pass processing_class=..., or processed data (with "
                f"`{self.main_input}`)."
            )
        return self._part

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer, for uses that need one.

        Raises:
            ValueError: if there is no tokenizer.
        """
        return self.processor

    @property
    def pads(self) -> bool:
        """Whether samples of unlike lengths can share a batch: padding needs a mask that tells it from the samples."""
        makes_mask = getattr(self._part, "return_attention_mask", False)
        return self.is_text or ("attention_mask" in self.kept_names and makes_mask)

    @property
    def mask(self) -> Callable[[Batch], Tensor]:
        """Maps a batch to the mask of the real positions of its hidden states, (rows, positions)."""
        return self.positions or token_mask

    @property
    def cut_length(self) -> int:
        """Tokens at which texts are cut."""
        limits = (self.tokenizer.model_max_length, self.max_positions or DEFAULT_MAX_LENGTH, DEFAULT_MAX_LENGTH)
        return self.max_length or min(limits)


def require_count(name: str, value: Any, optional: bool = True) -> None:
    """Raises a ValueError if an argument is no whole number of 1 or above. None is allowed if it is optional."""
    if value is None and optional:
        return
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        allowed = "a whole number, 1 or above" + (", or None" if optional else "")
        raise ValueError(f"`{name}` must be {allowed}. Got {value!r} instead.")
