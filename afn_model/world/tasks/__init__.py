"""Kinds of questions about synthetic recordings, one module per data axis."""
