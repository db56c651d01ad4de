"""Exports models to run without PyTorch: a model in memory -> a folder that serves."""
