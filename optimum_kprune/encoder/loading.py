"""Loads the model to prune, with the head of its task, and what prepares its input, such as its tokenizer."""

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from json import JSONDecodeError
from os import PathLike
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import transformers
from transformers import AutoConfig, AutoProcessor, PreTrainedConfig, PreTrainedModel
from transformers.utils import cached_file, has_file

from ..calibration.modality import MODALITIES, TEXT, Modality, ProcessingClass
from ..modeling_kprune import auto_classes, weights_of_encoder
from .conversion import require_no_generation
from .tasks import Task, get_task, main_input_of, task_of_class

logger = logging.getLogger(__name__)

# A masked-language model has a head, too, but it is not fine-tuned: any task may start from it.
FINE_TUNED_HEADS = (
    "ForSequenceClassification",
    "ForQuestionAnswering",
    "ForTokenClassification",
    "ForMultipleChoice",
    "ForImageClassification",
    "ForVideoClassification",
    "ForAudioClassification",
    "ForCTC",
)
# Arguments that say where files come from, and whether to run code that lies there; the tokenizer and the config need
# them as well as the model.
PLACE_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "revision", "subfolder", "token")
SOURCE_ARGUMENTS = (*PLACE_ARGUMENTS, "trust_remote_code")
# What sentence-transformers has written into the config of the model in a CrossEncoder.
RERANKER_MARKS = {"sentence_transformers", "sbert_ce_default_activation_function"}


def load_model(path: str | PathLike, task: str | None, **model_kwargs: Any) -> PreTrainedModel:
    """Loads a checkpoint with the head of its task.

    Args:
        path: local folder or name on the Hub.
        task: name of the task. None takes the task of the class that the checkpoint was saved from.
        model_kwargs: arguments of `from_pretrained`.

    Raises:
        OSError: if there is no such checkpoint, or its weights are missing, broken, or of other shapes than its
            config says.
        ValueError: if the task is not clear or does not fit the head of the checkpoint.
    """
    source = {name: model_kwargs[name] for name in SOURCE_ARGUMENTS if name in model_kwargs}
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
    with _loading_errors_explained(f"No model could be loaded from {str(path)!r}."):
        config = AutoConfig.from_pretrained(path, **source)
    chosen = _choose_task(path, config, task)
    if chosen.auto_class == "AutoModel":
        _warn_of_pipeline(path, source)
    loader = _loader_of(config, chosen)
    with _loading_errors_explained(
        f"The weights of {str(path)!r} could not be loaded. They must be whole, and those that were saved with its "
        "config.json:"
    ):
        model, info = loader.from_pretrained(path, output_loading_info=True, **model_kwargs)
    # Transformers only warns of these, and fills them with random numbers.
    absent = {*info["missing_keys"], *(mismatch[0] for mismatch in info["mismatched_keys"])}
    if lacking := weights_of_encoder(model, absent):
        raise OSError(
            f"The checkpoint {str(path)!r} lacks {len(lacking)} weights of the encoder, such as {lacking[0]!r}. They "
            "must be whole, and those that were saved with its config.json."
        )
    # A missing pooler is no fault: encoders are published without it, and no embedding is read from it.
    fresh = sorted(name for name in absent if "pooler" not in name)
    if fresh:
        logger.warning(
            f"The checkpoint {str(path)!r} has no weights that fit the head ({', '.join(fresh)}): they were freshly "
            "initialised, and what such a model predicts is not worth preserving. Fine-tune it on its task before you "
            "prune it."
        )
    return model


@contextmanager
def _loading_errors_explained(sentence: str) -> Iterator[None]:
    """Turns errors in loading a checkpoint into an OSError of one line that begins with a sentence.

    A ValueError is raised as it is, because its message says enough.
    """
    try:
        yield
    # Transformers raises errors of any type for files that it did not write, from KeyError to ZeroDivisionError.
    except Exception as error:
        # A JSONDecodeError is a ValueError, but does not name the file.
        if isinstance(error, ValueError) and not isinstance(error, JSONDecodeError):
            raise
        told = " ".join([str(error), *getattr(error, "__notes__", ())])
        if isinstance(error, UnpicklingError):
            # The message of torch advises to switch its safety off.
            told = "they are pickled, with more in the pickle than tensors. Ask for them as safetensors."
        elif not isinstance(error, OSError):
            told = f"{type(error).__name__}: {told}"
        raise OSError(f"{sentence} {' '.join(told.split())}") from error


def load_processing_class(
    path: str | PathLike, main_input: str = "input_ids", **model_kwargs: Any
) -> ProcessingClass | None:
    """Loads what prepares the input of a checkpoint: its tokenizer, image processor or feature extractor.

    A processor of audio or images is loaded whole if a tokenizer belongs to it. If there is none, warns and returns
    None.

    Args:
        path: local folder or name on the Hub.
        main_input: the main input of its model.
        model_kwargs: arguments of `from_pretrained`; those that say where files come from are used.

    Raises:
        ValueError: if there is one, but it cannot be loaded or used.
    """
    source = {name: model_kwargs[name] for name in SOURCE_ARGUMENTS if name in model_kwargs}
    modality = MODALITIES.get(main_input, TEXT)
    has_tokenizer = any(_has_file(path, name, source) for name in TEXT.files)
    is_whole = modality is not TEXT and has_tokenizer
    auto_class = AutoProcessor if is_whole else getattr(transformers, modality.auto_class)
    try:
        loaded = auto_class.from_pretrained(path, **source)
    # For broken files, the library tokenizers raises `Exception` itself, and transformers errors of any type.
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
    else:
        reason = _unusable(loaded, modality)
        if not reason:
            return loaded
    name, reason = modality.attribute.replace("_", " "), " ".join(reason.split())
    if any(_has_file(path, name, source) for name in modality.files):
        raise ValueError(
            f"The {name} of {str(path)!r} could not be loaded ({reason}). Mend or remove its files, or pass "
            "`processing_class=...`."
        )
    logger.warning(
        f"No {name} could be loaded from {str(path)!r} ({reason}). Pass `processing_class=...` to calibrate on "
        f"{modality.data} and to save the {name} with the pruned model."
    )
    return None


