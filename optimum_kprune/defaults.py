"""Defaults that several rooms share."""

# Calibration tokens, padding not counted.
NUM_TOKENS = 100_000
# Most samples in a batch.
BATCH_SIZE = 32
