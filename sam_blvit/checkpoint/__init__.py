"""Checkpoints: loading, saving, formats, adapters and foreign weights."""
