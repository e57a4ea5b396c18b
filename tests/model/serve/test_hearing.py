"""Recordings in pieces: so many at a time, and whose fault it is when one cannot be answered."""

import asyncio
from contextlib import asynccontextmanager

import pytest
import torch

from afn_model.infer.request import NotFinite
from afn_model.serve.engine_thread import Delta
from afn_model.serve.errors import ApiError
from afn_model.serve.hearing import AHEAD, Hearing
from afn_model.serve.recording import Recording
from afn_model.serve.transcript_formats import Spoken
from afn_model.serve.transcript_request import read_request
from tests.model.serve.scripted import Script, always
from tests.model.serve.serving import tiny_server
from tests.tiny import noise


@pytest.fixture(scope="module")
def server():
    return tiny_server()


async def heard(server, seconds):
    asked = read_request({"chunk_seconds": "1"}, "transcribe")
    hearing = await Hearing.of(server, asked, Recording("a", torch.from_numpy(noise(seconds)).float()))
    async with hearing:
        tasks = len(hearing._tasks)
        found = [one async for one in hearing.news() if isinstance(one, Spoken)]
    return found, tasks, len(hearing._news)


def test_pieces_that_wait_cost_nothing(server, monkeypatch):
    monkeypatch.setattr(server, "ask", server.ask)
    told = Script(server, always("Hello."))
    found, tasks, kept = asyncio.run(heard(server, 9.0))
    assert [one.start for one in found] == sorted(one.start for one in found)
    assert (len(found), told.most, tasks, kept) == (len(told.asked), AHEAD, AHEAD, 0)
    assert found[-1].end == 9.0


def test_scores_that_are_no_numbers_are_the_servers_fault(server, monkeypatch):
    class Stream:
        async def __aiter__(self):
            yield Delta(0, reason="error", error=NotFinite("the scores are NaN"))

    @asynccontextmanager
    async def ask(*_, **options):
        yield Stream()

    monkeypatch.setattr(server, "ask", ask)
    with pytest.raises(ApiError) as error:
        asyncio.run(heard(server, 0.5))
    assert error.value.status == 500
