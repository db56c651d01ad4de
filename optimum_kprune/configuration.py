"""The settings of a prune: one validated object, saved as kprune_config.json."""

import json
import math
import sys
from os import PathLike
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from huggingface_hub import HfApi
from optimum.configuration_utils import BaseConfig
from optimum.version import __version__ as optimum_version

from .budget import ALLOWED, parse_budget
from .defaults import NUM_TOKENS

# The least number above 0 and the greatest finite one: as bounds, they exclude 0 and infinity.
SMALLEST, LARGEST = math.ulp(0.0), sys.float_info.max


class KPruneConfig(BaseConfig):
    """Settings of knowledge-preserving pruning (Park, Choi and Kang, ICLR 2024).

    Args:
        compression_rate (`float`, defaults to 0.5): share of the FLOPs of all units to remove, in [0, 1). At least
            this share is removed.
        budget (`str`, *optional*): what may be kept, in place of the `compression_rate`, which then stays at its
            default: `"100 MB"` (10^6 bytes of weights as they are saved), `"12M parameters"`, `"10 ms"`, `"4 layers"`;
            or a share of what the dense model has, such as `"40% flops"` or `"50% latency"`.
        vocabulary (`int` or `float`, *optional*): how many tokens the pruned model has, such as 8000; or the share of
            the tokens of the calibration data to keep, such as 0.99. Words whose tokens went are written in smaller
            pieces. `None` keeps all. See docs/vocabulary.md.
        temperature (`float`, defaults to 2.0): temperature gamma of the softmax in the predictive knowledge.
        knowledge (`str`, defaults to `"fisher"`): how the predictive knowledge of a unit is measured. `"divergence"`
            squares the gradient of the divergence from the teacher, as published; this gradient is zero where the
            student still equals the teacher. `"fisher"` takes the curvature of the same divergence, which is not.
        lambda_rep (`float`, defaults to 0.1): weight lambda of the representational against the predictive knowledge.
        mu (`float`, *optional*): factor on the score of a head, whose knowledge is averaged over the dimensions of
            the head. `None` takes the head dimension, which makes the average a sum.
        head_weight (`float`, defaults to 2.0): another factor on the score of a head; the published value is 1. After
            tuning, the neurons that are left make up for removed neurons. The heads that are left hardly make up for
            removed heads.
        gradient (`str`, defaults to `"sample"`): `"sample"` squares the gradient of every sample, so that batching
            does not matter; `"batch"` squares the gradient of the mean over a batch, as the authors' program does.
        num_tokens (`int`, *optional*, defaults to 100 000): budget of calibration tokens, padding not counted; for
            images and audio, of positions of the hidden states. `None` uses all calibration data. What
            `get_calibration_dataset` returned is always used whole, and the budget that it was drawn with becomes this
            setting.
        heldout_share (`float`, defaults to 0.1): share of the calibration tokens that is held out of the prune. How
            close the pruned model is to the dense one is measured on it afterwards. With 0, nothing is measured.
        measure_tokens (`int`, *optional*, defaults to 10 000): number of calibration tokens on which knowledge is
            measured, in samples of all lengths. Scores need fewer tokens than the fit, which always takes all. Where
            there are more than twelve measurements, those after the first take turns on parts of these tokens, so that
            time is linear in the layers, and scores are running means. `None` takes all tokens every time.
        measure_every (`int`, defaults to 1): knowledge is measured before every `measure_every`-th sublayer; the
            sublayers in between use the latest scores. More than 1 is faster, but costs quality: reduce
            `measure_tokens` first.
        measure_precision (`str`, defaults to `"float32"`): precision of the passes that measure knowledge, for a model
            in float32. `"bfloat16"` runs them under bfloat16 autocast, with sums in float32. That is faster, but units
            with nearly equal scores may then be kept or removed depending on batches and hardware. `"auto"` does so if
            the hardware multiplies bfloat16 natively and `knowledge` is `"fisher"`. The fit is never affected.
        memory_budget (`int`, *optional*): bytes that hidden states may take in memory. The rest is written to a file
            in the temporary folder of the system (TMPDIR). `None` is no limit.
        sequence_length (`int`, *optional*): number of tokens T at which FLOPs are counted. `None` takes the mean
            length of the calibration data, rounded.
        neuron_multiple (`int`, defaults to 8): a feed-forward sublayer keeps a multiple of this number of neurons, or
            all. The number that was selected is rounded to the nearest multiple that fits the budget; the sublayers
            above balance the difference. Hardware multiplies matrices of other widths slower, by up to a third.
        tuning (`bool`, defaults to `True`): whether to refit the projections of the pruned sublayers.
        ridge (`float`, defaults to 0.01): strength rho of the pull towards the model's own weights in the fits,
            relative to the mean square of the features.
        token_weights (`str`, defaults to `"scale"`): how tokens count in the fits. `"scale"` divides the error of a
            token by the scale of its residual stream, as the next norm does; `"equal"` counts all tokens alike, as
            published.
        correct_inputs (`bool`, defaults to `True`): whether to correct the input projections of a sublayer for what
            the prune changed below it. The affine map that brings what the student's sublayer reads closest to what
            the teacher's reads is folded into them. Has an effect only with `tuning`.
        bias (`str`, defaults to `"refit"`): what becomes of the bias of an output projection. `"refit"` fits it with
            the weights, and gives one to projections that have none. `"keep"` leaves it as it is. `"drop"` does too,
            but removes it with the last unit of a sublayer, as the authors' program does.
        published_targets (`bool`, defaults to `False`): whether predictions are compared as in the authors' program:
            the start and end distributions of question answering run over padded positions too, and every output of
            a regression is compared with the teacher's outputs for all samples of its batch.
        recovery_tokens (`int`, defaults to 0): number of tokens of unlabelled text from which the pruned model learns
            what the dense model computes, after the prune (see `prune`, `recovery_dataset`). Text that holds fewer is
            passed over several times, up to sixteen. The weights that are best on the held-out calibration data are
            kept, so that by them nothing gets worse. With 0, nothing is learned.
        recovery_learning_rate (`float`, defaults to 3e-4): highest learning rate of a recovery of 1,000 steps or more,
            about a million tokens. One of fewer steps takes it times the root of their share of these.
        recovery_precision (`str`, defaults to `"auto"`): precision of the passes of the recovery. `"bfloat16"` runs
            them under bfloat16 autocast, `"auto"` does so if the hardware multiplies bfloat16 natively. The weights
            and the steps that they take are in float32 in any case.
        seed (`int`, defaults to 0): seed of all random choices: calibration samples, masked tokens, random signs,
            the order of the text of a recovery.

    Raises:
        ValueError: if a value is out of its range, or a setting does not exist.
    """

    # Optimum reads and writes the file by the first name, and looks for versions of it by the second.
    CONFIG_NAME = FULL_CONFIGURATION_FILE = "kprune_config.json"

    compression_rate: float = 0.5
    budget: str | None = None
    vocabulary: int | float | None = None
    temperature: float = 2.0
    knowledge: Literal["fisher", "divergence"] = "fisher"
    lambda_rep: float = 0.1
    mu: float | None = None
    head_weight: float = 2.0
    gradient: Literal["sample", "batch"] = "sample"
    num_tokens: int | None = NUM_TOKENS
    heldout_share: float = 0.1
    measure_tokens: int | None = 10_000
    measure_every: int = 1
    measure_precision: Literal["float32", "bfloat16", "auto"] = "float32"
    memory_budget: int | None = None
    sequence_length: int | None = None
    neuron_multiple: int = 8
    tuning: bool = True
    ridge: float = 0.01
    token_weights: Literal["scale", "equal"] = "scale"
    correct_inputs: bool = True
    bias: Literal["refit", "keep", "drop"] = "refit"
    published_targets: bool = False
    recovery_tokens: int = 0
    recovery_learning_rate: float = 3e-4
    recovery_precision: Literal["float32", "bfloat16", "auto"] = "auto"
    seed: int = 0

    def __post_init__(self, **kwargs: Any) -> None:
        """Checks that every setting exists and is in its range; `kwargs` are those that are no fields."""
        # Saved files have these two besides the settings.
        unknown = sorted(set(kwargs) - {"optimum_version", "model_type"})
        if unknown:
            raise ValueError(
                f"KPruneConfig has no setting {', '.join(map(repr, unknown))}. "
                f"The settings are: {', '.join(SETTINGS)}."
            )
        super().__post_init__()
        self.check()

    def check(self) -> None:
        """Checks the range of every setting. Every prune does so again, because settings can be changed by then.

        Raises:
            ValueError: if a value is out of its range, or both a rate and a budget are given.
        """
        for name in SETTINGS:
            value = getattr(self, name)
            if not _is_allowed(name, value):
                # The likeliest mistake: a rate in percent.
                is_percentage = name == "compression_rate" and isinstance(value, int | float) and 1 < value < 100
                hint = f" For {value}%, give {value / 100:g}." if is_percentage else ""
                raise ValueError(
                    f"The setting {name!r} of KPruneConfig must be {allowed(name)}. Got {value!r} instead.{hint}"
                )
        if self.budget is not None and self.compression_rate != KPruneConfig.compression_rate:
            raise ValueError(
                "`budget` takes the place of `compression_rate`: give one of them. Got both, "
                f"{self.budget!r} and {self.compression_rate!r}."
            )

    @classmethod
    def paper(cls, **overrides: Any) -> "KPruneConfig":
        """Returns the published settings, and those of the authors' program; `overrides` win over them."""
        published: dict[str, Any] = {
            "temperature": 2.0,
            "knowledge": "divergence",
            "lambda_rep": 2.5e-4,
            "head_weight": 1.0,
            "neuron_multiple": 1,
            "gradient": "batch",
            "ridge": 0.0,
            "token_weights": "equal",
            "correct_inputs": False,
            "bias": "drop",
            "heldout_share": 0.0,
            "measure_tokens": None,
            "published_targets": True,
        }
        return cls(**{**published, **overrides})

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Returns the settings of a dictionary; those in `kwargs` win over it."""
        overrides = {name: kwargs.pop(name) for name in SETTINGS if name in kwargs}
        return super().from_dict({**config_dict, **overrides}, **kwargs)

    def to_dict(self) -> dict[str, Any]:
        """Returns the settings and the version of Optimum, without the inherited fields of model configs."""
        return {name: getattr(self, name) for name in SETTINGS} | {"optimum_version": optimum_version}

    def to_diff_dict(self) -> dict[str, Any]:
        """Returns all settings: a saved prune should not depend on the defaults of the version that reads it."""
        return self.to_dict()

    def to_json_string(self, use_diff: bool = True) -> str:
        """Returns all settings as JSON, whatever `use_diff`; see `to_diff_dict`."""
        return json.dumps(self.to_dict(), indent=2) + "\n"

    def save_pretrained(self, save_directory: str | PathLike, push_to_hub: bool = False, **kwargs: Any) -> None:
        """Writes kprune_config.json into `save_directory` and, if asked, uploads it.

        Args:
            save_directory: folder to write to; made if it does not exist.
            push_to_hub: whether to upload the file as well.
            kwargs: `repo_id` (by default the folder's name), `token`, `private`, `commit_message`.

        Raises:
            ValueError: if `save_directory` is a file.
        """
        folder = Path(save_directory)
        if folder.is_file():
            raise ValueError(f"`save_directory` must be a folder. Got the file {str(folder)!r} instead.")
        folder.mkdir(parents=True, exist_ok=True)
        self.to_json_file(folder / self.CONFIG_NAME)
        if push_to_hub:
            api = HfApi(token=kwargs.get("token"))
            repo = api.create_repo(kwargs.get("repo_id", folder.name), private=kwargs.get("private"), exist_ok=True)
            api.upload_file(
                path_or_fileobj=folder / self.CONFIG_NAME,
                path_in_repo=self.CONFIG_NAME,
                repo_id=repo.repo_id,
                commit_message=kwargs.get("commit_message", f"Upload {self.CONFIG_NAME}"),
            )


SETTINGS = tuple(name for name in KPruneConfig.__annotations__ if not name.isupper())
# Those of what comes after the prune.
RECOVERY_SETTINGS = tuple(name for name in SETTINGS if name.startswith("recovery_"))

# The range of a number: its least and its greatest value, and the range in words. Others must be 1 or above.
BOUNDS: dict[str, tuple[float, float, str]] = {
    "compression_rate": (0, math.nextafter(1, 0), "in [0, 1)"),
    "temperature": (1e-6, 1e6, "in [1e-6, 1e6]"),
    "lambda_rep": (0, LARGEST, "0 or above"),
    "mu": (SMALLEST, LARGEST, "above 0"),
    "head_weight": (SMALLEST, LARGEST, "above 0"),
    "vocabulary": (SMALLEST, 1, "above 0 and at most 1"),
    "heldout_share": (0, 0.5, "in [0, 0.5]"),
    "memory_budget": (0, math.inf, "0 or above"),
    "ridge": (0, 1e100, "in [0, 1e100]"),
    "recovery_tokens": (0, math.inf, "0 or above"),
    "recovery_learning_rate": (SMALLEST, 1, "above 0 and at most 1"),
    "seed": (0, math.inf, "0 or above"),
}
AT_LEAST_ONE = (1, math.inf, "1 or above")
# Of these, a whole number is a size, 1 or above, and another number a share in the range above.
SIZES_OR_SHARES = ("vocabulary",)


def allowed(name: str) -> str:
    """Returns in words which values a setting may have, such as "a whole number, 1 or above, or None"."""
    kinds, choices = _form_of(name)
    if choices:
        return f"one of {', '.join(map(repr, choices))}"
    if str in kinds:
        return f"{ALLOWED}, or None"
    number = "a number" if float in kinds else "a whole number,"
    if name in SIZES_OR_SHARES:
        number = f"a whole number, {AT_LEAST_ONE[2]}, or a share with a point,"
    return f"{number} {BOUNDS.get(name, AT_LEAST_ONE)[2]}" + (", or None" if type(None) in kinds else "")


def _is_allowed(name: str, value: Any) -> bool:
    kinds, choices = _form_of(name)
    # Checked by the type first: for Python, 1 equals True, and True is an int.
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        return False
    if isinstance(value, str) and not choices:
        return _is_budget(value)
    is_size = name in SIZES_OR_SHARES and isinstance(value, int)
    least, most, _ = AT_LEAST_ONE if is_size else BOUNDS.get(name, AT_LEAST_ONE)
    return value is None or (value in choices if choices else least <= value <= most)


def _is_budget(text: str) -> bool:
    try:
        parse_budget(text)
    except ValueError:
        return False
    return True


def _form_of(name: str) -> tuple[Any, Any]:
    """Returns the types that the annotation of a setting allows, and its choices, which are empty for numbers."""
    hint = KPruneConfig.__annotations__[name]
    if hint is bool:
        return (bool,), (True, False)
    if get_origin(hint) is Literal:
        return (str,), get_args(hint)
    kinds = get_args(hint) or (hint,)
    # An int is a number too, where a float is allowed.
    return (*kinds, int) if float in kinds else kinds, ()
