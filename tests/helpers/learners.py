"""Teachers and students that differ from them, to learn from each other."""

import copy

import torch
from tiny import batches_of, samples_for, tiny_model

from optimum_kprune.calibration.spec import token_mask
from optimum_kprune.encoder.config_field import adapter_of
from optimum_kprune.encoder.sublayers import Encoder
from optimum_kprune.encoder.tasks import task_of
from optimum_kprune.recovery.learner import Learner


def weights_of(student):
    return [weight for block in student.blocks for weight in block.parameters()]


def pair(head="single label", family="bert", dtype=torch.float32):
    """A teacher, and a student that differs from it in its blocks."""
    teacher = tiny_model(family, head).eval().to(dtype)
    student = copy.deepcopy(teacher)
    torch.manual_seed(1)
    for weight in weights_of(Encoder(student, adapter_of(student))):
        weight.data += 0.05 * torch.randn_like(weight)
    return [Encoder(model, adapter_of(model)) for model in (teacher, student)]


def learner_of(teacher, student, heldout=None):
    batches = batches_of(samples_for(teacher.model)) if heldout is None else heldout
    return Learner(teacher, student, task_of(teacher.model), [(batch, token_mask(batch)) for batch in batches])
