"""Moved to tests/tiny.py."""

from tests.tiny import STEPS, noise, record, save_tiny, tiny

__all__ = ["STEPS", "noise", "record", "save_tiny", "tiny"]
