"""The vocabulary of its own that a pruned model can have: where it is noted, written and read."""

import json
import logging
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn
from transformers import PreTrainedTokenizerBase
from transformers.utils import cached_file

from ..calibration.spec import Batch
from .retokenize import Retokenizer

logger = logging.getLogger(__name__)

MAP_NAME = "kprune_vocabulary.json"
# The attribute of a model that has one.
ATTRIBUTE = "kprune_vocabulary"


class OwnVocabulary(NamedTuple):
    """A vocabulary that is a part of the dense model's.

    Attributes:
        tokenizer: the tokenizer.
        kept: ids in the dense model of the tokens, in the order of their ids here.
        size_before: number of tokens of the dense tokenizer.
        retokenizer: writes text in the tokens of the dense model in these.
        by_text: whether the model predicts something for a text, which compares with what the dense model predicts;
            and not for every token, of which it has others.
    """

    tokenizer: PreTrainedTokenizerBase
    kept: Sequence[int]
    size_before: int
    retokenizer: Retokenizer
    by_text: bool

    def give_to(self, model: nn.Module) -> None:
        """Notes on a model that it has this vocabulary."""
        setattr(model, ATTRIBUTE, self)


def save_map(folder: Path, model: nn.Module, dense: Any) -> None:
    """Writes the map of ids into the folder of a pruned model, if it has fewer tokens.

    Args:
        folder: a folder that is there.
        model: the pruned model.
        dense: the config of the model that it came of. If that was loaded from a folder with a map, as it was pruned
            before, the ids that are written are those in the model that came first.
    """
    own, written = own_vocabulary(model), _map_of(dense)
    if own is not None and not written:
        written = {"size_before": own.size_before, "kept": list(own.kept)}
    elif own is not None:
        if own.size_before != len(written["kept"]):
            logger.warning(
                f"The folder {dense._name_or_path!r} holds another model by now than when it was loaded, so that "
                f"nothing tells the dense model's ids. {MAP_NAME} is not written."
            )
            return
        written = {**written, "kept": [written["kept"][token] for token in own.kept]}
    if written:
        (folder / MAP_NAME).write_text(f"{json.dumps(written)}\n", encoding="utf-8")


def _map_of(config: Any) -> dict[str, Any]:
    """Returns the map in the folder that a pruned model was loaded from; {} if it has none, or was not pruned."""
    if not (hasattr(config, "kprune") and config._name_or_path):
        return {}
    try:
        file: Any = cached_file(config._name_or_path, MAP_NAME)
    except OSError:
        return {}
    return json.loads(Path(file).read_text(encoding="utf-8"))


def own_vocabulary(model: nn.Module) -> OwnVocabulary | None:
    """Returns the vocabulary of its own that a pruned model in memory has; None for one that reads the dense's."""
    # A module of the user's holds the model that has it.
    return next((own for part in model.modules() if (own := vars(part).get(ATTRIBUTE))), None)


def tokenizer_of(model: nn.Module, otherwise: Any) -> Any:
    """Returns the tokenizer of a model that has one of its own, and otherwise another."""
    own = own_vocabulary(model)
    return otherwise if own is None else own.tokenizer


def written_for(model: nn.Module, batches: Sequence[Batch]) -> Sequence[Batch]:
    """Returns batches in the tokens of the dense model as a model reads them that may have a vocabulary of its own."""
    own = own_vocabulary(model)
    return batches if own is None else [own.retokenizer.batch(batch) for batch in batches]


def read_vocabulary(folder: str | PathLike, **kwargs: Any) -> list[int]:
    """Reads which tokens of the dense model a saved model has.

    Args:
        folder: the folder of the pruned model, or its name on the Hub.
        kwargs: where files come from, as in `from_pretrained`: `revision`, `token`, `cache_dir`, `local_files_only`.

    Returns:
        ids in the dense model, in the order of the ids in the pruned one.

    Raises:
        OSError: if there is no such folder, or the model has the vocabulary of the dense one.
    """
    file: Any = cached_file(folder, MAP_NAME, **kwargs)
    return json.loads(Path(file).read_text(encoding="utf-8"))["kept"]
