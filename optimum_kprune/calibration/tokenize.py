"""Raw rows -> tokenized samples, in the way in which each task reads its texts."""

import random
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import compress
from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from .columns import SWAG, TEXT_COLUMNS, find_text_columns, holds_text

# One sample: numbers per input name, nested (choices, tokens) for multiple choice.
Sample = dict[str, Any]

TEXT_INPUTS = frozenset({"input_ids", "attention_mask", "token_type_ids", "position_ids"})
LABEL_NAMES = frozenset(
    {"label", "labels", "label_ids", "start_positions", "end_positions", "next_sentence_label", "sentence_order_label"}
)
# The longest input of BERT and its kin. Texts are cut there for models that can read more, too.
DEFAULT_MAX_LENGTH = 512
# The share that BERT and its kin were trained with.
MASKED_SHARE = 0.15


@dataclass(frozen=True)
class InputSpec:
    """What a model reads, and how texts are tokenized for it.

    Attributes:
        task: name of the task in `transformers.pipeline`; one of the six that encoders have.
        processing_class: the tokenizer. It is needed only to tokenize texts and to pad.
        text_columns: columns that hold the texts, in order: one; two for a pair (question, context); or the prompt
            and its choices. `None` finds them by their names.
        preprocess_function: replaces the tokenization here. It maps raw rows, a dictionary of lists, to a dictionary
            of lists of inputs, as in `Dataset.map(..., batched=True)`.
        max_length: tokens at which texts are cut. `None` takes the smallest of the limit of the tokenizer,
            `max_positions` and 512.
        max_positions: the longest input of the model, in tokens.
        vocab_size: rows of the model's table of embeddings. `None` does not check `input_ids` against it.
        type_vocab_size: the same for `token_type_ids`.
        model_inputs: names of the arguments of the model's forward. Other columns and labels are dropped. `None` takes
            `input_ids`, `attention_mask`, `token_type_ids` and `position_ids`.
        seed: seed of the choice of samples and of masked tokens.

    Raises:
        ValueError: if a value cannot be used. The message says which values can.
    """

    task: str
    processing_class: PreTrainedTokenizerBase | None = None
    text_columns: Sequence[str] | None = None
    preprocess_function: Callable[[dict[str, list]], Mapping[str, Any]] | None = None
    max_length: int | None = None
    max_positions: int | None = None
    vocab_size: int | None = None
    type_vocab_size: int | None = None
    model_inputs: Collection[str] | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        """Checks what can be checked before any data is read."""
        if self.task not in TEXT_COLUMNS:
            raise ValueError(f"`task` must be one of {', '.join(TEXT_COLUMNS)}. Got {self.task!r} instead.")
        if not isinstance(self.processing_class, PreTrainedTokenizerBase | None):
            raise ValueError(
                "`processing_class` must be a tokenizer: images and speech are not supported. Got "
                f"{type(self.processing_class).__name__} instead. Pass the tokenizer, for instance "
                "`AutoTokenizer.from_pretrained(...)` or `processor.tokenizer`."
            )
        if isinstance(self.text_columns, str):
            raise ValueError(
                f"`text_columns` must be a list of column names. Got {self.text_columns!r} instead. "
                f"Pass text_columns=[{self.text_columns!r}]."
            )
        if self.model_inputs is not None and "input_ids" not in self.model_inputs:
            raise ValueError(
                "The model must read `input_ids`: only text encoders are supported. Got a model that reads "
                f"{', '.join(self.model_inputs)} instead."
            )
        require_count("max_length", self.max_length)
        require_count("max_positions", self.max_positions)
        if self.max_length and self.max_positions and self.max_length > self.max_positions:
            raise ValueError(
                f"`max_length` must be at most {self.max_positions}, the longest input of the model. Got "
                f"{self.max_length} instead."
            )

    @property
    def kept_names(self) -> frozenset[str]:
        """Names of the tensors that reach the model."""
        return frozenset(TEXT_INPUTS if self.model_inputs is None else self.model_inputs) - LABEL_NAMES

    @property
    def read_names(self) -> frozenset[str]:
        """Names of the columns to read.

        The mask is among them even if the model takes none, because it tells real tokens from padding.
        """
        return self.kept_names | {"input_ids", "attention_mask"}

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer, for uses that need one.

        Raises:
            ValueError: if there is no tokenizer.
        """
        if self.processing_class is None:
            raise ValueError(
                "`processing_class` must be a tokenizer when the calibration data is text. Got None instead. "
                "Pass processing_class=..., or tokenized data (with `input_ids`)."
            )
        return self.processing_class

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


@dataclass(frozen=True)
class Reading:
    """How rows of a table become samples.

    Attributes:
        columns: the columns that are read.
        content: the columns by which the draw tells rows apart, in an order that does not depend on the table.
        encode: maps rows, a dictionary of lists, to samples with `input_ids` and the other inputs of the model. It
            adds no padding.
        text_columns: the columns that hold the texts; None if they are not known, or the rows are tokenized.
    """

    columns: list[str]
    content: list[str]
    encode: Callable[[dict[str, list]], list[Sample]]
    text_columns: tuple[str, ...] | None = None


def reading_of(table: Dataset, spec: InputSpec, with_labels: bool = False) -> Reading:
    """Returns how the rows of a table become samples.

    Args:
        table: tokenized rows (with `input_ids`), or raw rows.
        spec: how raw rows become samples.
        with_labels: whether to keep the label columns of tokenized rows.

    Raises:
        ValueError: if the text columns are missing or ambiguous.
    """
    if "input_ids" in table.column_names:
        wanted = spec.read_names | (LABEL_NAMES if with_labels else frozenset())
        columns = [name for name in table.column_names if name in wanted]
        return Reading(columns, sorted(spec.read_names.intersection(columns)), _split_rows)
    if spec.preprocess_function is not None:
        # It is not known which columns the function reads. Any text column can tell rows apart for the draw.
        texts = sorted(name for name, feature in table.features.items() if holds_text(feature))
        return Reading(table.column_names, texts or sorted(table.column_names), partial(_preprocess, spec))
    names = find_text_columns(table.features, spec.task, spec.text_columns)
    return Reading(list(names), list(names), partial(_encode, spec, names), names)


def _split_rows(columns: Mapping[str, Sequence]) -> list[Sample]:
    """Turns columns into samples, and leaves out rows without tokens."""
    samples = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    return [sample for sample in samples if sample["input_ids"]]


def _preprocess(spec: InputSpec, columns: dict[str, list]) -> list[Sample]:
    """Makes samples of raw rows with the user's own function."""
    processed = spec.preprocess_function(columns)  # type: ignore[misc]
    if not isinstance(processed, Mapping) or "input_ids" not in processed:
        got = ", ".join(processed) if isinstance(processed, Mapping) else type(processed).__name__
        raise ValueError(
            "`preprocess_function` must map a dictionary of lists, with one item per row, to a dictionary of lists "
            f"with `input_ids`. Got {got} instead. Return what the tokenizer returns."
        )
    return _split_rows({name: _lists(values) for name, values in processed.items() if name in spec.read_names})


