"""A clock that tells what a model costs by its widths, in place of the time that it takes."""

from tiny import encoder_of


def costs(base, curves, penalty=lambda kind, units: 0.0):
    """Seconds of a model: what stays, a curve per kind of sublayer, and a penalty for widths."""

    def cost(model):
        sublayers = encoder_of(model).sublayers()
        each = [(sublayer.adapter.kind, sublayer.units) for sublayer in sublayers]
        return base + sum(curves[kind](units) * (1 + penalty(kind, units)) for kind, units in each if units)

    return cost


def ticking(cost, sizes=None):
    """Takes the place of `in_turns`. Load on the machine makes all models slower in some turns than in others.

    `sizes` gets the shapes of the texts that models are timed on.
    """

    def in_turns(runs, turns, seconds, clock):
        loads = [1 + 0.2 * (turn - (turns - 1) / 2) / turns for turn in range(turns)]
        if sizes is not None:
            sizes.update(tuple(run.keywords["input_ids"].shape) for run in runs)
        return [[load * cost(run.func) for load in loads] for run in runs]

    return in_turns
