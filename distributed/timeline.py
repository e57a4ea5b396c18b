"""A timeline of kernels and messages on several ranks: two streams on each, and start and end of every event."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class TimelineEvent:
    """A kernel or message of every rank: [ranks] ``start`` and ``end`` in seconds, after the events ``after``."""

    name: str
    stream: str
    start: np.ndarray
    end: np.ndarray
    after: tuple[TimelineEvent, ...] = ()


@dataclass(eq=False)
class BackgroundCollective:
    """A collective that uses the link only while no other message does; [ranks] seconds that are ``left`` of it."""

    name: str
    ready: np.ndarray
    left: np.ndarray
    end: np.ndarray
    after: tuple[TimelineEvent, ...]
    first: np.ndarray
    done: TimelineEvent | None = None


class Timeline:
    """Two streams on each rank: kernels in order, and messages in order with background collectives in their gaps.

    Args:
        ranks: number of ranks.
        node: [ranks] node of each rank, ascending.
    """

    def __init__(self, ranks: int, node: np.ndarray):
        self.compute, self.link = np.zeros(ranks), np.zeros(ranks)
        self.node, self.pending, self.events = node, [], []
        self.busy: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {"compute": [], "link": []}

    def _add(self, *facts) -> TimelineEvent:
        self.events.append(TimelineEvent(*facts))
        return self.events[-1]

    def run(self, name: str, seconds: np.ndarray, *after: TimelineEvent) -> TimelineEvent:
        """Adds kernels of [ranks] ``seconds`` to the compute stream, after other events; returns their event."""
        start = _latest(self.compute, after)
        self.compute = start + seconds
        self.busy["compute"].append((start, self.compute))
        return self._add(name, "compute", start, self.compute, after)

    def collect(
        self, name: str, seconds: np.ndarray, shape: tuple[int, int], axis: int, *after: TimelineEvent
    ) -> TimelineEvent:
        """Adds a collective along an axis of the ranks in ``shape``; it starts when all its ranks are ready."""
        ready = _latest(self.link, after)
        there = np.where(seconds > 0, ready, 0).reshape(shape).max(axis, keepdims=True)
        start = np.where(seconds > 0, np.broadcast_to(there, shape).reshape(-1), ready)
        return self._take(name, start, start + seconds, after)

    def send(self, name: str, shift: int, seconds: np.ndarray, *after: TimelineEvent) -> TimelineEvent:
        """Adds a message from each rank to rank + ``shift``, 0 seconds for none; a rank waits for both ends."""
        ready = _latest(self.link, after)
        begin = np.maximum(ready, np.roll(ready, -shift))
        coming = np.roll(seconds, shift)
        came = np.roll(begin, shift)
        start = np.minimum(np.where(seconds > 0, begin, np.inf), np.where(coming > 0, came, np.inf))
        start = np.where(np.isinf(start), ready, start)
        end = np.maximum(np.where(seconds > 0, begin + seconds, start), np.where(coming > 0, came + coming, start))
        return self._take(name, start, end, after)

    def _take(self, name: str, start: np.ndarray, end: np.ndarray, after: tuple[TimelineEvent, ...]) -> TimelineEvent:
        self._drain(self.pending, start)
        self.link = np.where(end > start, end, self.link)
        self.busy["link"].append((start, end))
        return self._add(name, "link", start, end, after)

    def background(self, name: str, seconds: float, *after: TimelineEvent) -> BackgroundCollective:
        """Starts a background collective; it is ready on a node when all of the node's ranks are."""
        ready = _latest(np.zeros_like(self.link), after)
        ready = self._over_nodes(ready)
        left = np.full_like(ready, seconds)
        self.pending.append(BackgroundCollective(name, ready, left, ready.copy(), after, np.full_like(ready, np.inf)))
        return self.pending[-1]

    def wait(self, job: BackgroundCollective) -> TimelineEvent:
        """Waits for a background collective, which has the link until it ends; returns it as an event."""
        if job.done is None:
            place = self.pending.index(job)
            self._drain(self.pending[: place + 1], np.full_like(self.link, np.inf))
            for one in self.pending[: place + 1]:
                end = self._over_nodes(one.end)
                one.done = self._add(one.name, "weights", np.minimum(one.first, end), end, one.after)
            del self.pending[: place + 1]
        return job.done

    def _over_nodes(self, x: np.ndarray) -> np.ndarray:
        """The maximum over the ranks of each node, for each rank."""
        first = np.flatnonzero(np.diff(self.node, prepend=-1))
        return np.repeat(np.maximum.reduceat(x, first), np.diff(first, append=len(x)))

    def _drain(self, collectives: Iterable[BackgroundCollective], until: np.ndarray) -> None:
        """Lets background collectives use the link, in order, until a time on each rank."""
        for job in collectives:
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
        """Seconds of the step; means over ranks of kernels, messages, and messages beside kernels and alone."""
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


def _latest(ready: np.ndarray, after: Sequence[TimelineEvent]) -> np.ndarray:
    """[ranks] when a stream is free and all events before have ended."""
    for event in after:
        ready = np.maximum(ready, event.end)
    return ready
