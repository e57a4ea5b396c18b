"""Checkpoints in three layouts, and config.json."""
