"""Ranks that work together: processes, sharded weights, sequence parallelism (imported as ``afn_distributed``)."""

from afn_distributed.layout import Layout

__all__ = ["Layout"]
