"""What a search tells: its progress, the curve that it found, and what the reader should know about it."""

from collections.abc import Sequence

from .bracket import Allowed, Tried, against_trend, bracket_of
from .target import Figure


def beginning(figure: Figure, allowed: Allowed) -> str:
    """Returns what is known before the first prune."""
    read = ""
    if figure.point != 1:
        read = f" A value above 1 is read as one in percent: a drop of 0.01 is {0.01 * figure.point:g}."
    return f"{figure} dense; {_floor(figure, allowed)} is allowed.{read}"


def point_in_words(figure: Figure, tried: Tried, allowed: Allowed) -> str:
    """Returns what was measured of one model, and whether that is allowed as it is."""
    error = "" if tried.error is None else f" ± {tried.error:.2g}"
    if tried.drop > allowed.drop:
        verdict = "does not hold"
    elif tried.drop + allowed.margin(tried.error) > allowed.drop:
        verdict = "holds, but not beyond the noise"
    else:
        verdict = "holds"
    return f"{figure.name} {figure.at_drop(tried.drop):.4g}{error} with {tried.budget} ({verdict})"


def none_holds(figure: Figure, allowed: Allowed, tried: Sequence[Tried]) -> str:
    """Returns the message of a search that found nothing, with the curve."""
    curve = "; ".join(point_in_words(figure, each, allowed) for each in tried)
    return (
        f"No model holds that was tried: {figure} dense, {_floor(figure, allowed)} is "
        f"allowed; {curve}. Allow a larger drop, calibrate on more or closer data, or give `recovery_tokens`."
    )


def notes(
    figure: Figure, allowed: Allowed, tried: Sequence[Tried], samples: int | None, resolution: float
) -> list[str]:
    """Returns what the reader should know about a search, in sentences."""
    low, high, is_open = bracket_of(tried, allowed)
    # The models between which the choice was made.
    around = [each for each in tried if each.rate in (low, high)]
    told = [_noise(figure, allowed, around, samples)]
    for larger, smaller in against_trend(tried, allowed.drop):
        told.append(
            f"Against the trend, {figure.name} is better with {smaller.budget} than with {larger.budget}: "
            f"{figure.at_drop(smaller.drop):.4g} against {figure.at_drop(larger.drop):.4g}."
        )
    if is_open:
        told.append(f"All models hold: the one that was chosen, with {tried[-1].budget}, is the smallest of them.")
    # Less a little, because differences of decimal fractions are not exact.
    if high - low > resolution * (1 + 1e-6):
        told.append("The search ended at `max_evaluations`: smaller models than the chosen one may hold.")
    return told


def _noise(figure: Figure, allowed: Allowed, around: Sequence[Tried], samples: int | None) -> str:
    """Returns how well the evaluation data can tell the allowed drop."""
    errors = [each.error for each in around if each.error is not None]
    if not errors:
        return f"How noisy {figure.name} is, is not known: models were taken to be as good as they were measured."
    counted = "The evaluation data tells" if samples is None else f"{samples:,} samples tell"
    sentence = f"{counted} {figure.name} to ± {max(errors):.2g} (one standard error)"
    margin = allowed.margin(max(errors))
    if margin < allowed.margin_wanted(max(errors)):
        return (
            f"{sentence}, which is too little for an allowed drop of {allowed.drop:.2g}: the model was chosen to lose "
            f"at most {allowed.drop - margin:.2g} there, and may lose more on other data."
        )
    return f"{sentence}; the allowed drop is {allowed.drop:.2g}."


def _floor(figure: Figure, allowed: Allowed) -> str:
    return f"{figure.at_drop(allowed.drop):.4g} or {'more' if figure.greater_is_better else 'less'}"
