"""Images and audio in data sets: finds their column, and turns files and arrays into what a processor takes."""

from collections.abc import Iterable, Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Audio, Dataset, Features, Image, IterableDataset

from .modality import IMAGE, Modality
from .spec import InputSpec, Sample


def undecoded(table: Dataset) -> Dataset:
    """Returns a table whose columns of images and audio hold the bytes of the files, which need not be decoded."""
    for name, feature in table.features.items():
        if isinstance(feature, Image | Audio) and feature.decode:
            table = table.cast_column(name, type(feature)(decode=False))
    return table


def undecoded_stream(stream: IterableDataset) -> IterableDataset:
    """Returns a stream whose columns of images and audio hold the bytes of the files."""
    features = stream.features or {}
    media = {
        name: type(feature)(decode=False) for name, feature in features.items() if isinstance(feature, Image | Audio)
    }
    for name, feature in media.items():
        stream = stream.cast_column(name, feature)
    return stream


def content_of(value: Any) -> Any:
    """Returns what tells a value apart, as an object whose `repr` shows all of it: for files and arrays, a digest."""
    if isinstance(value, Mapping) and {"bytes", "path"} <= value.keys():
        return blake2b(_bytes_of(value)).hexdigest()
    if isinstance(value, Mapping) and "array" in value:
        return content_of(value["array"]), str(value.get("sampling_rate"))
    if isinstance(value, np.ndarray) and value.dtype != object:
        return f"{value.dtype} {value.shape} {blake2b(value.tobytes()).hexdigest()}"
    return list(map(content_of, value)) if isinstance(value, np.ndarray) else value


def _bytes_of(file: Mapping[str, Any]) -> bytes:
    return file["bytes"] if file["bytes"] is not None else Path(file["path"] or "").read_bytes()


def find_media_column(features: Features, spec: InputSpec) -> str:
    """Returns the column that holds the images or the audio: the one given, or else the only one of that kind.

    Raises:
        ValueError: if the given column is not one such column, or if there is none or several.
    """
    modality = spec.modality
    found = [name for name, feature in features.items() if _holds(feature, modality)]
    listed = ", ".join(map(repr, found)) or "none"
    if spec.text_columns is not None:
        if len(spec.text_columns) != 1 or spec.text_columns[0] not in found:
            raise ValueError(
                f"`text_columns` must name the one column of {modality.data}, for a model that reads "
                f"`{spec.main_input}`. Got {', '.join(map(repr, spec.text_columns)) or 'none'} instead. Columns of "
                f"{modality.data} are: {listed}."
            )
        return spec.text_columns[0]
    if len(found) != 1:
        kind = "Image()" if modality is IMAGE else "Audio()"
        raise ValueError(
            f"Cannot tell which column holds the {modality.data} that the model reads. Of the columns "
            f"{', '.join(map(repr, features))}, such are: {listed}. Name one, text_columns=[...]; or give a column of "
            f"files its type, `dataset.cast_column(name, datasets.{kind})`."
        )
    return found[0]


def _holds(feature: Any, modality: Modality) -> bool:
    """Returns whether a feature is an image, or audio: a file, an array, or an array with its rate."""
    if modality is IMAGE:
        return isinstance(feature, Image)
    array = feature.get("array") if isinstance(feature, dict) else feature
    numbers = str(getattr(getattr(array, "feature", None), "dtype", ""))
    return isinstance(feature, Audio) or numbers.startswith("float")


