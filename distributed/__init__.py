"""Ranks that work together: processes, sharded weights, sequence parallelism (imported as ``afn_distributed``)."""

from afn_distributed.hybrid import SequenceParallel, sp_attention
from afn_distributed.layout import Layout
from afn_distributed.plan import Plan, make_plan

__all__ = ["Layout", "Plan", "SequenceParallel", "make_plan", "sp_attention"]
