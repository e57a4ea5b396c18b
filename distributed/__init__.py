"""Sequence parallelism for audio-language models (imported as ``afn_distributed``)."""

from afn_distributed.layout import Layout

__all__ = ["Layout"]
