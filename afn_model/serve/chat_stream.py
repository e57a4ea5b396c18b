"""Answers sent while they grow: server-sent events, as OpenAI's API has them."""

from __future__ import annotations

import asyncio
import json
import logging
from json.encoder import encode_basestring_ascii as quoted
from typing import Any

from starlette.responses import Response
from starlette.types import Send

from afn_model.serve.chat_reply import Chat, Choice
from afn_model.serve.chat_speech import ChatSpeech
from afn_model.serve.engine_thread import AnswerStream
from afn_model.serve.errors import ApiError, as_api_error
from afn_model.serve.event_stream import SILENCE, line

HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]
log = logging.getLogger("afn.serve")


def once(reply: dict[str, Any]) -> Response:
    """A whole ``chat.completion`` as the stream of one chunk for each choice."""
    head = {name: reply.get(name) for name in ("id", "created", "model", "system_fingerprint")}
    head["object"] = "chat.completion.chunk"
    chunks = [
        head
        | {
            "choices": [
                {
                    "index": choice.get("index", 0),
                    "delta": choice.get("message"),
                    "logprobs": choice.get("logprobs"),
                    "finish_reason": choice.get("finish_reason"),
                }
            ],
            "usage": None,
            "afn": reply.get("afn"),
        }
        for choice in reply.get("choices", ())
    ]
    chunks.append(head | {"choices": [], "usage": reply.get("usage")})
    body = "".join(map(line, chunks)) + "data: [DONE]\n\n"
    return Response(body.encode(), headers={name.decode(): value.decode() for name, value in HEADERS})


class EventStream:
    """Sends the answers of one request.

    Args:
        chat: what is answered.
        send: of ASGI.
    """

    def __init__(self, chat: Chat, send: Send):
        self.chat, self._send = chat, send
        asked = chat.asked.stream_options
        self.counts = asked is not None and asked.include_usage
        self.error: ApiError | None = None
        self.told = 0.0
        head = {"id": chat.id, "object": "chat.completion.chunk", "created": chat.created}
        head |= {"model": chat.server.settings.name, "system_fingerprint": chat.server.fingerprint}
        self.head = f"data: {json.dumps(head)[:-1]}"
        self.usage = ', "usage": null' if self.counts else ""

    async def run(self) -> None:
        """Sends all of it. An answer that cannot be completed ends it with an error, and without ``[DONE]``.

        Raises:
            ApiError: the request cannot be answered; nothing has been sent.
        """
        async with self.chat.answers() as stream:
            headers = [*HEADERS, (b"x-request-id", self.chat.id.encode())]
            await self._send({"type": "http.response.start", "status": 200, "headers": headers})
            alive = asyncio.create_task(self._keep_alive())
            try:
                await self._events(stream)
            except Exception as error:
                if not isinstance(error, ApiError):
                    log.exception("%s failed", self.chat.id)
                self.error = as_api_error(error)
                await self._tell(line(self.error.body()))
            finally:
                alive.cancel()
                await asyncio.gather(alive, return_exceptions=True)
            await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _events(self, stream: AnswerStream) -> None:
        pens = [_Pen(self, choice) for choice in self.chat.choices]
        speaking = None if self.chat.speech is None else asyncio.create_task(self._sound(pens[0], self.chat.speech))
        try:
            await self._grow(stream, pens, speaking)
        finally:
            if speaking is not None:
                speaking.cancel()
                await asyncio.gather(speaking, return_exceptions=True)
        usage = self.chat.count(stream)
        if self.counts:
            await self._tell(f'{self.head}, "choices": [], "usage": {json.dumps(usage)}}}\n\n')
        await self._tell("data: [DONE]\n\n")

    async def _sound(self, pen: _Pen, speech: ChatSpeech) -> None:
        """Sends an answer's sound beside its text."""
        async for piece in speech.pieces():
            await self._tell(pen.sounded(data=piece))

    async def _grow(self, stream: AnswerStream, pens: list[_Pen], speaking: asyncio.Task[None] | None) -> None:
        speech = self.chat.speech
        async for delta in stream:
            pen = pens[delta.sample]
            choice = pen.choice
            thought, said, logprobs = choice.take(delta)
            if speech is not None:
                speech.take(delta)
            if speaking is not None and speaking.done():
                speaking.result()
            if delta.reason is not None:
                more = choice.close()
                thought, said = thought + more[0], said + more[1]
            event = pen.grown(thought, said, logprobs)
            if delta.reason is not None:
                if event:
                    await self._tell(event)
                await choice.look_for_times()
                if speaking is not None and speech is not None:
                    await speaking
                    await self._tell(pen.sounded(expires_at=speech.keep(speech.id, choice.parts.said)))
                event = pen.ended()
            if event:
                await self._tell(event)

    async def _tell(self, event: str) -> None:
        self.told = asyncio.get_running_loop().time()
        await self._send({"type": "http.response.body", "body": event.encode(), "more_body": True})

    async def _keep_alive(self) -> None:
        loop = asyncio.get_running_loop()
        self.told = loop.time()
        while True:
            await asyncio.sleep(self.told + SILENCE - loop.time())
            if loop.time() - self.told >= SILENCE:
                await self._tell(": still here\n\n")


class _Pen:
    """Writes the chunks of one choice; what all of them have in common is written once."""

    def __init__(self, stream: EventStream, choice: Choice):
        self.stream, self.choice = stream, choice
        self.before = f'{stream.head}, "choices": [{{"index": {choice.index}, "delta": '
        self.after = f', "logprobs": null, "finish_reason": null}}]{stream.usage}}}\n\n'
        self.begun = False

    def grown(self, thought: str, said: str, logprobs: list[dict[str, Any]]) -> str:
        """The chunks of what an answer has grown by; the first one says whose it is."""
        event = (
            "" if self.begun else f'{self.before}{{"role": "assistant", "content": "", "refusal": null}}{self.after}'
        )
        self.begun = True
        if not (thought or said or logprobs):
            return event
        delta = []
        if thought:
            text = quoted(thought)
            delta.append(f'"reasoning": {text}, "reasoning_content": {text}')
        speech = self.stream.chat.speech
        if said and speech is not None:
            delta.append(f'"audio": {{"id": "{speech.id}", "transcript": {quoted(said)}}}')
        elif said or not thought:
            delta.append(f'"content": {quoted(said)}')
        after = self.after
        if logprobs:
            content = json.dumps({"content": logprobs, "refusal": None})
            after = f', "logprobs": {content}, "finish_reason": null}}]{self.stream.usage}}}\n\n'
        return f"{event}{self.before}{{{', '.join(delta)}}}{after}"

    def sounded(self, **fields: Any) -> str:
        """A chunk of the answer's sound."""
        speech = self.stream.chat.speech
        assert speech is not None, "there is no sound"
        return f'{self.before}{{"audio": {json.dumps({"id": speech.id} | fields)}}}{self.after}'

    def ended(self) -> str:
        """The last chunk."""
        choice = self.choice
        reason = f'"finish_reason": {json.dumps(choice.finish)}, "afn": {json.dumps({"finish_reason": choice.reason})}'
        extra = json.dumps(choice.extra())
        return f'{self.before}{{}}, "logprobs": null, {reason}}}]{self.stream.usage}, "afn": {extra}}}\n\n'
