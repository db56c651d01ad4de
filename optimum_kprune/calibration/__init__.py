"""Calibration data: whatever is given, and a budget of tokens -> batches of the model's inputs. It knows no model."""
