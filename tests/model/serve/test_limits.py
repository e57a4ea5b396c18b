"""Who is admitted, who is turned away, and whether what they are told is true."""

import heapq
from contextlib import ExitStack
from itertools import count

import numpy as np
import pytest

from afn_model.infer.costs import Costs
from afn_model.serve.errors import ApiError
from afn_model.serve.limits import FORGET, PRIOR, UNKNOWN, Limits, Throughput, asking
from afn_model.serve.settings import Settings


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def limits_of(clock=None, rejected=lambda why: None, costs=None, **settings):
    return Limits(Settings(**settings), costs, rejected=rejected, clock=clock or Clock())


def test_more_than_the_most_is_turned_away():
    why = []
    limits = limits_of(rejected=why.append, max_requests=2, max_audio_seconds=100.0)
    with limits.admitted(80.0), limits.admitted(20.0):
        with pytest.raises(ApiError, match="2 requests are being answered; try again in") as found, limits.admitted():
            pass
        assert (found.value.status, found.value.code) == (429, "queue_full")
        assert found.value.response().headers["retry-after"] == str(found.value.retry_after)
    with limits.admitted(80.0), pytest.raises(ApiError, match="80 s of recordings"), limits.admitted(21.0):
        pass
    with limits.admitted(1000.0), pytest.raises(ApiError, match="1000 s"), limits.admitted(1.0):
        pass  # alone it may be longer than all together
    assert why == ["requests", "audio_seconds", "audio_seconds"]
    assert (limits.requests, limits.audio_seconds) == (0, 0.0)


def test_what_has_ended_counts_nothing():
    limits = limits_of()
    with ExitStack() as stack:
        for seconds in (0.1, 0.2, 0.3):
            stack.enter_context(limits.admitted(seconds))
        stack.pop_all().close()
    assert (limits.requests, limits.audio_seconds) == (0, 0.0)
    first, second = ExitStack(), ExitStack()
    first.enter_context(limits.admitted(0.1))
    second.enter_context(limits.admitted(0.7))
    first.close()
    second.close()
    assert limits.audio_seconds == 0.0


def test_nobody_has_more_than_half_while_others_wait():
    why, clock = [], Clock()
    limits = limits_of(clock, why.append, max_requests=8)
    with ExitStack() as stack:
        held = [ExitStack() for _ in range(8)]
        for one in held:
            stack.enter_context(one)
            one.enter_context(limits.admitted(client="greedy"))  # alone, it may have all
        with pytest.raises(ApiError), limits.admitted(client="other"):
            pass
        held.pop().close()
        with pytest.raises(ApiError), limits.admitted(client="greedy"):
            pass  # seven of eight are its own, and another waits
        other = stack.enter_context(ExitStack())
        other.enter_context(limits.admitted(client="other"))
        for _ in range(3):
            held.pop().close()
            with pytest.raises(ApiError, match=r"\d requests of yours"), limits.admitted(client="greedy"):
                pass
        held.pop().close()
        with limits.admitted(client="greedy"):
            pass  # the fourth
        other.close()
        clock.now += 10_000.0  # what was promised has lapsed: it is alone again
        with limits.admitted(client="greedy"), limits.admitted(client="greedy"):
            pass
    assert why == ["requests", "share", "share", "share", "share"]


def test_the_one_who_asks_is_whose_turn_it_is():
    limits = limits_of(max_requests=4)
    token = asking.set("me")
    try:
        with limits.admitted():
            assert limits._clients == {"me": 1}
    finally:
        asking.reset(token)
    assert not limits._clients
    assert not limits._seconds


def test_throughput_forgets():
    found = Throughput(100.0)
    assert found.rate == 100.0
    for _ in range(600):
        found.passed(1.0)
        found.work += 300.0
    kept = FORGET * (1 - np.exp(-600 / FORGET))
    ends = 300.0 * (1 - np.exp(-600 / FORGET)) / (1 - np.exp(-1 / FORGET))
    assert found.rate == pytest.approx((ends + 100.0 * PRIOR) / (kept + PRIOR), rel=1e-9)


def test_costs_are_the_prior():
    costs = Costs(step=0.0, token=1e-3, window=0.0, budget=1.0)
    assert limits_of(costs=costs).throughput.rate == pytest.approx(1000.0)
    assert limits_of(costs=Costs()).throughput.rate == UNKNOWN


def simulated(seed, *, regular, audio, seconds=400.0, most=32, slots=8, overload=1.5):
    """An engine that answers ``slots`` requests at a time, in their order. For 100 s of every 200 ``overload``
    times what it can comes, for the others 0.3 times.

    Who is turned away comes back when told. Returns for each who came back whether it was admitted, and for each wait
    what was told against what the ends of requests say it had to be.
    """
    rng, clock, number = np.random.default_rng(seed), Clock(), count()
    limits = limits_of(clock, max_requests=most)
    events, waiting, busy, ends = [], [], 0, []
    admitted, told = [], []

    def plan(at, kind, what):
        heapq.heappush(events, (at, next(number), kind, what))

    def start():
        nonlocal busy
        while waiting and busy < slots:
            stack, length = waiting.pop(0)
            busy += 1
            service = (1.0 + 0.1 * length) * (1.0 if regular else rng.exponential())
            plan(clock.now + service, "end", stack)

    mean = 1.0 + 0.1 * audio
    at = 0.0
    for client in range(int(2 * seconds * slots / mean)):
        at += rng.exponential(mean / slots / (overload if at % 200 < 100 else 0.3))
        plan(at, "new", (f"c{client}", rng.exponential(audio), False))
    while events:
        clock.now, _, kind, what = heapq.heappop(events)
        if clock.now > seconds:
            break
        if kind == "end":  # of an answer
            what.close()
            busy -= 1
            ends.append(clock.now)
        else:
            (client, length, back), stack, came = what, ExitStack(), False
            try:
                stack.enter_context(limits.admitted(length, client))
                waiting.append((stack, length))
                came = True
            except ApiError as error:
                plan(clock.now + error.retry_after, "new", (client, length, True))
                if not back:
                    told.append((clock.now, len(limits.promises), error.retry_after))
            if back and clock.now > 200.0:
                admitted.append(came)
        start()
    ends = np.array(ends)
    ratios = []
    for at, place, wait in told:
        after = ends[ends > at]
        if at > 200.0 and len(after) >= place:
            ratios.append(wait / max(1.0, after[place - 1] - at))
    return admitted, ratios


@pytest.mark.parametrize(("regular", "audio", "seed"), [(True, 0.0, 1), (False, 0.0, 2), (False, 20.0, 3)])
def test_who_comes_back_when_told_is_admitted(regular, audio, seed):
    admitted, ratios = simulated(seed, regular=regular, audio=audio)
    assert len(admitted) > 300
    assert np.mean(admitted) >= 0.9
    assert 1.0 <= np.median(ratios) <= 2.0
    assert np.mean(ratios) <= 3.0
