"""Random signs: the same for a sample wherever it lies."""

import torch
from tiny import pad, teacher_and_student

from optimum_kprune.algorithm.signs import draw_signs
from optimum_kprune.encoder.tasks import task_of


def test_signs_depend_on_seed_and_tokens_and_are_zero_at_padding():
    teacher, _ = teacher_and_student("token classification")
    samples = [[0, 7, 8, 9, 2], [0, 7, 2], [0, 7, 8, 9, 2]]
    batch = pad(samples, extra=2)
    ids, mask = batch["input_ids"], batch["attention_mask"].bool()
    prediction = task_of(teacher).predict(teacher(**batch), teacher.config, mask)
    signs = draw_signs(prediction, ids, mask, 0)
    assert signs.shape == prediction.values.shape
    assert torch.equal(signs.abs().amax(dim=-1), mask.float())
    assert torch.equal(signs.abs().amin(dim=-1), mask.float())
    assert torch.equal(signs[0], signs[2]) and not torch.equal(signs[0, :3], signs[1, :3])
    for other in (1, 2**32, 10**30):
        assert not torch.equal(signs, draw_signs(prediction, ids, mask, other))
