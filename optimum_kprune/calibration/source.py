"""Where calibration data comes from: the Hub, a local folder or files -> one raw `datasets.Dataset`."""

import csv
import gzip
import logging
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict, get_dataset_split_names, load_dataset, load_from_disk
from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError

from ..names import FILE_FORMATS, MEDIA_FORMATS, TEXT_FORMATS, looks_like_path
from .columns import SEPARATORS

logger = logging.getLogger(__name__)

ALLOWED_TYPES = f"{', '.join(FILE_FORMATS)} (those of text also as .gz)"
GZIP_MAGIC = b"\x1f\x8b"
HEADER_BYTES = 100_000
# Files of JSON that describe data instead of holding it; `datasets` skips them too.
METADATA_FILES = {"config.json", "dataset_info.json", "dataset_infos.json", "dataset_dict.json"}


def read_split(
    dataset_name: str | PathLike | Sequence[str | PathLike], config_name: str | None, split: str
) -> Dataset:
    """Reads one split of a data set.

    Args:
        dataset_name: a folder of files of one format, or one written by `save_to_disk`; a file, a glob pattern or a
            list of these; otherwise a name on the Hugging Face Hub. A local path that exists comes before a name.
        config_name: configuration of a Hub data set or of a folder.
        split: split to read, such as "train" or "train[:1000]". Files form the split "train".

    Raises:
        FileNotFoundError: if a path does not exist, or the name is neither a path nor readable on the Hub.
        ValueError: if the type of a file is unknown, or there is no such configuration, split or data.
    """
    if not dataset_name:
        raise ValueError(f"`dataset_name` must name a data set, a folder or files. Got {dataset_name!r} instead.")
    if isinstance(dataset_name, str | PathLike):
        path = Path(dataset_name).expanduser()
        if path.is_dir():
            return _read_folder(path, config_name, split)
        if not path.exists() and not looks_like_path(str(dataset_name)):
            return _load(str(dataset_name), split, config_name)
        dataset_name = [path]
    _reject_config(config_name, "files")
    files = [file for path in dataset_name for file in _expand(Path(path).expanduser())]
    return _load(_format_of(files), split, None, files, data_files=[str(file) for file in files])


def default_split(dataset_name: Any) -> str:
    """Returns the split to evaluate on: "validation", or "train" for files, which `datasets` reads as that split.

    So it does with a folder of images or audio that is not divided into splits.
    """
    is_name = isinstance(dataset_name, str | PathLike)
    if is_name and _is_undivided_media(Path(dataset_name).expanduser()):
        return "train"
    is_files = is_name and looks_like_path(str(dataset_name)) and not Path(dataset_name).is_dir()
    return "train" if is_files else "validation"


def _is_undivided_media(folder: Path) -> bool:
    """Returns whether a folder holds images or audio, and none of it in a folder that is named after a split."""
    files = [path for path in folder.rglob("*") if _type_of(path) in MEDIA_FORMATS] if folder.is_dir() else []
    return bool(files) and get_dataset_split_names(_format_of(files), data_dir=str(folder)) == ["train"]


def _expand(path: Path) -> list[Path]:
    """Returns the file itself, or the files that a glob pattern matches, sorted."""
    if path.exists():
        return [path]
    # `Path.glob` takes relative patterns only, so that it starts from the root or the current folder. A path that
    # exists never gets here, even if its name has the characters of a pattern.
    matches = Path(path.anchor).glob(str(path.relative_to(path.anchor)))
    files = sorted(match for match in matches if match.is_file()) if any(c in str(path) for c in "*?[") else []
    if not files:
        raise FileNotFoundError(
            "`dataset_name` must be the name of a data set on the Hugging Face Hub, or an existing folder, file, glob "
            f"pattern or list of files. Got {str(path)!r}, which does not exist (looked in {str(Path.cwd())!r} if it "
            "is relative). Correct the path; texts themselves are given to `prune`, in a list."
        )
    return files


def _type_of(file: Path) -> str:
    """Returns the suffix that shows the format: the last one, or the one before ".gz" of a compressed text file."""
    suffix, inner = file.suffix.lower(), Path(file.stem).suffix.lower()
    return inner if suffix == ".gz" and inner in TEXT_FORMATS else suffix


def _format_of(files: Sequence[Path]) -> str:
    """Returns the one format of all files, as `datasets.load_dataset` calls it."""
    for file in files:
        if _type_of(file) not in FILE_FORMATS:
            raise ValueError(
                f"`dataset_name` must name files of the types {ALLOWED_TYPES}. Got {str(file)!r} instead. "
                "Convert it, or load it yourself and pass the `datasets.Dataset`."
            )
    formats = sorted({FILE_FORMATS[_type_of(file)] for file in files})
    if len(formats) > 1:
        raise ValueError(
            f"The files of `dataset_name` must all have one format (types: {ALLOWED_TYPES}). Got {', '.join(formats)} "
            "instead. Name the files of one format, for instance with a glob pattern."
        )
    return formats[0]


