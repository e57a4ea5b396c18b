"""Processes, sharded weights and sequence parallelism over several ranks (imported as ``afn_distributed``)."""

from afn_distributed.hybrid import SequenceParallel, sp_attention
from afn_distributed.layout import RankLayout
from afn_distributed.plan import Plan, make_plan
from afn_distributed.renamed import __getattr__ as __getattr__

__all__ = ["Plan", "RankLayout", "SequenceParallel", "make_plan", "sp_attention"]
