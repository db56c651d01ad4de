"""Models that read rows on samples of several rows: against every row alone."""

import torch
from tiny import pad, ragged_samples, tiny_model

from optimum_kprune.encoder.rows import RowByRow


@torch.no_grad()
def test_samples_of_several_rows_get_the_logits_of_every_row_alone():
    model, samples = tiny_model(num_labels=2).eval(), ragged_samples(4, choices=3)
    logits = RowByRow(model)(**pad(samples)).logits
    alone = [[model(**pad([row])).logits[0] for row in sample] for sample in samples]
    torch.testing.assert_close(logits, torch.stack([torch.stack(rows) for rows in alone]))
