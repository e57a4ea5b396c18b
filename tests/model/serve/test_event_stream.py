"""Server-sent events: comments while nothing comes, errors as the last event, an end."""

import asyncio
import json

import pytest

from afn_model.serve.errors import ApiError
from afn_model.serve.event_stream import lines, unless_gone


async def events(*found, ended=None, waits=None):
    try:
        for one in found:
            if waits is not None:
                await waits.wait()
            if isinstance(one, Exception):
                raise one
            yield {"n": one}
    finally:
        if ended is not None:
            ended.append(True)


def test_events_and_the_end():
    async def told():
        return [text async for text in lines({"n": "é"}, events(1, 2))]

    assert asyncio.run(told()) == [
        'data: {"n": "é"}\n\n',
        'data: {"n": 1}\n\n',
        'data: {"n": 2}\n\n',
        "data: [DONE]\n\n",
    ]


@pytest.mark.parametrize(
    ("error", "message"), [(ApiError(429, "full"), "full"), (KeyError("secret"), "could not answer this request")]
)
def test_an_error_is_the_last_event(error, message):
    async def told():
        return [text async for text in lines({"n": 0}, events(1, error, 2))]

    found = asyncio.run(told())
    assert len(found) == 3
    assert message in json.loads(found[-1].removeprefix("data: "))["error"]["message"]
    assert "secret" not in found[-1]


def test_comments_while_nothing_comes():
    async def told():
        waits, found = asyncio.Event(), []
        async for text in lines({"n": 0}, events(1, waits=waits), silence=1e-4):
            found.append(text)
            if len(found) == 3:
                waits.set()
        return found

    found = asyncio.run(told())
    assert found[1:3] == [": no news\n\n"] * 2
    assert [text for text in found if text.startswith("data")][1:] == ['data: {"n": 1}\n\n', "data: [DONE]\n\n"]


def test_a_stream_that_is_left_ends_its_events():
    async def told():
        ended = []
        stream = lines({"n": 0}, events(1, ended=ended, waits=asyncio.Event()), silence=1e-4)
        assert [await anext(stream), await anext(stream)][1] == ": no news\n\n"
        await stream.aclose()
        return ended

    assert asyncio.run(asyncio.wait_for(told(), 30)) == [True]

    async def between():
        ended = []
        stream = lines({"n": 0}, events(1, 2, ended=ended))
        assert [await anext(stream), await anext(stream)][1] == 'data: {"n": 1}\n\n'
        await stream.aclose()
        return len(ended)

    assert asyncio.run(between()) == 1


class Web:
    """A request whose client goes when it is told to."""

    def __init__(self):
        self.gone = asyncio.Event()

    async def receive(self):
        await self.gone.wait()
        return {"type": "http.disconnect"}


def test_work_ends_with_its_client():
    async def told():
        web, ended = Web(), []

        async def work():
            try:
                web.gone.set()
                await asyncio.Event().wait()
            finally:
                ended.append(True)

        with pytest.raises(ApiError, match="the client has gone"):
            await unless_gone(web, work())
        return ended

    assert asyncio.run(asyncio.wait_for(told(), 30)) == [True]


def test_work_that_is_done_first():
    async def told():
        async def fails():
            raise ValueError("x")

        with pytest.raises(ValueError, match="x"):
            await unless_gone(Web(), fails())
        return await unless_gone(Web(), asyncio.sleep(0, 5))

    assert asyncio.run(told()) == 5


def test_work_ends_with_its_task():
    async def told():
        ended, began = [], asyncio.Event()

        async def work():
            try:
                began.set()
                await asyncio.Event().wait()
            finally:
                ended.append(True)

        task = asyncio.create_task(unless_gone(Web(), work()))
        await began.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return ended

    assert asyncio.run(asyncio.wait_for(told(), 30)) == [True]
