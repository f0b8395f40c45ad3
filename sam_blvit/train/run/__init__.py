"""Checkpoints, logs and other records of a run."""
