"""One realtime session: samples come in, recordings are committed, transcripts go out.

A recording is heard while it comes (``afn_model.infer.listen``): what is said after its end is the answer to the whole
of it, and costs its last window and the question.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import logging
import uuid
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from afn_model.audio.frames import MIN_SAMPLES, SAMPLE_RATE, WINDOW
from afn_model.audio.resample import RationalResampler
from afn_model.infer.engine import Engine
from afn_model.infer.listen import Listening
from afn_model.infer.request import Request
from afn_model.infer.sampling_params import SamplingParams
from afn_model.serve.errors import ApiError, as_api_error
from afn_model.serve.realtime_config import SessionConfig
from afn_model.serve.server import Server
from afn_model.serve.voice_activity import VoiceActivity

LARGEST = 4 << 20  # characters of an event, some 65 s of audio
INLINE = 32 << 10  # characters of audio that are decoded on the event loop: 0.5 s
BEHIND = 2  # windows that may wait to be computed before no more is read
ANSWERS = 4  # recordings of a session that are answered at the same time
NAME = "conversation.item.input_audio_transcription"
log = logging.getLogger("afn.serve")


class SessionOver(Exception):
    """The session ends.

    Args:
        code: of the WebSocket's close frame.
        reason: "idle" or "limit", for the counters.
        error: what the client is told before.
    """

    def __init__(self, code: int, reason: str, error: ApiError):
        super().__init__(error.message)
        self.code, self.reason, self.error = code, reason, error


class LiveItem:
    """A recording that comes.

    Its samples wait here until a window is full or somebody asks; ``heard``, ``ask`` and ``drop`` are called in the
    engine's thread.
    """

    def __init__(self, server: Server, rate: int):
        self.id = new_id("item")
        self.processor, self.longest = server.processor, server.settings.max_seconds
        self.resampler = RationalResampler(rate, SAMPLE_RATE)
        self.rate, self.came = rate, 0  # samples at that rate
        self.samples, self.told = 0, 0  # at 16 kHz, and those that the engine knows
        self.interim: asyncio.Task[None] | None = None
        self.asked_at = 0  # samples of the last interim transcript
        self.said: list[int] = []
        self._pending: list[Tensor] = []
        self._listening: Listening | None = None
        self._dropped = False

    def converted(self, pcm: np.ndarray) -> Tensor:
        """The next samples [n] int16 at the session's rate, as float32 at 16 kHz."""
        return self.resampler.push(torch.from_numpy(pcm.astype(np.float32)) * (1 / 32768))

    def add(self, pcm: Tensor, came: int = 0) -> None:
        """Takes what ``converted`` made of so many samples."""
        self.came += came
        self.samples += len(pcm)
        if len(pcm):
            self._pending.append(pcm)

    @property
    def seconds(self) -> float:
        return self.came / self.rate

    @property
    def fills(self) -> bool:
        """Whether what waits here completes a window."""
        return self.samples // WINDOW > self.told // WINDOW

    def taken(self) -> Callable[[Engine], Listening]:
        """Passes on what waits here, in the engine's thread."""
        pieces, self._pending, self.told = self._pending, [], self.samples

        def heard(engine: Engine) -> Listening:
            if self._dropped:
                raise ValueError("the recording was dropped")
            if self._listening is None:
                self._listening = Listening(engine, self.processor, max_seconds=self.longest + 1)
            if pieces:
                self._listening.push(torch.cat(pieces))
            return self._listening

        return heard

    def behind(self, engine: Engine) -> int:
        return 0 if self._listening is None else self._listening.behind

    def drop(self, engine: Engine) -> None:
        self._dropped = True
        if self._listening is not None:
            self._listening.abandon()


