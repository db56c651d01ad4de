"""Turns calibration data of any form, and a budget of tokens, into batches of model inputs. It knows no model."""
