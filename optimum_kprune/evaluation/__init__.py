"""Dense against pruned on labelled data."""