class RealtimeSession:
    """What clients say, and what they are told.

    Args:
        server: that answers.
        send: tells the client an event.
    """

    def __init__(self, server: Server, send: Callable[[dict[str, Any]], Awaitable[None]]):
        self.server, self.id, self._send = server, new_id("sess"), send
        self.config = SessionConfig()
        self.received = 0.0  # seconds
        self.answers: set[asyncio.Task[None]] = set()
        self._room = asyncio.Semaphore(ANSWERS)
        self._item: LiveItem | None = None
        self._previous: str | None = None
        self._begin_stream()

    def _begin_stream(self) -> None:
        """Samples are counted from here on, in the rate and with the turns that are set."""
        turns, rate = self.config.turn_detection, self.config.rate
        self._voice = None if turns is None else VoiceActivity(rate, *vars(turns).values())
        self._tail, self._tail_at = np.empty(0, dtype=np.int16), 0  # what has come and is in no recording yet
        self._before_ms = self.received * 1000

    async def created(self) -> None:
        await self.send("session.created", session=self.config.shown(self.id, self.server.settings.name))

    async def send(self, type: str, **fields: Any) -> None:
        await self._send({"type": type, "event_id": new_id("event"), **fields})

    async def error(self, error: ApiError, event_id: object = None) -> None:
        """The client is told what is wrong; the session goes on."""
        told = error.body()["error"] | {"event_id": event_id if isinstance(event_id, str) else None}
        await self.send("error", error=told)

    async def handle(self, text: str) -> None:
        """An event of the client.

        Raises:
            SessionOver: it was the last one.
        """
        event: Any = None
        try:
            if len(text) > LARGEST:
                raise ApiError(413, f"an event may have {LARGEST:,} characters, not {len(text):,}", code="too_large")
            try:
                event = json.loads(text) if len(text) <= INLINE else await asyncio.to_thread(json.loads, text)
                if "\\" in text:  # half of a surrogate pair can be written so, which is no text
                    json.dumps(event, ensure_ascii=False).encode()
            except (ValueError, RecursionError):
                event = None
                raise ApiError(400, "an event is a JSON object", code="invalid_json") from None
            if not isinstance(event, dict) or not isinstance(event.get("type"), str):
                raise ApiError(400, "an event is a JSON object with a type", param="type", code="invalid_event")
            await self._handle(event)
        except (SessionOver, asyncio.CancelledError):
            raise
        except Exception as error:
            told = as_api_error(error)
            if told.status >= 500:
                log.exception("a realtime event failed")
            await self.error(told, event.get("event_id") if isinstance(event, dict) else None)

    async def _handle(self, event: dict[str, Any]) -> None:
        kind = event["type"]
        fields = {"input_audio_buffer.append": "audio"}.get(kind, "session" if kind.endswith("session.update") else "")
        for name in event:
            if name not in ("type", "event_id", fields):
                raise ApiError(400, f"{kind:.80} has no field {name!r:.80}", param=name[:80], code="unknown_parameter")
        if kind == "input_audio_buffer.append":
            await self._append(event.get("audio"))
        elif kind == "input_audio_buffer.commit":
            await self._commit()
        elif kind == "input_audio_buffer.clear":
            self._clear()
            await self.send("input_audio_buffer.cleared")
        elif kind in ("session.update", "transcription_session.update"):
            await self._update(event.get("session"), kind)
        else:
            raise ApiError(400, f"there is no event {kind!r:.80} here", param="type", code="unknown_event")

    async def _update(self, session: object, kind: str) -> None:
        config = self.config.updated(session, self.server.settings.name)
        fresh = (config.rate, config.turn_detection) != (self.config.rate, self.config.turn_detection)
        if fresh and self._item is not None:
            what = "the format and turn_detection cannot change while a recording comes: commit or clear it first"
            raise ApiError(400, what, param="session.audio.input", code="buffer_not_empty")
        self.config = config
        if fresh:
            self._begin_stream()
        await self.send(f"{kind}d", session=config.shown(self.id, self.server.settings.name))

    # -- samples

    async def _append(self, audio: object) -> None:
        if not isinstance(audio, str):
            raise ApiError(400, "audio is base64 of 16-bit little-endian samples", param="audio", code="invalid_value")
        pcm = decoded(audio) if len(audio) <= INLINE else await asyncio.to_thread(decoded, audio)
        seconds, most = len(pcm) / self.config.rate, self.server.settings
        if self.received + seconds > most.max_file_seconds:
            what = f"a session may have {most.max_file_seconds:g} s of audio"
            raise SessionOver(1009, "limit", ApiError(413, what, param="audio", code="too_long"))
        self.received += seconds
        self.server.metrics.heard.inc(seconds)
        if self._voice is None:
            await self._hear(pcm)
        else:
            await self._turns(self._voice, pcm)

    async def _turns(self, voice: VoiceActivity, pcm: np.ndarray) -> None:
        """Samples go into the recordings of the turns that they begin and end."""
        self._tail = np.concatenate([self._tail, pcm])
        turns = voice.feed(pcm) if len(pcm) <= INLINE // 2 else await asyncio.to_thread(voice.feed, pcm)
        for what, at in turns:
            ms = round(self._before_ms + at * 1000 / self.config.rate)
            if what == "started":
                self._cut(at)
                item = self._begin_item()
                await self.send("input_audio_buffer.speech_started", item_id=item.id, audio_start_ms=ms)
            elif self._item is not None:
                await self._hear(self._cut(at))
                await self.send("input_audio_buffer.speech_stopped", item_id=self._item.id, audio_end_ms=ms)
                await self._commit(turn=True)
        if self._item is not None:
            await self._hear(self._cut(self._tail_at + len(self._tail)))
        else:
            self._cut(max(self._tail_at, self._tail_at + len(self._tail) - voice.keep))

    def _cut(self, at: int) -> np.ndarray:
        """Takes what has come up to a sample."""
        taken, self._tail = self._tail[: at - self._tail_at], self._tail[at - self._tail_at :].copy()
        self._tail_at = at
        return taken

    def _begin_item(self) -> LiveItem:
        self._item = LiveItem(self.server, self.config.rate)
        return self._item

    async def _hear(self, pcm: np.ndarray) -> None:
        """Samples of the recording that comes."""
        if not len(pcm):
            return
        item, longest = self._item or self._begin_item(), self.server.settings.max_seconds
        if item.seconds + len(pcm) / self.config.rate > longest:
            what = f"a recording may have {longest:g} s: commit it before"
            raise SessionOver(1009, "limit", ApiError(413, what, param="audio", code="too_long"))
        if len(pcm) <= INLINE // 2:
            item.add(item.converted(pcm), len(pcm))
        else:
            item.add(await asyncio.to_thread(item.converted, pcm), len(pcm))
        if item.fills:
            await self.server.thread.call(item.taken())
            while await self.server.thread.call(item.behind) > BEHIND:
                await asyncio.sleep(0.01)
        every = self.config.interim_ms * SAMPLE_RATE // 1000
        if every and item.interim is None and item.samples - item.asked_at >= every:
            item.asked_at = item.samples
            item.interim = self._start(self._say_interim(item))

    # -- recordings

    def _clear(self) -> None:
        """Forgets what has come since the last recording."""
        item, self._item = self._item, None
        if item is not None:
            if item.interim is not None:
                item.interim.cancel()
            self.server.thread.post(item.drop)
        self._leave_turn()

    def _leave_turn(self) -> None:
        end = self._tail_at + len(self._tail)
        self._cut(end)
        if self._voice is not None:
            self._voice.stop(end)

    async def _commit(self, *, turn: bool = False) -> None:
        """The recording is complete, as its turn has ended or the client says: it is an item, and is answered."""
        item = self._item
        if item is None or item.seconds * SAMPLE_RATE < MIN_SAMPLES:
            what = f"there are {0 if item is None else item.seconds:.4f} s of audio: too few for a recording"
            raise ApiError(400, what, code="input_audio_buffer_commit_empty")
        await self._room.acquire()
        item.add(item.resampler.end())
        if item.interim is not None:
            item.interim.cancel()
        before, about = self._previous, {"id": item.id, "object": "realtime.item", "type": "message"}
        await self.send("input_audio_buffer.committed", item_id=item.id, previous_item_id=before)
        about |= {"status": "completed", "role": "user", "content": [{"type": "input_audio", "transcript": None}]}
        await self.send("conversation.item.created", previous_item_id=before, item=about)
        self._item, self._previous = None, item.id
        if not turn:
            self._leave_turn()
        self._start(self._answer(item, self.config.asked())).add_done_callback(lambda _: self._room.release())

    def _start(self, work: Any) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self.answers.add(task)
        task.add_done_callback(self.answers.discard)
        return task

    async def _answer(self, item: LiveItem, question: str) -> None:
        """Transcribes an item, and tells it as it grows."""
        status, metrics, about = "dropped", self.server.metrics, {"item_id": item.id, "content_index": 0}
        try:
            with self.server.limits.admitted(item.seconds):
                stream = await self._ask(item, question, last=True)
                with metrics.request(stream, "realtime"):
                    async with stream:
                        text, tokens = "", 0
                        async for delta in stream:
                            text += delta.text
                            tokens += len(delta.without_stop(self.server.processor.stop_ids))
                            if delta.text:
                                await self.send(f"{NAME}.delta", **about, delta=delta.text)
                            delta.check()
            heard = {"audio_tokens": stream.audio_tokens, "text_tokens": stream.prompt_tokens - stream.audio_tokens}
            usage = {"type": "tokens", "input_tokens": stream.prompt_tokens, "output_tokens": tokens}
            usage |= {"total_tokens": stream.prompt_tokens + tokens, "input_token_details": heard}
            await self.send(f"{NAME}.completed", **about, transcript=text, usage=usage)
            status = "completed"
        except asyncio.CancelledError:
            raise
        except Exception as error:
            status, told = "failed", as_api_error(error)
            if told.status >= 500:
                log.exception("a realtime recording could not be answered")
            shown = told.body()["error"]
            await self.send(f"{NAME}.failed", **about, error=shown)
        finally:
            metrics.items[status].inc()
            self.server.thread.post(item.drop)

    async def _ask(self, item: LiveItem, question: str, *, last: bool = False):
        heard, longest, said = item.taken(), self.server.settings.max_new_tokens, list(item.said)
        params = SamplingParams(max_new_tokens=longest)

        def ask(engine: Engine) -> Request:
            listening = heard(engine)
            request = listening.ask(question, params, prediction=said or None)
            if last:
                listening.close()
            return request

        return await self.server.thread.submit(ask)

    async def _say_interim(self, item: LiveItem) -> None:
        """What has been said so far, which may change; what was said before is a draft of it."""
        try:
            at = item.samples
            with self.server.limits.admitted(item.seconds):
                async with await self._ask(item, self.config.asked()) as stream:
                    (whole,) = await stream.ended()
            item.said = whole.tokens[:-1]
            fields = {"item_id": item.id, "content_index": 0, "transcript": whole.text}
            await self.send(f"{NAME}.interim", **fields, audio_end_ms=at * 1000 // SAMPLE_RATE)
        except asyncio.CancelledError:
            raise
        except Exception as error:
            log.debug("no interim transcript: %s", type(error).__name__)
        finally:
            item.interim = None

    async def close(self) -> None:
        """Nothing of the session is computed any longer."""
        for task in list(self.answers):
            task.cancel()
        await asyncio.gather(*self.answers, return_exceptions=True)
        if self._item is not None:
            self.server.thread.post(self._item.drop)
            self.server.metrics.items["dropped"].inc()
            self._item = None


def decoded(audio: str) -> np.ndarray:
    """Samples [n] int16.

    Raises:
        ApiError: 400, not base64 or half a sample.
    """
    try:
        data = base64.b64decode(audio, validate=True)
    except (binascii.Error, ValueError):
        raise ApiError(400, "audio is not base64", param="audio", code="invalid_value") from None
    if len(data) % 2:
        raise ApiError(400, f"audio has {len(data)} bytes: a sample has two", param="audio", code="invalid_value")
    return np.frombuffer(data, dtype="<i2").astype(np.int16)


def new_id(kind: str) -> str:
    return f"{kind}_{uuid.uuid4().hex[:24]}"
