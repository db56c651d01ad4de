"""Loading what is to be pruned: the model with the head of its task, and its tokenizer."""

import logging
from os import PathLike
from pathlib import Path
from typing import Any

import transformers
from safetensors import SafetensorError
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import has_file

from .hosts import require_encoder_type
from .modeling_kprune import auto_classes
from .tasks import Task, get_task, task_of_class

logger = logging.getLogger(__name__)

# Arguments that say where files come from; the tokenizer and the config need them as well as the model.
SOURCE_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "revision", "subfolder", "token")


def load_model(path: str | PathLike, task: str | None, **model_kwargs: Any) -> PreTrainedModel:
    """Loads a checkpoint with the head of its task.

    Args:
        path: local folder or name on the Hub.
        task: name of the task; None takes that of the architecture that the checkpoint was saved as.
        model_kwargs: arguments of `from_pretrained`.

    Raises:
        OSError: if there is no such checkpoint, or its weights are not there, broken, or not of its config's shapes.
        ValueError: if the task cannot be told or does not fit the checkpoint's head.
    """
    source = {name: model_kwargs[name] for name in SOURCE_ARGUMENTS if name in model_kwargs}
    if "trust_remote_code" in model_kwargs:
        source["trust_remote_code"] = model_kwargs["trust_remote_code"]
    folder = Path(path, source.get("subfolder") or "")
    if folder.is_dir() and not (folder / "config.json").is_file():
        if (folder / "adapter_config.json").is_file():
            raise OSError(
                f"The folder {str(path)!r} holds adapters of PEFT alone. Load them onto their model and merge them: "
                f"`KPruner(PeftModel.from_pretrained(model, {str(path)!r}).merge_and_unload(), tokenizer)`."
            )
        raise OSError(
            f"No model could be loaded from {str(path)!r}: the folder has no config.json. Give the folder that the "
            "model's `save_pretrained` wrote."
        )
    try:
        config = AutoConfig.from_pretrained(path, **source)
    except OSError as error:
        raise OSError(f"No model could be loaded from {str(path)!r}. {error}") from error
    require_encoder_type(config)
    chosen = _choose_task(path, config, task)
    if chosen.name == "feature-extraction":
        _warn_of_pipeline(path, source)
    auto_class = getattr(transformers, chosen.auto_class)
    try:
        model, info = auto_class.from_pretrained(path, output_loading_info=True, **model_kwargs)
    except (OSError, RuntimeError, SafetensorError) as error:
        raise OSError(
            f"The weights of {str(path)!r} could not be loaded. They must be whole, and those that were saved with "
            f"its config.json: {' '.join([str(error), *getattr(error, '__notes__', ())])}"
        ) from error
    # A pooler is no head: encoders are published without it, and embeddings are not read from it.
    absent = {*info["missing_keys"], *(entry[0] for entry in info["mismatched_keys"])}
    fresh = sorted(name for name in absent if "pooler" not in name)
    if fresh:
        logger.warning(
            f"The checkpoint {str(path)!r} has no weights that fit {', '.join(fresh)}: they were freshly initialised, "
            "and what such a model predicts is not worth preserving. Fine-tune it on its task before you prune it."
        )
    return model


def load_processing_class(path: str | PathLike, **model_kwargs: Any) -> PreTrainedTokenizerBase | None:
    """Loads the tokenizer of a checkpoint; returns None, with a warning, if there is none."""
    source = {name: model_kwargs[name] for name in SOURCE_ARGUMENTS if name in model_kwargs}
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, **source)
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = f"{type(error).__name__}: {error}"
    else:
        # Without its files, transformers makes a tokenizer that knows no words.
        if len(tokenizer) > len(tokenizer.all_special_ids):
            return tokenizer
        reason = "its vocabulary is empty"
    logger.warning(
        f"No tokenizer could be loaded from {str(path)!r} ({reason}). Pass `processing_class=...` to calibrate on "
        "text and to save the tokenizer with the pruned model."
    )
    return None


def _warn_of_pipeline(path: str | PathLike, source: dict[str, Any]) -> None:
    where = {name: source[name] for name in ("cache_dir", "local_files_only", "revision", "token") if name in source}
    if has_file(path, "modules.json", **where):
        logger.warning(
            f"{str(path)!r} is a pipeline of sentence-transformers, of which only the encoder was loaded: what is "
            "preserved is the mean over its tokens, and no pipeline will be saved. To prune the pipeline, use "
            f"`KPruner.from_sentence_transformer(SentenceTransformer({str(path)!r}))`."
        )


def _choose_task(path: str | PathLike, config: Any, name: str | None) -> Task:
    """The task asked for, or else the task of the architecture that the checkpoint was saved as."""
    architecture = (getattr(config, "architectures", None) or [None])[0]
    if architecture is not None and name != "feature-extraction":
        _require_known(path, config, architecture)
    if name is None:
        if architecture is None:
            raise ValueError(
                f"The config of {str(path)!r} does not say which task the model is for. Pass `task`, for example "
                "task='text-classification'."
            )
        return task_of_class(architecture)
    task = get_task(name)
    heads = ("ForSequenceClassification", "ForQuestionAnswering", "ForTokenClassification", "ForMultipleChoice")
    has_other_head = any(architecture.endswith(head) for head in heads) if architecture else False
    if has_other_head and task.name != "feature-extraction" and task != task_of_class(architecture):
        raise ValueError(
            f"The checkpoint {str(path)!r} was fine-tuned as {architecture}, for "
            f"{task_of_class(architecture).name!r}. Got task={name!r}. Leave `task` out, or choose a checkpoint that "
            "was fine-tuned for it."
        )
    return task


def _require_known(path: str | PathLike, config: Any, architecture: str) -> None:
    """Raises a ValueError if a checkpoint is of a class that no Auto class can load."""
    own = architecture.removeprefix("KPrune")
    remote = [str(name).rpartition(".")[2] for name in (getattr(config, "auto_map", None) or {}).values()]
    registered = [model_class.__name__ for model_class in auto_classes(config.__class__).values()]
    if not hasattr(transformers, own) and architecture not in (*remote, *registered):
        loaded = f"pruned_class({own})" if own != architecture else own
        raise ValueError(
            f"The checkpoint {str(path)!r} was saved from the class {own}, which transformers does not have. Load it "
            f"with that class: `KPruner({loaded}.from_pretrained({str(path)!r}), tokenizer)`; or prune the encoder "
            "alone, with task='feature-extraction'."
        )
