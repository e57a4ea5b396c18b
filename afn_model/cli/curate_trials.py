"""What happens to a run of curation that is killed, stopped, told to forget or changed: small runs, in processes of
their own, whose files are compared byte for byte."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from afn_model.curate.plan import Plan
    from afn_model.curate.stand_ins.guarantees import CheckedPromise
    from afn_model.curate.stand_ins.server import RuleServer

STARTED = 2.5  # seconds after which a process has begun to work
ALONE: dict[str, Any] = {"quotas__channel_share": 1.0}  # so that one channel's recordings do not depend on another's
CALLS = 5  # that a budget allows
POOLED = ("multi_audio", "chats")  # products that hear several recordings


@dataclass
class RunTrials:
    """Small runs of one plan.

    Args:
        plan: file of the plan.
        folder: that the runs are in.
        limit: recordings of each.
        server: that answers; it fails as if it had not been asked before.
        seed: of the moments of kills.
        workers: of a run that is killed.
    """

    plan: Path
    folder: Path
    limit: int
    server: RuleServer
    seed: int = 0
    workers: int = 2

    def whole(self, name: str = "whole", plan: Path | None = None, **changes: Any) -> list[Any]:
        """A run that nothing happens to, in this process; what was done of each stage."""
        from afn_model.curate.executors import here
        from afn_model.curate.run import run

        self.server.calls.clear()
        return run(self.read(plan, **changes), self.folder / name, here, limit=self.limit)

    def read(self, plan: Path | None = None, **changes: Any) -> Plan:
        """The plan, with other parameters: stage__parameter."""
        from afn_model.curate.plan import read_plan

        return read_plan(plan or self.plan, {name.replace("__", "."): value for name, value in changes.items()})

    def command(self, name: str, *more: str) -> list[str]:
        """The command of a run in a folder of its own."""
        told = [str(self.plan), "--out", str(self.folder / name), "--limit", str(self.limit), "--quiet", *more]
        return [sys.executable, "-m", "afn_model.cli", "curate", "run", *told]

    def killed(self, name: str, kills: int, seconds: float, *more: str) -> int:
        """A run that is killed at random moments of so many seconds, each time going on, and then left to end.

        Returns:
            how often there was something to kill.

        Raises:
            ValueError: it did not end well.
        """
        draw, done = random.Random(self.seed), 0
        self.server.calls.clear()
        for _ in range(kills):
            process = subprocess.Popen(self.command(name, *more), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            try:
                process.wait(STARTED + draw.random() * seconds)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                process.wait()
                done += 1
        self.ended(name, *more)
        return done

    def ended(self, name: str, *more: str) -> None:
        """Runs to the end; in this process where there is one worker, which takes less time than a new one.

        Raises:
            ValueError: it ended with something else than 0, or 3 where some are quarantined.
        """
        if self.workers == 1:
            from afn_model.curate.executors import here
            from afn_model.curate.run import run

            run(self.read(), self.folder / name, here, limit=self.limit)
            return
        found = subprocess.run(self.command(name, *more), capture_output=True, text=True, check=False)
        if found.returncode not in (0, 3):
            raise ValueError(f"a run ended with {found.returncode}: {found.stderr.strip()[-300:]}")

    def files(self, name: str) -> dict[str, bytes]:
        """What must not depend on how a run went: all outcomes, and the export; but for the index beside each of its
        files, which says when they were written."""
        found, out = dict[str, bytes](), self.folder / name
        for part in ("stages", "export"):
            for path in sorted((out / part).rglob("*")):
                if path.is_file() and path.suffix != ".lock" and ".index" not in path.as_posix():
                    found[path.relative_to(out).as_posix()] = path.read_bytes()
        return found

    def differing(self, name: str, other: str = "whole") -> list[str]:
        """Names of files that are not the same in two runs."""
        one, two = self.files(name), self.files(other)
        return sorted(path for path in one.keys() | two.keys() if one.get(path) != two.get(path))


def trials(runs: RunTrials, kills: int, say: Callable[[str], Any]) -> list[CheckedPromise]:
    """All of them: kills and budgets, workers, a change, a takedown.

    Args:
        runs: where.
        kills: how often a run is killed.
        say: where lines of text go.
    """
    began = time.monotonic()
    runs.whole()
    seconds = time.monotonic() - began
    say(f"{runs.limit} recordings once more, one after another: {seconds:.0f} s")
    return [stopped(runs), killed(runs, kills, seconds, say), changed(runs), forgotten(runs)]


def stopped(runs: RunTrials) -> CheckedPromise:
    """A budget ends a run, which another command goes on with."""
    import yaml

    from afn_model.curate.cost import estimate
    from afn_model.curate.stand_ins.guarantees import CheckedPromise
    from afn_model.files import write_text

    told = yaml.safe_load(runs.plan.read_text("utf-8"))
    file = runs.plan.with_name("budget.yaml")
    write_text(file, yaml.safe_dump(told | {"budgets": {"caption": {"calls": CALLS}}}, sort_keys=False))
    before = runs.server.answered
    last = runs.whole("killed", file)[-1]
    calls = runs.server.answered - before
    costs = estimate(runs.read(), 1000.0)
    asked, tokens = sum(one.calls for one in costs), sum(one.tokens_in + one.tokens_out for one in costs)
    said = f"{last.stage} stopped ({last.stopped or 'no'}); 1,000 hours are {asked:,.0f} calls and {tokens:,.0f} tokens"
    return CheckedPromise("budgets and costs", said, bool(last.stopped) and calls >= CALLS and asked > 0 and tokens > 0)


def killed(runs: RunTrials, kills: int, seconds: float, say: Callable[[str], Any]) -> CheckedPromise:
    """Killed anywhere, on several workers, a run ends with the bytes of one that was not, on one."""
    from afn_model.curate.stand_ins.guarantees import CheckedPromise

    done = runs.killed("killed", kills, 1.2 * seconds / max(2, kills), "--workers", str(runs.workers))
    wrong, count = runs.differing("killed"), len(runs.files("whole"))
    say(f"killed {done} times: {len(wrong)} of {count} files differ")
    said = f"killed {done} times on {runs.workers} workers, never on one: {len(wrong)} of {count} files differ"
    return CheckedPromise("killed anywhere, any workers, the same bytes", said, done > 0 and count > 0 and not wrong)


def changed(runs: RunTrials) -> CheckedPromise:
    """Another parameter runs its stage again and what reads it, nothing before and beside."""
    from afn_model.curate.stand_ins.guarantees import CheckedPromise

    plan = runs.read()
    parameter: dict[str, Any] = {"voices__least": 1.5}
    keys, other = plan.keys, runs.read(**parameter).keys
    again = {one.stage: one.run for one in runs.whole()}
    after = {one.stage: one.run for one in runs.whole(**parameter)}
    # Stages that see all rows at once look again where the rows before them were written anew.
    late = {stage.name for stage in plan.stages if stage.whole}
    ran = {name for name, count in after.items() if count and name != plan.stages[0].name}
    meant = {name for name in keys if keys[name] != other[name]}
    idle = sum(count for name, count in again.items() if name != plan.stages[0].name)
    said = f"run again: {idle} rows; voices changed: {len(ran)} of {len(keys)} stages ran"
    return CheckedPromise(
        "a change runs what depends on it", said, not idle and meant <= ran | late and ran <= meant | late
    )


def forgotten(runs: RunTrials) -> CheckedPromise:
    """What is taken down is gone from the next export, with all that was made of it; the rest stays."""
    from afn_model.curate.audit import audit
    from afn_model.curate.lineage import exported, take_down
    from afn_model.curate.stand_ins.guarantees import CheckedPromise

    out = runs.folder / "killed"
    runs.whole("killed", **ALONE)
    before = {one["id"]: one for one in exported(out) if "lineage" in one}
    source = min(one["lineage"]["source_id"] for one in before.values())
    gone = {name for name, one in before.items() if source in str(one)}
    told = take_down(out, [source])
    runs.whole("killed", **ALONE)
    after = {one["id"] for one in exported(out) if "lineage" in one}
    # What is told of several recordings may be told of others now.
    alone = {name for name, one in before.items() if one["lineage"]["product"] not in POOLED}
    wrong, kept = audit(out), alone - gone
    said = (
        f"1 recording: {len(gone)} records gone, {len(kept & after)} of {len(kept)} others of one recording stay, "
        f"{len(told['stages'])} stages named"
    )
    return CheckedPromise("takedown", said, bool(gone) and not gone & after and kept <= after and not wrong)
