"""The arithmetic of K-prune: tensors in, tensors out; it knows no model and no data set."""
