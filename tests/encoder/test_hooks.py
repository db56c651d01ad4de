"""Hooks: what observes a model leaves nothing behind."""

import copy
from contextlib import nullcontext

import pytest
import torch
from tiny import (
    batches_of,
    encoder_of,
    outputs_of,
    predictions_of,
    same_state,
    samples_for,
    teacher_and_student,
    tiny_model,
)

from optimum_kprune import KPruneConfig
from optimum_kprune.encoder.hooks import evaluating, observed_units, recorded, recorded_output, recorded_states
from optimum_kprune.encoder.partial_forward import entered_at
from optimum_kprune.encoder.sublayers import Place
from optimum_kprune.prune.statistics import measure_knowledge

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def traces(model):
    """All hooks and all replaced forward methods of a model."""
    return [
        (name, module.__dict__.get("forward"), module.training, *(list(getattr(module, kind)) for kind in HOOKS))
        for name, module in model.named_modules()
    ]


def ways_to_observe(encoder):
    sublayers = encoder.sublayers()
    return {
        "evaluating": lambda: evaluating(encoder.model),
        "entered_at": lambda: entered_at(encoder, Place(2, 1), torch.zeros(1, 3, 32)),
        "recorded": lambda: recorded(sublayers[1]),
        "recorded_states": lambda: recorded_states(encoder, Place(1, 1)),
        "recorded_output": lambda: recorded_output(encoder.blocks[0], stop=True),
        "observed_units": lambda: observed_units(sublayers, lambda *_: None, lambda *_: None),
    }


@pytest.mark.parametrize("way", sorted(ways_to_observe(encoder_of(tiny_model()))))
@pytest.mark.parametrize("error", [None, ValueError, KeyboardInterrupt])
def test_observing_leaves_nothing_behind(way, error):
    model = tiny_model()
    model.bert.encoder.layer[1].eval()
    model.bert.encoder.layer[0].forward = types_method(model.bert.encoder.layer[0])
    before, weights = traces(model), copy.deepcopy(model)
    with pytest.raises(error) if error else nullcontext():
        with ways_to_observe(encoder_of(model))[way]():
            assert traces(model) != before
            if error:
                raise error("inside")
    assert traces(model) == before
    assert same_state(model, weights)


def types_method(block):
    """A forward that someone else has put in the place of a block's own."""
    original = block.forward
    return lambda *args, **kwargs: original(*args, **kwargs)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_forward_pass_that_fails_leaves_nothing_behind(error):
    teacher, student = teacher_and_student("single label", dtype=torch.float32)
    batches = batches_of(samples_for(teacher, 6), 4)
    expected = outputs_of(teacher, batches[0])

    def fail(*_):
        raise error("inside the model")

    predictions = predictions_of(teacher, student, batches)
    sublayers = predictions.pair.student.encoder.sublayers()
    handle = student.bert.encoder.layer[2].output.register_forward_hook(fail)
    before = traces(teacher), traces(student)
    with pytest.raises(error, match="inside the model"):
        measure_knowledge(predictions, predictions.pair.student, sublayers, KPruneConfig())
    assert (traces(teacher), traces(student)) == before
    handle.remove()
    assert all(map(torch.equal, outputs_of(teacher, batches[0]), expected))
