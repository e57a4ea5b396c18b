"""The text model that answers about captions: another endpoint, where the server is told of one."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from typing import Any

from afn_model.infer.elsewhere import ElsewhereError, complete
from afn_model.prompt.conversation import Turn
from afn_model.serve.errors import ApiError
from afn_model.serve.settings import Settings

TOGETHER = 32  # requests to the text model at the same time


def messages_of(turns: Sequence[Turn]) -> list[dict[str, Any]]:
    """Turns of text as messages."""
    return [{"role": turn.role, "content": turn.text} for turn in turns]


async def complete_elsewhere(
    settings: Settings, messages: Sequence[dict[str, Any]], fields: dict[str, Any]
) -> dict[str, Any]:
    """The reply of the text model that the settings name.

    Args:
        settings: with ``then_url``.
        messages: of text.
        fields: of the request as the client sent them, such as ``temperature``; ``messages`` and ``model`` are not its.

    Raises:
        ApiError: 502, what went wrong there.
    """
    assert settings.then_url is not None, "there is no text model elsewhere"
    work = partial(
        complete,
        settings.then_url,
        messages,
        model=settings.then_model,
        key=settings.then_key,
        fields=fields,
        seconds=settings.then_seconds,
    )
    try:
        return await asyncio.get_running_loop().run_in_executor(_threads(), work)
    except ElsewhereError as error:
        raise ApiError(502, f"the text model: {error.said}", code="text_model_failed") from None


@cache
def _threads() -> ThreadPoolExecutor:
    """Threads of their own: those of asyncio decode recordings, and an answer takes long."""
    return ThreadPoolExecutor(TOGETHER, thread_name_prefix="text model")
