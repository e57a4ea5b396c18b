"""All that the plan launches, compiled for sm_90a: the steps of the rehearsal's last phase."""

from __future__ import annotations

from functools import partial

from afn_kernels import _verdicts
from afn_kernels.verify.run import selected
from bench.first import compilation, decoding, figures, sweeps
from bench.first.child import say
from bench.first.plan import GOALS, MORE, SWEEPS


def compiled(what: str) -> None:
    """All that a kind of step launches; what does not compile is a line, and the rest goes on."""
    if what == "checks":
        compilation.checks([one.op for _, one in selected("full", None)])
        return
    each = [partial(sweeps.sweep, name) for name in SWEEPS]
    if what == "rows":
        each = [partial(figures.goal, name) for name in GOALS | MORE] + [decoding.step]
    for call in each:
        try:
            call()
        except Exception as error:
            say("compiled", what=" ".join(map(str, getattr(call, "args", ()))), status="failed",
                why=_verdicts.one_line(error))  # fmt: skip