def _lists(values: Any) -> list:
    """Returns lists of numbers for lists, arrays or tensors, or for a list of these."""
    values = values.tolist() if hasattr(values, "tolist") else values
    return [item.tolist() if hasattr(item, "tolist") else item for item in values]


def _encode(spec: InputSpec, names: tuple[str, ...], columns: dict[str, list]) -> list[Sample]:
    """Tokenizes texts, or lists of words. Leaves out rows that lack a text or hold nothing but blanks."""
    texts = [columns[name] for name in names]
    is_full = [
        all(text is not None for text in row) and any("".join(text).strip() for text in row)
        for row in zip(*texts, strict=True)
    ]
    texts = [list(compress(column, is_full)) for column in texts]
    # In SWAG, `sent2` is the beginning of every ending.
    if names == SWAG:
        first, second, *endings = texts
        texts = [first, *([f"{one} {other}" for one, other in zip(second, ending, strict=True)] for ending in endings)]
    return _ENCODERS[spec.task](spec, *texts) if any(is_full) else []


def _tokenize(spec: InputSpec, *texts: list, **arguments: Any) -> list[Sample]:
    """Tokenizes texts, or pairs given as two lists, without padding."""
    length, special = spec.cut_length, spec.tokenizer.num_special_tokens_to_add(pair=len(texts) > 1)
    if length <= special:
        raise ValueError(
            f"`max_length` must be above {special}, the number of special tokens that the tokenizer adds. "
            f"Got {length} instead."
        )
    arguments = {"truncation": True, "max_length": length, "return_attention_mask": True, **arguments}
    return _split_rows(spec.tokenizer(*texts, **arguments))


