"""Validation of a model in training."""
