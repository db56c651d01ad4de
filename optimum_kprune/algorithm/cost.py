"""FLOPs of the units, and how many FLOPs the kept units may cost."""

import math


def unit_flops(kind: str, unit_weights: int, unit_size: int, sequence_length: int) -> float:
    """Returns the FLOPs of one unit on a sequence of T tokens (docs/method.md, section 1).

    One multiply-accumulate counts as 2 FLOPs.

        head    8 T d d_h + 4 T^2 d_h       (four projections, scores and context)
        neuron  4 T d, or 6 T d when gated  (two projections, or three)

    Args:
        kind: `"attention"` or `"ffn"`.
        unit_weights: weights of the unit in its input and output projections (4 d d_h; 2 d or 3 d).
        unit_size: d_h for a head, 1 for a neuron.
        sequence_length: T.
    """
    mixing = 4.0 * sequence_length**2 * unit_size if kind == "attention" else 0.0
    return 2 * sequence_length * unit_weights + mixing


def flops_budget(total: float, compression_rate: float) -> float:
    """Returns the FLOPs tau that kept units may cost, so that at least the rate r goes (docs/method.md, section 1).

    tau = total - ceil(r total)
    """
    return total - math.ceil(compression_rate * total)