def _unusable(loaded: Any, modality: Modality) -> str:
    """Returns why what was loaded cannot prepare input; "" if it can."""
    part = modality.part_of(loaded)
    if part is None:
        return f"the files are those of a {type(loaded).__name__}"
    if modality is not TEXT:
        return ""
    # Where files are missing, transformers makes a tokenizer with an empty vocabulary.
    if len(part) <= len(part.all_special_ids):
        return "its vocabulary is empty"
    if not isinstance(part.model_max_length, int | float):
        return f"its `model_max_length` must be a number, and is {part.model_max_length!r}"
    return ""


def _has_file(path: str | PathLike, name: str, source: dict[str, Any]) -> bool:
    """Returns whether a folder or a repository has a file."""
    where = {name: source[name] for name in ("cache_dir", "local_files_only", "revision", "token") if name in source}
    return has_file(path, Path(source.get("subfolder") or "", name).as_posix(), **where)


def is_pipeline(path: str | PathLike, **source: Any) -> bool:
    """Returns whether a folder or a repository holds a pipeline of sentence-transformers."""
    return _has_file(path, "modules.json", source)


def is_reranker(path: str | PathLike, **source: Any) -> bool:
    """Returns whether a folder or a repository holds a `CrossEncoder` of sentence-transformers, as it says itself.

    Before it wrote `modules.json`, the library left a mark in the config of the model. One with that mark and several
    labels is a text classifier.
    """
    name = "config_sentence_transformers.json" if is_pipeline(path, **source) else "config.json"
    if not _has_file(path, name, source):
        return False
    with _loading_errors_explained(f"No model could be loaded from {str(path)!r}."):
        config = json.loads(Path(str(cached_file(path, name, **source))).read_text(encoding="utf-8"))
        if name == "config.json":
            return bool(RERANKER_MARKS & config.keys()) and PreTrainedConfig.from_dict(config).num_labels == 1
        return config.get("model_type") == "CrossEncoder"


def _warn_of_pipeline(path: str | PathLike, source: dict[str, Any]) -> None:
    """Warns if only the encoder of a pipeline of sentence-transformers was loaded."""
    if is_pipeline(path, **source):
        logger.warning(
            f"{str(path)!r} is a pipeline of sentence-transformers, of which only the encoder was loaded: what is "
            "preserved is the mean over its tokens, and no pipeline will be saved. To prune the pipeline, use "
            f"`KPruner.from_sentence_transformer(SentenceTransformer({str(path)!r}))`, or the command without a task."
        )


def _choose_task(path: str | PathLike, config: Any, name: str | None) -> Task:
    """Returns the task of the given name, or else the task of the class that the checkpoint was saved from."""
    architectures = getattr(config, "architectures", None) or [None]
    if not isinstance(architectures, list) or not isinstance(architectures[0], str | None):
        raise ValueError(
            f"`architectures` in the config of {str(path)!r} must be a list with the name of its class. Got "
            f"{architectures!r}."
        )
    architecture: Any = architectures[0]
    main_input = main_input_of(type(config))
    task = None if name is None else get_task(name, main_input)
    is_encoder_alone = task is not None and task.auto_class == "AutoModel"
    if architecture is not None and not is_encoder_alone:
        _require_known(path, config, architecture)
    if task is None:
        if architecture is None:
            raise ValueError(
                f"The config of {str(path)!r} does not say which task the model is for. Pass `task`, for example "
                "task='text-classification'."
            )
        return task_of_class(architecture, type(config))
    if architecture is None or is_encoder_alone or not architecture.endswith(FINE_TUNED_HEADS):
        return task
    own = task_of_class(architecture, type(config))
    if task != own:
        raise ValueError(
            f"The checkpoint {str(path)!r} was fine-tuned as {architecture}, for {own.name!r}. Got task={name!r}. "
            "Leave `task` out, or choose a checkpoint that was fine-tuned for it."
        )
    return task


def _loader_of(config: Any, task: Task) -> Any:
    """Returns the class that loads a checkpoint with the head of a task: an Auto class, or the encoder itself.

    Where an encoder-decoder model has a class for the encoder alone, `AutoModel` would load the decoder too.
    """
    encoders = auto_classes(type(config)).get(task.auto_class, ())
    has_several = task.auto_class == "AutoModel" and len(encoders) > 1
    return encoders[0] if has_several else getattr(transformers, task.auto_class)


def _require_known(path: str | PathLike, config: Any, architecture: str) -> None:
    """Raises a ValueError if a checkpoint was saved from a class that no Auto class can load."""
    own = architecture.removeprefix("KPrune")
    if hasattr(transformers, own):
        require_no_generation(getattr(transformers, own))
    remote = [str(name).rpartition(".")[2] for name in (getattr(config, "auto_map", None) or {}).values()]
    registered = [made.__name__ for models in auto_classes(type(config)).values() for made in models]
    if not hasattr(transformers, own) and architecture not in (*remote, *registered):
        loaded = f"pruned_class({own})" if own != architecture else own
        raise ValueError(
            f"The checkpoint {str(path)!r} was saved from the class {own}, which transformers does not have. Load it "
            f"with that class: `KPruner({loaded}.from_pretrained({str(path)!r}), tokenizer)`; or prune the encoder "
            "alone, with task='feature-extraction'."
        )
