"""The text model that answers about captions: another endpoint, where the server is told of one."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from typing import Any

from afn_model.infer.elsewhere import ElsewhereError, complete
from afn_model.prompt.conversation import Turn
from afn_model.serve.answer_times import times_of
from afn_model.serve.chat_request import ChatRequest
from afn_model.serve.errors import ApiError
from afn_model.serve.recording import Recording
from afn_model.serve.server import Server
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


async def answer_elsewhere(
    server: Server,
    asked: ChatRequest,
    turns: Sequence[Turn],
    recordings: Sequence[Recording],
    captions: list[dict[str, Any]],
) -> dict[str, Any]:
    """A chat completion of the text model, with the times that it states checked against the recordings.

    Args:
        server: whose settings name it.
        asked: the request.
        turns: its conversation, with captions in the place of recordings.
        recordings: of it.
        captions: for ``afn.captions``.

    Raises:
        ApiError: as of ``complete_elsewhere``.
    """
    ours = {"messages", "model", "stream", "stream_options", "afn_caption", "afn_verify", "priority", "loop_tokens"}
    fields = asked.model_dump(exclude=ours, exclude_unset=True, exclude_none=True)
    reply = await complete_elsewhere(server.settings, messages_of(turns), fields)
    times: list[dict[str, Any]] = []
    for index, choice in enumerate(reply.get("choices", ())):
        text = (choice.get("message") or {}).get("content") or ""
        found = await times_of(server, text, recordings, False, verify=bool(asked.afn_verify))
        times += [one | {"choice": index} for one in found]
    return reply | {"afn": {"captions": captions, "timestamps": times}}


@cache
def _threads() -> ThreadPoolExecutor:
    """Threads of their own: those of asyncio decode recordings, and an answer takes long."""
    return ThreadPoolExecutor(TOGETHER, thread_name_prefix="text model")