def _encode_singly(spec: InputSpec, *texts: list) -> list[Sample]:
    """Tokenizes every text alone: an embedding model reads one text at a time, even if the data has pairs."""
    return _tokenize(spec, [text for row in zip(*texts, strict=True) for text in row if text.strip()])


def _encode_words(spec: InputSpec, texts: list) -> list[Sample]:
    return _tokenize(spec, texts, is_split_into_words=not isinstance(texts[0], str))


def _encode_questions(spec: InputSpec, questions: list[str], contexts: list[str]) -> list[Sample]:
    """Tokenizes questions with their contexts, each cut to what fits beside the question."""
    ids = spec.tokenizer(questions, add_special_tokens=False)["input_ids"]
    longest = max(map(len, ids)) + spec.tokenizer.num_special_tokens_to_add(pair=True)
    # Checked here, because the error of a tokenizer that cannot cut enough says nothing about `max_length`.
    if longest >= spec.cut_length:
        raise ValueError(
            f"Every question must leave room for its context within `max_length`, {spec.cut_length} tokens. Got a "
            f"question that takes {longest} with the special tokens. Raise `max_length`, leave such rows out, or "
            "check that `text_columns` names the question first."
        )
    return _tokenize(spec, questions, contexts, truncation="only_second")


def _encode_choices(spec: InputSpec, prompts: list[str], *choices: list[str]) -> list[Sample]:
    """Tokenizes each choice as a pair with its prompt. Samples are nested: (choices, tokens)."""
    count = len(choices)
    repeated = [prompt for prompt in prompts for _ in range(count)]
    pairs = _tokenize(spec, repeated, [choice for row in zip(*choices, strict=True) for choice in row])
    groups = [pairs[start : start + count] for start in range(0, len(pairs), count)]
    return [{name: [pair[name] for pair in group] for name in group[0]} for group in groups]


def _encode_masked(spec: InputSpec, *texts: list[str]) -> list[Sample]:
    """Tokenizes texts, and masks a share of their tokens, as in the training of the model."""
    mask_token_id = spec.tokenizer.mask_token_id
    if mask_token_id is None:
        raise ValueError(
            "The tokenizer of a fill-mask model must have a mask token. Got a tokenizer without one instead. "
            "Set `processing_class.mask_token`, or pass tokenized data."
        )
    samples = _tokenize(spec, *texts, return_special_tokens_mask=True)
    return [_mask_tokens(sample, mask_token_id, spec.seed) for sample in samples]


def _mask_tokens(sample: Sample, mask_token_id: int, seed: int) -> Sample:
    """Masks a share of the tokens, unless the text has masks. The choice depends on the seed and the sample alone."""
    special, ids = sample.pop("special_tokens_mask"), sample["input_ids"]
    maskable = [index for index, is_special in enumerate(special) if not is_special]
    if mask_token_id in ids or not maskable:
        return sample
    count = max(1, round(MASKED_SHARE * len(maskable)))
    # Seeded with a text, from which Python draws the same numbers in every process.
    masked = set(random.Random(f"{seed} {ids}").sample(maskable, count))
    return {**sample, "input_ids": [mask_token_id if index in masked else token for index, token in enumerate(ids)]}


# By task: the function that maps columns of texts, without empty rows, to samples.
_ENCODERS: dict[str, Callable[..., list[Sample]]] = {
    "text-classification": _tokenize,
    "question-answering": _encode_questions,
    "token-classification": _encode_words,
    "fill-mask": _encode_masked,
    "multiple-choice": _encode_choices,
    "feature-extraction": _encode_singly,
}
