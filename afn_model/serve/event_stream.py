"""Answers that are sent while they grow, as server-sent events; work whose client has gone is ended."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable
from typing import Any, TypeVar

from fastapi import Request

from afn_model.serve.errors import ApiError, as_api_error

T = TypeVar("T")
SILENCE = 15.0  # seconds after which a comment says that the connection lives: proxies close silent ones


async def unless_gone(request: Request, work: Awaitable[T]) -> T:
    """What some work returns; it is cancelled when the client of a request, whose body was read, has gone.

    Raises:
        ApiError: 499, the client has gone; nobody reads it.
        Exception: what ``work`` raises.
    """
    working, gone = asyncio.ensure_future(work), asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({working, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ApiError(499, "the client has gone", code="client_gone")
        return await working
    finally:
        gone.cancel()
        if not working.done():
            working.cancel()
            await asyncio.wait({working})


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def lines(
    first: dict[str, Any], rest: AsyncGenerator[dict[str, Any], None], *, silence: float = SILENCE
) -> AsyncIterator[str]:
    """The body of a streamed answer: an event a line, then ``[DONE]``; after an error, which is the last event, none.

    Args:
        first: the first event; what goes wrong before it is an error of HTTP.
        rest: the others.
        silence: seconds between two comments while nothing comes.
    """
    following: asyncio.Task | None = None
    try:
        yield line(first)
        while True:
            following = asyncio.ensure_future(anext(rest))
            while not following.done():
                await asyncio.wait({following}, timeout=silence)
                if not following.done():
                    yield ": no news\n\n"
            try:
                event = following.result()
            except StopAsyncIteration:
                break
            yield line(event)
        yield "data: [DONE]\n\n"
    except Exception as error:
        yield line(as_api_error(error).body())
    finally:
        if following is not None and not following.done():
            following.cancel()
            await asyncio.wait({following})
        await rest.aclose()


def line(event: dict[str, Any]) -> str:
    return f"data: {json.dumps(event, ensure_ascii=False)}\n\n"
