"""A model with fewer tokens: of its embeddings, and of what predicts tokens, the rows of those that stay."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel


def with_tokens(model: PreTrainedModel, kept: Sequence[int]) -> PreTrainedModel:
    """Returns a model that has only some of the tokens, in evaluation mode. It shares all other weights.

    Args:
        model: the model. It is not changed.
        kept: ids of the tokens, in the order of their new ids.

    Raises:
        ValueError: if something else than rows of tokens depends on their number; see `tables_of`.
    """
    rows, state = torch.tensor(kept), model.state_dict()
    made = _empty(model, with_fewer(model.config, kept))
    for name in tables_of(model, kept):
        state[name] = state[name].index_select(0, rows.to(state[name].device))
    return _filled(made, state, model)


def restore_vocabulary(model: PreTrainedModel, dense: PreTrainedModel, kept: Sequence[int]) -> PreTrainedModel:
    """Returns a model with all tokens of the dense one again, in evaluation mode. It shares all other weights.

    Args:
        model: the model with fewer tokens, such as a pruned one that was loaded. It is not changed.
        dense: the model that has all tokens.
        kept: ids in `dense` of the tokens of `model`, as `read_vocabulary` returns them.

    Raises:
        ValueError: if the numbers of tokens are others.
    """
    wanted, size = copy.deepcopy(model.config), dense.config.get_text_config().vocab_size
    have = model.config.get_text_config().vocab_size
    if have != len(kept) or max(kept) >= size:
        raise ValueError(
            f"`kept` must have the ids in `dense`, which has {size:,} tokens, of the {have:,} tokens of `model`. Got "
            f"{len(kept):,} ids up to {max(kept):,}. Pass what `read_vocabulary` returns for the folder of `model`."
        )
    _number(wanted, size, dict(enumerate(kept)))
    state, whole = model.state_dict(), dense.state_dict()
    made = _empty(model, wanted)
    for name, tensor in made.state_dict().items():
        if tensor.shape != state[name].shape:
            rows = whole[name].clone()
            rows[torch.tensor(kept)] = state[name].to(rows)
            state[name] = rows
    return _filled(made, state, model)


def tables_of(model: PreTrainedModel, kept: Sequence[int]) -> list[str]:
    """Returns the names of the tensors with a row for every token: those that shrink where a config has fewer.

    Raises:
        ValueError: if there are none, or others than rows become fewer.
    """
    whole, fewer = model.state_dict(), _empty(model, with_fewer(model.config, kept)).state_dict()
    names = [name for name, tensor in fewer.items() if tensor.shape != whole[name].shape]
    odd = [name for name in names if fewer[name].shape != (len(kept), *whole[name].shape[1:])]
    if odd or not names:
        raise ValueError(
            f"With `vocabulary`, a {type(model).__name__} must have a row for every token in its table of embeddings, "
            f"and nothing else may depend on their number. Got {', '.join(odd) or 'no such table'}. Leave it out."
        )
    return names


def with_fewer(config: Any, kept: Sequence[int]) -> Any:
    """Returns a config for a model with fewer tokens: their number, and the ids of special tokens."""
    fewer = copy.deepcopy(config)
    _number(fewer, len(kept), {old: new for new, old in enumerate(kept)})
    return fewer


def special_ids(config: Any) -> set[int]:
    """Returns the ids of tokens that a config names, such as that of the padding."""
    return {each for ids in _named_ids(config).values() for each in (ids if isinstance(ids, list) else [ids])}


def _named_ids(config: Any) -> dict[str, Any]:
    return {name: ids for name, ids in config.to_dict().items() if name.endswith("token_id") and ids is not None}


def _number(config: Any, size: int, numbers: dict[int, int]) -> None:
    """Gives a config another number of tokens, and the ids that it names the numbers that they have now."""
    text = config.get_text_config()
    text.vocab_size = size
    for name, ids in _named_ids(text).items():
        # Some name an id that their models do not have.
        new = [numbers.get(each, each) for each in ids] if isinstance(ids, list) else numbers.get(ids, ids)
        setattr(text, name, new)


def _empty(model: Any, config: Any) -> Any:
    """Returns a model without values, of the class of a model."""
    with torch.device("meta"):
        return type(model)._from_config(config, dtype=None)


def _filled(empty: Any, state: dict[str, Tensor], like: Any) -> Any:
    """Puts weights into a model, and the buffers that are not saved, which are those of another model."""
    empty.load_state_dict(state, assign=True)
    for name, buffer in like.named_buffers():
        if name not in state:
            owner, _, own = name.rpartition(".")
            empty.get_submodule(owner)._buffers[own] = buffer
    empty.tie_weights()
    empty.config.dtype = like.dtype
    return empty.eval().requires_grad_(False)
