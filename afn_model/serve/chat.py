"""``/v1/chat/completions``: questions about recordings, and ``/tokenize``."""

from __future__ import annotations

import asyncio
import json
import logging
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import Any

from fastapi import APIRouter, Request
from pydantic import BaseModel
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from afn_model.serve.captions import read_caption_request, with_captions
from afn_model.serve.chat_audio import hear
from afn_model.serve.chat_reply import Chat
from afn_model.serve.chat_request import CHAT, TOKENIZE, ChatRequest, TokenizeRequest, opening, read, sampling
from afn_model.serve.chat_speech import ChatSpeech, recall
from afn_model.serve.chat_stream import EventStream, once
from afn_model.serve.errors import GONE, ApiError, as_api_error
from afn_model.serve.event_stream import unless_gone
from afn_model.serve.server import Server, server_of
from afn_model.serve.text_model import answer_elsewhere

router = APIRouter()
log = logging.getLogger("afn.serve")


def described(path: str, model: type[BaseModel]) -> dict[str, Any]:
    """A route's body for ``/openapi.json``: it is read by us, as a large one would hold up the event loop."""
    at = f"#/paths/{path.replace('/', '~1')}/post/requestBody/content/application~1json/schema/$defs"
    schema = model.model_json_schema(ref_template=at + "/{model}")
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def whole(reply: dict[str, Any]) -> Response:
    """A reply that is sent at once: a large one is written in a thread."""
    return Response(json.dumps(reply, ensure_ascii=False).encode(), media_type="application/json")


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
            asked = await read(b"".join([piece async for piece in self.request.stream()]), CHAT)
            status = await unless_gone(self.request, self.answer(asked, scope, receive, send))
        except ClientDisconnect:
            pass
        except ApiError as error:
            status = error.status
            if status != GONE:
                raise
        except Exception as error:
            log.exception("a chat completion failed")
            failed = as_api_error(error)
            status = failed.status
            raise failed from None
        finally:
            self.note(status)

    async def answer(self, asked: ChatRequest, scope: Scope, receive: Receive, send: Send) -> int:
        """Sends the answer; its status."""
        self.server.check_model(asked.model)
        params, prediction = sampling(asked, self.server.settings)
        start = opening(asked.messages, asked.add_generation_prompt, asked.continue_final_message)
        owner, captions = scope["client_id"], list[dict[str, Any]]()
        speech = await ChatSpeech.of(asked, params, self.server, owner)
        recall(asked.messages, self.server, owner)
        heard = await hear(asked.messages, self.server, owner)
        asked.messages.clear()  # half an hour in base64 is as large as its samples
        with ExitStack() as admitted:
            if (wanted := read_caption_request(asked.afn_caption)) is not None:
                admitted.enter_context(self.server.limits.admitted(sum(one.seconds for one in heard.recordings)))
                turns, captions = await with_captions(self.server, heard.turns, heard.mentioned, wanted, owner)
                if self.server.settings.then_url is not None:
                    found = await answer_elsewhere(self.server, asked, turns, heard.recordings, captions)
                    reply = await asyncio.to_thread(once if asked.stream else whole, found)
                    await reply(scope, receive, send)
                    return 200
                heard = replace(heard, turns=turns)
            known = wanted is not None
            about = (self.server, asked, params, prediction, start, heard, captions, self.arrived)
            chat = Chat(*about, admitted=known, speech=speech)
            self.chat = chat
            return await self.tell(chat, scope, receive, send)

    async def tell(self, chat: Chat, scope: Scope, receive: Receive, send: Send) -> int:
        """Sends the engine's answer; its status."""
        if chat.asked.stream:
            stream = EventStream(chat, send)
            await stream.run()
            return 200 if stream.error is None else stream.error.status
        reply = await asyncio.to_thread(whole, await chat.whole())
        reply.headers["x-request-id"] = chat.id
        await reply(scope, receive, send)
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

    def reply(ids: list[int]) -> Response:
        found = {"count": len(ids), "max_model_len": server.processor.max_positions, "tokens": ids}
        if asked.return_token_strs:
            found["token_strs"] = [tokenizer.id_to_token(token) for token in ids]
        return whole(found)

    if asked.messages is None:
        found = await asyncio.to_thread(tokenizer.encode, asked.prompt or "", add_special_tokens=False)
        ids = found.ids
    else:
        owner = request.scope["client_id"]
        recall(asked.messages, server, owner)
        heard = await hear(asked.messages, server, owner)
        options = opening(asked.messages, asked.add_generation_prompt, asked.continue_final_message)
        prepared = await asyncio.to_thread(partial(server.processor.prepare, heard.turns, **options))
        ids = prepared.ids.tolist()
    return await asyncio.to_thread(reply, ids)
