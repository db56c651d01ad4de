"""Defaults that several rooms share."""

# Budget of calibration tokens; padding is not counted.
NUM_TOKENS = 100_000
# Samples in a batch where batches count: in an evaluation, and with `gradient="batch"`.
BATCH_SIZE = 32
# Tokens in a batch on a CPU, padding included. Larger batches are no faster per token; they only take more memory.
FULL_BATCH = 512
