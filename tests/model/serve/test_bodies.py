"""Bodies of requests: too large, too slow, too many."""

import asyncio

import pytest

from afn_model.serve.bodies import PACE, Bodies
from afn_model.serve.errors import ApiError
from afn_model.serve.settings import Settings

SETTINGS = Settings(max_body_bytes=4 * PACE, max_waiting_bytes=6 * PACE, body_seconds=10.0)


class Sender:
    """Sends parts of a body, each after so many seconds of a clock that nobody waits for; then nothing."""

    def __init__(self, *parts: tuple[int, float]):
        self.parts, self.now = list(parts), 0.0

    async def receive(self):
        if not self.parts:
            await asyncio.Event().wait()
        size, seconds = self.parts.pop(0)
        self.now += seconds
        return {"type": "http.request", "body": bytes(size), "more_body": True}


async def read(bodies, client, length="0", times=1):
    with bodies.read(client.receive, length) as receive:
        for _ in range(times):
            await receive()
        return bodies.bytes


def refused(bodies, client, **how) -> int:
    with pytest.raises(ApiError) as error:
        asyncio.run(read(bodies, client, **how))
    assert bodies.bytes == 0 or how.get("length", "0") != "0", "what was refused is counted"
    return error.value.status


def test_a_body_is_too_large_by_what_it_says_or_by_what_comes():
    assert asyncio.run(read(Bodies(SETTINGS), Sender((4 * PACE, 0)), str(4 * PACE))) == 4 * PACE
    assert refused(Bodies(SETTINGS), Sender(), length=str(4 * PACE + 1)) == 413
    assert refused(Bodies(SETTINGS), Sender(), length="-1") == 413
    assert refused(Bodies(SETTINGS), Sender((2 * PACE, 0), (2 * PACE + 1, 0)), times=2) == 413


def test_all_bodies_together_are_bounded():
    async def two():
        bodies, first, second = Bodies(SETTINGS), Sender((3 * PACE, 0)), Sender((3 * PACE, 0), (1, 0))
        with bodies.read(first.receive, "0") as receive:
            await receive()
            with pytest.raises(ApiError) as error:
                await read(bodies, second, times=2)
            assert (error.value.status, bodies.bytes) == (429, 3 * PACE)
            with pytest.raises(ApiError) as error, bodies.read(second.receive, str(3 * PACE + 1)):
                pass
            assert error.value.status == 429
        return bodies.bytes

    assert asyncio.run(two()) == 0


def test_a_body_that_comes_too_slowly_is_not_waited_for():
    slow, steady = Sender((1, 6.0), (1, 6.0), (1, 0.0)), Sender((2 * PACE, 6.0), (PACE, 5.9), (1, 0.0))
    assert refused(Bodies(SETTINGS, lambda: slow.now), slow, times=3) == 408
    assert asyncio.run(read(Bodies(SETTINGS, lambda: steady.now), steady, times=3)) == 3 * PACE + 1
    quick = Settings(body_seconds=0.01)
    assert refused(Bodies(quick), Sender()) == 408


def test_an_answer_may_take_longer_than_a_body():
    async def answered():
        clock = [0.0]

        async def receive():
            clock[0] += 1000.0
            return {"type": "http.request" if clock[0] < 1500 else "http.disconnect", "more_body": False}

        with Bodies(SETTINGS, lambda: clock[0]).read(receive, "0") as bounded:
            await bounded()
            return (await bounded())["type"]

    assert asyncio.run(answered()) == "http.disconnect"
