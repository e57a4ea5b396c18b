"""Streams of kernels and messages on several ranks, and when each of their events happens."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class Event:
    """Something that every rank of the group does: [ranks] seconds from ``start`` to ``end``, after others ended."""

    name: str
    stream: str
    start: np.ndarray
    end: np.ndarray
    after: tuple[Event, ...] = ()


@dataclass(eq=False)
class Job:
    """A message that takes the link whenever nothing more urgent does."""

    name: str
    ready: np.ndarray
    left: np.ndarray
    end: np.ndarray
    after: tuple[Event, ...]
    first: np.ndarray
    done: Event | None = None


class Timeline:
    """Two streams on each rank: kernels in order; messages in order, with those of the weights in their gaps.

    Args:
        ranks: of the group.
        node: [ranks] node of each, rising.
    """

    def __init__(self, ranks: int, node: np.ndarray):
        self.compute, self.link = np.zeros(ranks), np.zeros(ranks)
        self.node, self.jobs, self.events = node, [], []
        self.busy: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {"compute": [], "link": []}

    def _add(self, *facts) -> Event:
        self.events.append(Event(*facts))
        return self.events[-1]

    def run(self, name: str, seconds: np.ndarray, *after: Event) -> Event:
        """A kernel, or several."""
        start = _latest(self.compute, after)
        self.compute = start + seconds
        self.busy["compute"].append((start, self.compute))
        return self._add(name, "compute", start, self.compute, after)

    def collect(self, name: str, seconds: np.ndarray, shape: tuple[int, int], axis: int, *after: Event) -> Event:
        """A collective along an axis of the ranks in ``shape``: it starts when all who have a part in it are there."""
        ready = _latest(self.link, after)
        there = np.where(seconds > 0, ready, 0).reshape(shape).max(axis, keepdims=True)
        start = np.where(seconds > 0, np.broadcast_to(there, shape).reshape(-1), ready)
        return self._take(name, start, start + seconds, after)

    def send(self, name: str, shift: int, seconds: np.ndarray, *after: Event) -> Event:
        """Each rank sends ``shift`` ranks on, and gets as much from ``shift`` ranks back; 0 seconds is no message."""
        ready = _latest(self.link, after)
        begin = np.maximum(ready, np.roll(ready, -shift))
        coming = np.roll(seconds, shift)
        came = np.roll(begin, shift)
        start = np.minimum(np.where(seconds > 0, begin, np.inf), np.where(coming > 0, came, np.inf))
        start = np.where(np.isinf(start), ready, start)
        end = np.maximum(np.where(seconds > 0, begin + seconds, start), np.where(coming > 0, came + coming, start))
        return self._take(name, start, end, after)

    def _take(self, name: str, start: np.ndarray, end: np.ndarray, after: tuple[Event, ...]) -> Event:
        self._drain(self.jobs, start)
        self.link = np.where(end > start, end, self.link)
        self.busy["link"].append((start, end))
        return self._add(name, "link", start, end, after)

    def later(self, name: str, seconds: float, *after: Event) -> Job:
        """A collective of all GPUs, or of a node's, in the gaps; ready when the group's ranks of the node are."""
        ready = _latest(np.zeros_like(self.link), after)
        ready = self._over_nodes(ready)
        left = np.full_like(ready, seconds)
        self.jobs.append(Job(name, ready, left, ready.copy(), after, np.full_like(ready, np.inf)))
        return self.jobs[-1]

    def wait(self, job: Job) -> Event:
        """The job as an event; it takes the link until it has ended."""
        if job.done is None:
            place = self.jobs.index(job)
            self._drain(self.jobs[: place + 1], np.full_like(self.link, np.inf))
            for one in self.jobs[: place + 1]:
                end = self._over_nodes(one.end)
                one.done = self._add(one.name, "weights", np.minimum(one.first, end), end, one.after)
            del self.jobs[: place + 1]
        return job.done

    def _over_nodes(self, x: np.ndarray) -> np.ndarray:
        first = np.flatnonzero(np.diff(self.node, prepend=-1))
        return np.repeat(np.maximum.reduceat(x, first), np.diff(first, append=len(x)))

    def _drain(self, jobs: Iterable[Job], until: np.ndarray) -> None:
        for job in jobs:
            start = np.maximum(self.link, job.ready)
            took = np.clip(until - start, 0, job.left)
            if took.any():
                end = start + took
                job.first = np.where(took > 0, np.minimum(job.first, start), job.first)
                job.left = job.left - took
                job.end = np.where(took > 0, end, job.end)
                self.link = np.where(took > 0, end, self.link)
                self.busy["link"].append((start, end))

    def shares(self) -> dict[str, float]:
        """Seconds of the step, and means over the ranks: kernels, messages, those under kernels and those not."""
        times = (np.array(self.busy[name]).reshape(-1, 2, len(self.link)) for name in ("compute", "link"))
        (starts, ends), (out, back) = (x.transpose(1, 2, 0) for x in times)
        computed, total, hidden = (ends - starts).sum(1), (back - out).sum(1), np.zeros(len(starts))
        for rank, (a, b) in enumerate(zip(starts, ends, strict=True)):
            times = np.stack((a, b), 1).reshape(-1)
            done = np.stack((np.zeros_like(a), b - a), 1).reshape(-1).cumsum()
            hidden[rank] = (np.interp(back[rank], times, done) - np.interp(out[rank], times, done)).sum()
        step = float(max(self.compute.max(), self.link.max()))
        exposed = float((total - hidden).mean())
        found = {"step_s": step, "compute_s": float(computed.mean()), "communication_s": float(total.mean())}
        found |= {"hidden_s": float(hidden.mean()), "exposed_s": exposed}
        return {**found, "waiting_s": step - found["compute_s"] - exposed}


def _latest(ready: np.ndarray, after: Sequence[Event]) -> np.ndarray:
    for event in after:
        ready = np.maximum(ready, event.end)
    return ready
