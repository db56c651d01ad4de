"""Recovery: after a prune, the student learns from the dense model on unlabelled text."""
