"""Defaults that several rooms share."""

# Budget of calibration tokens; padding is not counted.
NUM_TOKENS = 100_000
# Most samples in a batch.
BATCH_SIZE = 32
