"""A pruned model as a folder or a repository: weights, report and model card."""
