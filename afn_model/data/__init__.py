"""Data: synthesised speech and sounds, scenes with exact truth, and the folders they are written to."""
