"""Names of version 0.1.0, which work for one version more and warn. To end them, delete this file and its import."""

from __future__ import annotations

import sys
import warnings
from typing import Any

from afn_distributed.dispatch import DispatchPlan, assign_balanced, dispatch
from afn_distributed.layout import RankLayout
from afn_distributed.plan import Plan
from afn_distributed.process import Process

RENAMED = {"Layout": RankLayout, "Routes": DispatchPlan, "deal": assign_balanced, "route": dispatch}


def __getattr__(name: str) -> Any:
    if name not in RENAMED:
        raise AttributeError(f"module 'afn_distributed' has no attribute {name!r}")
    _warn(name, RENAMED[name].__name__)
    return RENAMED[name]


def _warn(old: str, new: str) -> None:
    warnings.warn(f"afn_distributed: {old} is now called {new}", DeprecationWarning, stacklevel=3)


def _world(process: Process) -> int:
    _warn("Process.world", "Process.world_size")
    return process.world_size


def _holder(plan: Plan) -> Any:
    _warn("Plan.holder", "Plan.rank_of_token")
    return plan.rank_of_token()


for _owner, _old, _new in ((Process, "world", property(_world)), (Plan, "holder", _holder)):
    setattr(_owner, _old, _new)
# ``from afn_distributed.route import deal`` finds this module under its old name.
sys.modules["afn_distributed.route"] = sys.modules[__name__]
