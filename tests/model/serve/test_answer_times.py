"""Times that answers state: checked against the recordings, and heard again where the client asks for that."""

import asyncio
import math

import torch

from afn_model.serve.answer_times import checked_times, times_of
from afn_model.serve.recording import Recording
from tests.model.serve.serving import tiny_server
from tests.tiny import noise

SILENCE = Recording("silence", torch.zeros(16_000))


def test_checked_against_the_recordings():
    first, second = checked_times(" at 0.5 s</think> It barks at 0:40.", [SILENCE], True)
    assert [first.time.where, first.status, second.status] == ["think", "silent", "past_end"]
    for count, found in ((1, [0.5]), (2, [])):
        assert [one.time.start for one in checked_times("the last half second", count * [SILENCE], False)] == found


def test_heard_again():
    """A request for each time that lies in a recording, even where the server is full: they are part of one."""
    server = tiny_server(max_requests=1)
    heard = Recording("heard", torch.as_tensor(noise(4.0)).float())
    text = "It barks at 0.5 s, again at 2.5 s, and at 1:00:00."

    async def asked():
        await server.start()
        try:
            with server.limits.admitted():
                return await times_of(server, text, [heard], False, verify=True)
        finally:
            await server.stop()

    found = asyncio.run(asked())
    assert [one["status"] for one in found] == ["ok", "ok", "past_end"]
    assert [set(one) >= {"start", "end", "text", "span", "log_odds"} for one in found] == 3 * [True]
    assert found[2]["log_odds"] is None, "there is nothing to hear"
    assert all(one["log_odds"] is None or math.isfinite(one["log_odds"]) for one in found)
    assert server.thread.engine.requests == 2
