"""How much may wait and run at the same time, and when a client that was turned away should come back.

A client that is turned away is promised a place: requests that come later do not take it, and ``Retry-After`` says when
there will be one with a probability of nine tenths.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from afn_model.audio.frames import SAMPLE_RATE, WINDOW, audio_tokens
from afn_model.infer.costs import Costs
from afn_model.serve.errors import ApiError
from afn_model.serve.settings import Settings

TOKENS = audio_tokens(WINDOW) * SAMPLE_RATE / WINDOW  # of a second of audio
BESIDE = 256  # what a request's text and answer count as, in prompt tokens
UNKNOWN = 2000.0  # tokens per second of an engine that has answered nothing yet, where there are no ``Costs``
FORGET = 120.0  # seconds under load after which a measurement counts 1/e
PRIOR = 5.0  # seconds that the prior counts as
DRIFT = 1.3  # how much slower than measured it may go meanwhile
MARGIN = 1.28  # standard deviations of the normal distribution up to its 90th percentile
GRACE = 2.0  # seconds that a promised place is kept, at least; a quarter of the wait where that is longer
LONGEST = 3600  # seconds of a Retry-After, at most
PROMISES = 1024  # at the same time, at most

asking: ContextVar[str] = ContextVar("asking", default="")  # who sends the request that is being answered


@dataclass(eq=False)
class Promise:
    """A place that is kept for a client from when others leave to ``until``; it is told to come back at ``due``."""

    client: str
    audio_seconds: float
    number: int
    due: float
    until: float


class Throughput:
    """Work per second, measured while there is much of it.

    rate = (Σ work · e^(-age/τ) + prior · s) / (Σ seconds · e^(-age/τ) + s), ages in seconds under load.

    Args:
        prior: work per second before anything is measured, which counts as ``PRIOR`` seconds s.
    """

    def __init__(self, prior: float):
        self.prior, self.work, self.seconds = prior, 0.0, 0.0

    def passed(self, seconds: float) -> None:
        """So much time under load."""
        kept = math.exp(-seconds / FORGET)
        self.work *= kept
        self.seconds = self.seconds * kept + FORGET * (1 - kept)

    @property
    def rate(self) -> float:
        return (self.work + self.prior * PRIOR) / (self.seconds + PRIOR)


class Limits:
    """Counts what is being answered.

    Where several clients ask, none may have more than half of all requests, or of all seconds of audio. One who was
    turned away a short while ago counts as asking.

    Args:
        settings: the most that may be.
        costs: of the engine; what throughput is taken to be until it has been measured.
        rejected: told why each time that a request is turned away: "requests", "audio_seconds" or "share".
        clock: seconds.
    """

    def __init__(
        self,
        settings: Settings,
        costs: Costs | None = None,
        *,
        rejected: Callable[[str], object] = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.settings, self.rejected, self.clock = settings, rejected, clock
        self.requests, self.audio_seconds = 0, 0.0
        self.sessions = 0  # of realtime
        self.throughput = Throughput(UNKNOWN if costs is None or not costs.token else _predicted(costs))
        self.promises: list[Promise] = []
        self._clients: Counter[str] = Counter()
        self._seconds: dict[str, float] = {}
        self._at, self._promised = clock(), 0

    @contextmanager
    def admitted(self, audio_seconds: float = 0.0, client: str | None = None) -> Iterator[None]:
        """One more request, for as long as it takes.

        Args:
            audio_seconds: of its recordings.
            client: who sends it; ``asking`` if None.

        Raises:
            ApiError: 429 with the seconds after which there will probably be room.
        """
        client = asking.get() if client is None else client
        self._pass()
        self._admit(client, audio_seconds)
        self.requests += 1
        self.audio_seconds += audio_seconds
        self._clients[client] += 1
        self._seconds[client] = self._seconds.get(client, 0.0) + audio_seconds
        try:
            yield
        finally:
            if self._pass():
                self.throughput.work += work(audio_seconds)
            self.requests -= 1
            self.audio_seconds = self.audio_seconds - audio_seconds if self.requests else 0.0  # rounding adds up
            self._clients[client] -= 1
            self._seconds[client] -= audio_seconds
            if not self._clients[client]:
                del self._clients[client], self._seconds[client]

    def _pass(self) -> bool:
        """Time goes on, and promises lapse; whether there is much to do."""
        now, most = self.clock(), self.settings
        loaded = 2 * self.requests >= most.max_requests or 2 * self.audio_seconds >= most.max_audio_seconds
        if loaded:
            self.throughput.passed(now - self._at)
        self._at = now
        self.promises = [promise for promise in self.promises if promise.until > now]
        return loaded

    def _admit(self, client: str, audio_seconds: float) -> None:
        """Finds room for a request or turns it away."""
        most, own = self.settings, [promise for promise in self.promises if promise.client == client]
        before = [one for one in self.promises if one.client != client and (not own or one.number < own[0].number)]
        if own and own[0].due <= self._at + 1:  # it comes when it was told: those who are late come before it
            before = [one for one in before if one.due <= self._at]
        rate, count, held = self.throughput.rate, self._clients[client], self._seconds.get(client, 0.0)
        requests, seconds = self._lacking(before, audio_seconds, rate)
        if requests > 0:
            why, what = "requests", f"{self.requests} requests are being answered"
        elif seconds > 0:
            why, what = "audio_seconds", f"{self.audio_seconds:.0f} s of recordings are being answered"
        else:
            if count and (len(self._clients) > 1 or len(own) < len(self.promises)):
                requests = count + 1 - max(1, most.max_requests // 2)
                seconds = held + audio_seconds - most.max_audio_seconds / 2
            if requests <= 0 and seconds <= 0:
                if own:
                    self.promises.remove(own[0])
                return
            why, what = "share", f"{count} requests of yours are being answered, and others wait"
            rate *= (BESIDE * count + TOKENS * held) / (BESIDE * self.requests + TOKENS * self.audio_seconds)
        self.rejected(why)
        if why != "share":  # behind all that have been promised a place
            requests = self.requests + len(before) + 1 - most.max_requests
            seconds = self.audio_seconds + sum(one.audio_seconds for one in before) + audio_seconds
            seconds -= most.max_audio_seconds
        wait = self._promise(client, audio_seconds, own, requests, seconds, rate)
        raise ApiError(429, f"{what}; try again in {wait} s", code="queue_full", retry_after=wait)

    def _lacking(self, before: list[Promise], audio_seconds: float, rate: float) -> tuple[float, float]:
        """Requests and seconds of audio too many for one more now. There is room where both are at most 0: then those
        before it find their places when they are due with a probability of 0.9, as of m ends that are expected until
        then m - 1.28 √m come."""
        requests, seconds = self.requests + 1, self.audio_seconds + audio_seconds
        if not self.requests and not before:
            return requests - self.settings.max_requests, 0.0  # alone it may be longer than all together may
        lacking, late, kept, pace = requests, seconds, 0.0, rate / self._every()
        for index, promise in enumerate(before, 1):
            kept += promise.audio_seconds
            expected = max(0.0, promise.due - self._at) * pace
            ended = max(0.0, expected - MARGIN * math.sqrt(expected))
            lacking = max(lacking, requests + index - ended)
            late = max(late, seconds + kept - ended * self.audio_seconds / max(1, self.requests))
        return lacking - self.settings.max_requests, late - self.settings.max_audio_seconds

    def _every(self) -> float:
        """Mean work of what is being answered, and of what will be."""
        promised = sum(one.audio_seconds for one in self.promises)
        return work((self.audio_seconds + promised) / max(1, self.requests + len(self.promises)))

    def _wait(self, requests: float, seconds: float, rate: float) -> float:
        """Seconds until so many requests and so much audio have ended, with a probability of 0.9.

        Where ends are a Poisson process, n have come after about (n + 1.28 √n) / rate; a third is added, since
        rates drift.
        """
        need = max(0.0, requests)
        if seconds > 0:
            need = max(need, max(1, self.requests) * min(1.0, seconds / max(self.audio_seconds, 1e-9)))
        return DRIFT * (need + MARGIN * math.sqrt(need)) * self._every() / rate

    def _promise(
        self, client: str, audio_seconds: float, own: list[Promise], requests: float, seconds: float, rate: float
    ) -> int:
        """Keeps a place, and says in how many seconds. Who came back in vain stays where he was in the order."""
        now, number, most = self._at, self._promised, self.settings.max_requests
        if own and own[0].due <= now + 1:
            number, requests = own[0].number, max(1, requests)
            self.promises.remove(own[0])
        elif len(own) >= max(1, most // 2) or len(self.promises) >= PROMISES:
            return max(1, math.ceil(self.promises[-1].due - now))
        else:
            requests += len(own)
            self._promised += 1
        told = min(LONGEST, max(1, math.ceil(self._wait(requests, seconds, rate))))
        until = now + told + max(GRACE, 0.25 * told)
        self.promises.append(Promise(client, audio_seconds, number, now + told, until))
        self.promises.sort(key=lambda promise: promise.number)
        return told


def work(audio_seconds: float) -> float:
    """What a request counts as, in prompt tokens."""
    return BESIDE + TOKENS * audio_seconds


def _predicted(costs: Costs) -> float:
    """Tokens per second of requests about 30 s of audio."""
    tokens = round(work(WINDOW / SAMPLE_RATE))
    return tokens / (costs.step + costs.window + costs.chunk(0, tokens))