def _open_text(file: Path) -> Any:
    """Opens a file of text, compressed or not, to read its bytes."""
    # By its first bytes and not by its name: `datasets` unpacks compressed files whatever they are called.
    with file.open("rb") as opened:
        is_compressed = opened.read(len(GZIP_MAGIC)) == GZIP_MAGIC
    return gzip.open(file) if is_compressed else file.open("rb")


def _separator_of(files: Sequence[Path]) -> str:
    """Returns the separator that splits the headers of tables into most columns; the usual one wins a tie."""
    separators: dict[str, Path] = {}
    for file in files:
        with _open_text(file) as opened:
            header = [opened.readline(HEADER_BYTES).decode(errors="replace")]
        usual = "\t" if _type_of(file) == ".tsv" else ","
        separator = max(f"{usual},{SEPARATORS}", key=lambda one: len(next(csv.reader(header, delimiter=one), ())))
        if separator != usual:
            logger.info("%r is read with the separator %r, which its header has.", str(file), separator)
        separators[separator] = file
    if len(separators) > 1:
        found = " and ".join(f"{separator!r} in {str(file)!r}" for separator, file in separators.items())
        raise ValueError(
            f"The tables of `dataset_name` must all have one separator. Got {found}. Convert some of them."
        )
    return next(iter(separators))


def _read_folder(folder: Path, config_name: str | None, split: str) -> Dataset:
    is_table, is_dict = (folder / "state.json").is_file(), (folder / "dataset_dict.json").is_file()
    if is_table or is_dict:
        _reject_config(config_name, "a folder written by `save_to_disk`")
        return _split_of(load_from_disk(str(folder)), folder, split)
    # A README.md may say which files belong to which configuration and split: a copy of a Hub repository.
    if (folder / "README.md").is_file():
        return _load(str(folder), split, config_name)
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name not in METADATA_FILES]
    data_files = [path for path in files if _type_of(path) in FILE_FORMATS]
    media = [path for path in data_files if _type_of(path) in MEDIA_FORMATS]
    if media:
        # Files of text beside images or audio describe them.
        return _load(_format_of(media), split, config_name, data_dir=str(folder))
    if not data_files:
        found = ", ".join(repr(path.name) for path in files[:5]) or "no files"
        raise ValueError(
            f"The folder {str(folder)!r} must hold files of the types {ALLOWED_TYPES}, or be written by "
            f"`save_to_disk`. Got {found} instead. Name another folder, or convert the files."
        )
    # Checked here, because `datasets` reads the most frequent format and silently leaves the other files out.
    _format_of(data_files)
    return _load(str(folder), split, config_name, data_files)


def _split_of(loaded: Dataset | DatasetDict, folder: Path, split: str) -> Dataset:
    """Returns a split of a saved `DatasetDict`, or a saved `Dataset`, which is one table without splits."""
    if isinstance(loaded, Dataset):
        return loaded
    if split not in loaded:
        raise ValueError(
            f"`dataset_split` must be one of {', '.join(map(repr, loaded))}, the splits of {str(folder)!r}. "
            f"Got {split!r} instead."
        )
    return loaded[split]


def _load(
    source: str,
    split: str,
    config_name: str | None,
    files: Sequence[Path] = (),
    data_files: list[str] | None = None,
    data_dir: str | None = None,
) -> Dataset:
    """Calls `datasets.load_dataset`. If it fails, raises an error that says which argument or file to change."""
    shown = data_files or data_dir or source
    options: dict[str, Any] = {} if data_dir is None else {"data_dir": data_dir}
    if files and _format_of(files) == "csv":
        options["sep"] = _separator_of(files)
    try:
        return load_dataset(source, config_name, data_files=data_files, split=split, **options)
    except (DatasetNotFoundError, ConnectionError) as error:
        raise FileNotFoundError(
            f"{source!r} is no local folder or file, and it could not be read from the Hugging Face Hub: {error}. "
            "Correct `dataset_name`, or pass the path of local data."
        ) from error
    # On an empty file of JSON, `datasets` lets a StopIteration out.
    except (DatasetGenerationError, ValueError, StopIteration) as error:
        reason = "it has no rows" if "corresponds to no data" in str(error) else error.__cause__ or error
        raise ValueError(
            f"The split {split!r} of {shown!r} could not be read: {_broken_file(files) or reason}. Change "
            "`dataset_split` (or `dataset_config_name`), or the data."
        ) from error


def _broken_file(files: Sequence[Path]) -> str | None:
    """Returns what is wrong with the first file that is empty or not in UTF-8; None if no file is."""
    for file in files:
        if not file.stat().st_size:
            return f"{str(file)!r} is empty"
        if _type_of(file) in TEXT_FORMATS:
            try:
                with _open_text(file) as opened:
                    for line in opened:
                        line.decode()
            except UnicodeDecodeError as error:
                return f"{str(file)!r} is not in UTF-8 ({error}), to which `iconv -f latin1 -t utf-8` converts it"
    return None


def _reject_config(config_name: str | None, source: str) -> None:
    """Raises a ValueError if a configuration is named for data that has none."""
    if config_name is not None:
        raise ValueError(
            f"`dataset_config_name` must be None for {source}, which have no configurations. "
            f"Got {config_name!r} instead."
        )
