"""Names of version 0.1.0, which work for one version more and warn. To end them, delete this file and its import."""

from __future__ import annotations

import sys
import warnings
from types import ModuleType
from typing import Any

from afn_distributed.dispatch import DispatchPlan, assign_balanced, dispatch
from afn_distributed.layout import RankLayout
from afn_distributed.plan import Plan
from afn_distributed.process import Process

# By module: what the package itself and its module ``route`` had.
RENAMED = {
    "afn_distributed": {"Layout": RankLayout},
    "afn_distributed.route": {"Routes": DispatchPlan, "deal": assign_balanced, "route": dispatch},
}


def __getattr__(name: str) -> Any:
    return _renamed("afn_distributed", name)


def _renamed(module: str, name: str) -> Any:
    if name not in RENAMED[module]:
        raise AttributeError(f"module {module!r} has no attribute {name!r}")
    new = RENAMED[module][name]
    warnings.warn(f"{module}: {name} is now called {new.__name__}", DeprecationWarning, stacklevel=3)
    return new


def _warn(old: str, new: str) -> None:
    warnings.warn(f"afn_distributed: {old} is now called {new}", DeprecationWarning, stacklevel=3)


def _world(process: Process) -> int:
    _warn("Process.world", "Process.world_size")
    return process.world_size


def _layout_world(layout: RankLayout) -> int:
    _warn("Layout.world", "RankLayout.world_size")
    return layout.world_size


def _layout_sequence(layout: RankLayout) -> int:
    _warn("Layout.sequence", "RankLayout.sp_size")
    return layout.sp_size


def _holder(plan: Plan) -> Any:
    _warn("Plan.holder", "Plan.rank_of_token")
    return plan.rank_of_token()


for _owner, _old, _new in (
    (Process, "world", property(_world)),
    (RankLayout, "world", property(_layout_world)),
    (RankLayout, "sequence", property(_layout_sequence)),
    (Plan, "holder", _holder),
):
    setattr(_owner, _old, _new)

_route = ModuleType("afn_distributed.route", "The former name of ``afn_distributed.dispatch``.")
vars(_route)["__getattr__"] = lambda name: _renamed("afn_distributed.route", name)
sys.modules["afn_distributed.route"] = _route
# ``import afn_distributed.route as r`` asks the package for it.
vars(sys.modules["afn_distributed"])["route"] = _route
