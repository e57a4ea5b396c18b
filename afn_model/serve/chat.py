"""``/v1/chat/completions``: questions about recordings, and ``/tokenize``."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Coroutine, Sequence
from functools import partial
from typing import Any, TypeVar

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Receive, Scope, Send
from torch import Tensor

from afn_model.audio.frames import SAMPLE_RATE
from afn_model.infer.stated_times import stated_times
from afn_model.infer.time_checks import check_times
from afn_model.serve.chat_audio import hear
from afn_model.serve.chat_reply import Chat
from afn_model.serve.chat_request import CHAT, TOKENIZE, ChatRequest, TokenizeRequest, opening, read, sampling
from afn_model.serve.chat_stream import EventStream
from afn_model.serve.errors import ApiError, as_api_error
from afn_model.serve.server import Server, server_of

GONE = 499  # what logs call a client that did not wait for its answer
T = TypeVar("T")
router = APIRouter()
log = logging.getLogger("afn.serve")


def described(path: str, model: type[BaseModel]) -> dict[str, Any]:
    """A route's body for ``/openapi.json``: it is read by us, as a large one would hold up the event loop."""
    at = f"#/paths/{path.replace('/', '~1')}/post/requestBody/content/application~1json/schema/$defs"
    schema = model.model_json_schema(ref_template=at + "/{model}")
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


@router.post("/v1/chat/completions", openapi_extra=described("/v1/chat/completions", ChatRequest))
async def complete(request: Request) -> Response:
    """Answers a conversation, whole or as a stream."""
    return ChatResponse(server_of(request), request)


class ChatResponse(Response):
    """Answers a request; when its client has gone, nobody goes on with it.

    Args:
        server: that answers.
        request: whose body has not been read.
    """

    def __init__(self, server: Server, request: Request):
        super().__init__()
        self.server, self.request = server, request
        self.clock = server.thread.engine.clock
        self.arrived = self.clock()
        self.chat: Chat | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        status = GONE
        try:
            body = await self.request.body()
            done = await unless_gone(receive, self.answer(body, scope, receive, send))
            status = status if done is None else done
        except ClientDisconnect:
            pass
        except ApiError as error:
            status = error.status
            raise
        except Exception as error:
            log.exception("a chat completion failed")
            failed = as_api_error(error)
            status = failed.status
            raise failed from None
        finally:
            self.note(status)

    async def answer(self, body: bytes, scope: Scope, receive: Receive, send: Send) -> int:
        """Sends the answer; its status."""
        asked: ChatRequest = await read(body, CHAT)
        self.server.check_model(asked.model)
        params, prediction = sampling(asked, self.server.settings)
        start = opening(asked.messages, asked.add_generation_prompt, asked.continue_final_message)
        heard = await hear(asked.messages, self.server, scope["client_id"])
        chat = Chat(self.server, asked, params, prediction, start, heard, timestamps_of, self.arrived)
        self.chat = chat
        if asked.stream:
            stream = EventStream(chat, send)
            await stream.run()
            return 200 if stream.error is None else stream.error.status
        found = await chat.whole()
        content = await asyncio.to_thread(json.dumps, found, ensure_ascii=False)
        headers = {"x-request-id": chat.id}
        await Response(content.encode(), 200, headers, "application/json")(scope, receive, send)
        return 200

    def note(self, status: int) -> None:
        """One line about the request."""
        chat, seconds = self.chat, self.clock() - self.arrived
        counts = chat.usage if chat is not None else {}
        tokens = counts.get("prompt_tokens", 0), counts.get("completion_tokens", 0)
        log.info("%s %d, %d + %d tokens, %.3f s", chat.id if chat else "chat", status, *tokens, seconds)
        if self.server.settings.log_content and chat is not None:
            answers = ["".join(choice.text) for choice in chat.choices]
            log.info("%s was asked %r and answered %r", chat.id, [turn.text for turn in chat.heard.turns], answers)


@router.post("/tokenize", openapi_extra=described("/tokenize", TokenizeRequest))
async def tokenize(request: Request) -> Response:
    """Counts the tokens of a text, or of a conversation with its recordings."""
    server = server_of(request)
    asked: TokenizeRequest = await read(await request.body(), TOKENIZE)
    server.check_model(asked.model)
    tokenizer = server.processor.tokenizer
    if asked.messages is None:
        found = await asyncio.to_thread(tokenizer.encode, asked.prompt or "", add_special_tokens=False)
        ids = found.ids
    else:
        heard = await hear(asked.messages, server, request.scope["client_id"])
        options = opening(asked.messages, asked.add_generation_prompt, asked.continue_final_message)
        prepared = await asyncio.to_thread(partial(server.processor.prepare, heard.turns, **options))
        ids = prepared.ids.tolist()
    reply = {"count": len(ids), "max_model_len": server.processor.max_positions, "tokens": ids}
    if asked.return_token_strs:
        reply["token_strs"] = [tokenizer.id_to_token(token) for token in ids]
    return JSONResponse(reply)


async def unless_gone(receive: Receive, work: Coroutine[Any, Any, T]) -> T | None:
    """What some work comes to; None where the client goes before, which ends it.

    Args:
        receive: of ASGI; the request's body has been read.
        work: for the client.
    """
    doing, gone = asyncio.ensure_future(work), asyncio.ensure_future(_gone(receive))
    try:
        await asyncio.wait((doing, gone), return_when=asyncio.FIRST_COMPLETED)
        return doing.result() if doing.done() else None
    finally:
        for task in (doing, gone):
            task.cancel()
        await asyncio.gather(doing, gone, return_exceptions=True)


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def timestamps_of(text: str, pcms: Sequence[Tensor], thinking: bool) -> list[dict[str, Any]]:
    """The times that an answer states, each checked against its recordings; JSON-ready.

    Args:
        text: of the answer, with its tags.
        pcms: samples of each recording at 16 kHz.
        thinking: the text begins inside of ``<think>``.
    """
    times = stated_times(text, len(pcms[0]) / SAMPLE_RATE if len(pcms) == 1 else None, thinking=thinking)
    return [one.to_json() for one in check_times(times, text, pcms)] if times else []