def table_of_items(items: Sequence[Any], modality: Modality) -> Dataset:
    """Makes a data set of a list of images, or of a list of audio arrays.

    Raises:
        ValueError: if an item is neither.
    """
    if modality is IMAGE:
        for item in items:
            is_array = isinstance(item, np.ndarray) and item.dtype == np.uint8 and item.ndim in (2, 3)
            if not (is_array or hasattr(item, "getbands")):
                raise _no_item(
                    item, "images of PIL, or arrays of the type uint8 and the shape (height, width, channels)"
                )
        return Dataset.from_dict({"image": list(items)}, features=Features({"image": Image()}))
    are_plain = not isinstance(items[0], Mapping)
    for item in items:
        if isinstance(item, Mapping) is are_plain or not (are_plain or {"array", "sampling_rate"} <= item.keys()):
            raise _no_item(item, 'arrays, or all dictionaries {"array": ..., "sampling_rate": ...}')
        _checked_array(item if are_plain else item["array"])
    return Dataset.from_dict({"audio": [_plain_item(item) for item in items]})


def _plain_item(item: Any) -> Any:
    if isinstance(item, Mapping):
        return {"array": _checked_array(item["array"]), "sampling_rate": int(item["sampling_rate"])}
    return _checked_array(item)


def _no_item(item: Any, allowed: str) -> ValueError:
    got = f"an array of {item.dtype} and the shape {item.shape}" if isinstance(item, np.ndarray) else None
    return ValueError(
        f"A list of calibration data for this model must hold {allowed}. Got {got or type(item).__name__}."
    )


def _checked_array(values: Any) -> np.ndarray:
    """Returns audio as (samples,) in float32."""
    array = np.asarray(values)
    if array.ndim != 1 or array.dtype.kind != "f":
        raise ValueError(
            "An array of audio must have the shape (samples,), of one channel, and hold floating-point numbers, as "
            f"in [-1, 1]. Got {array.dtype} of the shape {array.shape}. Take the mean over its channels, and divide "
            "whole numbers by the largest of their type."
        )
    return array.astype(np.float32)


def encode_media(spec: InputSpec, name: str, columns: Mapping[str, Iterable[Any]]) -> list[Sample]:
    """Prepares images or audio as the model's processor does, one by one. Leaves out empty ones."""
    if spec.modality is IMAGE:
        return [_processed(spec, images=[_image(value, spec)]) for value in columns[name]]
    rate = spec.processor.sampling_rate
    waves = [_waveform(value, rate) for value in columns[name]]
    return [_processed(spec, raw_speech=array, sampling_rate=rate) for array in waves if len(array)]


def _processed(spec: InputSpec, **raw: Any) -> Sample:
    """Returns what the processor makes of one sample, without the dimension of the batch."""
    # Tensors, because some processors make no arrays.
    prepared = spec.processor(**raw, return_tensors="pt")
    return {key: value[0].numpy() for key, value in prepared.items() if key in spec.read_names}


def _image(value: Any, spec: InputSpec) -> Any:
    """Returns an image of PIL with the colour channels that the model reads."""
    try:
        image = Image().decode_example(value)
    except (OSError, ImportError) as error:
        raise ValueError(f"An image of the calibration data could not be read: {error}") from error
    return image.convert("L" if spec.image_channels == 1 else "RGB")


def _waveform(value: Any, rate: int) -> np.ndarray:
    """Returns audio as (samples,) in float32, at the rate of the model.

    Raises:
        ValueError: if it cannot be read, or has another rate and cannot be resampled.
    """
    if isinstance(value, Mapping) and "array" in value:
        own = int(value["sampling_rate"])
        if own != rate:
            raise ValueError(
                f"Audio must have the sampling rate that the model was trained with, {rate:,} per second. Got "
                f"{own:,}. Resample it, for instance with `torchaudio.functional.resample`."
            )
        return _checked_array(value["array"])
    if not isinstance(value, Mapping):
        return _checked_array(value)
    try:
        samples = Audio(sampling_rate=rate).decode_example(value).get_all_samples()
    except ImportError as error:
        raise ValueError(
            f"Audio files are read with torchcodec: {error} Or pass arrays of {rate:,} numbers per second."
        ) from error
    except (RuntimeError, OSError) as error:
        raise ValueError(f"A recording of the calibration data could not be read: {error}") from error
    # The mean over the channels.
    return samples.data.mean(dim=0).numpy()
