"""Dense against pruned: on labelled data, and on the clock."""
