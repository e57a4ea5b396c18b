"""What all routes share: the engine, its processor, recordings, limits and counters."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, nullcontext
from functools import partial
from typing import Any, TypeVar

from fastapi import Request

from afn_model.audio.digests import DecodedRecording
from afn_model.audio.frames import SAMPLE_RATE
from afn_model.audio.recording import Audio
from afn_model.infer.engine import Engine
from afn_model.infer.request import Request as InferRequest
from afn_model.infer.sampling_params import SamplingParams
from afn_model.prompt.batch import Batch
from afn_model.prompt.conversation import Turn
from afn_model.prompt.processor import AFNextProcessor
from afn_model.serve.bodies import Bodies
from afn_model.serve.caption_cache import CaptionCache
from afn_model.serve.engine_thread import AnswerStream, EngineDied, EngineThread
from afn_model.serve.errors import ApiError
from afn_model.serve.intake import Intake
from afn_model.serve.limits import Limits
from afn_model.serve.metrics import Metrics
from afn_model.serve.settings import Settings
from afn_model.serve.speaking import SpeechThread
from afn_model.serve.spoken_texts import SpokenTexts
from afn_model.serve.upload_folder import UploadFolder
from afn_model.serve.uploads import Uploads

SMALL = 2048  # characters that take less than a millisecond, whatever is done with them
T = TypeVar("T")


class Server:
    """One model behind an API.

    Args:
        engine: with its processor; the server's alone from now on.
        settings: what is allowed.
        voice: what says answers; None where nothing is said.
        fingerprint: what answers' bits depend on beside their request, for ``system_fingerprint``.
    """

    def __init__(
        self,
        engine: Engine,
        settings: Settings | None = None,
        *,
        voice: SpeechThread | None = None,
        fingerprint: str | None = None,
    ):
        if engine.processor is None:
            raise ValueError("a server needs an engine with a processor")
        self.settings = settings or Settings()
        self.processor: AFNextProcessor = engine.processor
        self.metrics = Metrics(self.settings.name, engine)
        self.thread = EngineThread(engine, on_step=self.metrics.stepped)
        self.intake = Intake(self.settings, self.processor.pcm_dtype)
        folder, most = self.settings.upload_folder, self.settings.upload_folder_bytes
        self.uploads = Uploads(self.settings.upload_bytes, None if folder is None else UploadFolder(folder, most))
        self.bodies = Bodies(self.settings)
        self.limits = Limits(self.settings, engine.scheduler.costs, rejected=self.metrics.rejected)
        self.captions = CaptionCache()
        self.voice, self.spoken = voice, SpokenTexts()
        if voice is not None:
            voice.on_gap, voice.on_end = self.metrics.speech_gap, self.metrics.speech_ended
            self.metrics.speaking.set_function(lambda: len(voice.streams))
        self.fingerprint, self.started = fingerprint, int(time.time())

    async def start(self) -> None:
        await self.intake.start()
        self.thread.start()
        if self.voice is not None:
            self.voice.start()

    def stop_threads(self) -> None:
        """Ends the engine and the voice; what is answered ends with an error."""
        self.thread.stop()
        if self.voice is not None:
            self.voice.stop()

    async def stop(self) -> None:
        await asyncio.to_thread(self.stop_threads)
        await self.intake.stop()
        offload = self.thread.engine.offload
        if offload is not None and not self.thread.alive:
            await asyncio.to_thread(offload.close)

    def client_of(self, headers) -> str:
        """Who sends a request: a digest of its key, "" where no key is asked for.

        Raises:
            ApiError: 401, no key or another one.
        """
        if not self.settings.keys:
            return ""
        given = headers.get("authorization", "").removeprefix("Bearer ").encode("latin-1")
        right = [hmac.compare_digest(given, key.encode()) for key in self.settings.keys]  # each, whatever is found
        if not any(right):
            raise ApiError(401, "this server asks for a key: Authorization: Bearer KEY", code="invalid_api_key")
        return hashlib.sha256(given).hexdigest()[:32]

    def check_model(self, name: str | None) -> None:
        """Raises:
        ApiError: 404, no such model.
        """
        if name not in (None, "", self.settings.name):
            what = f"there is no model {name!r:.80} here; there is {self.settings.name!r}"
            raise ApiError(404, what, param="model", code="model_not_found")

    @asynccontextmanager
    async def ask(
        self,
        turns: Sequence[Turn],
        params: SamplingParams,
        *,
        prediction: str = "",
        priority: int = 0,
        endpoint: str = "chat",
        admitted: bool = False,
        **prompt: bool | None,
    ) -> AsyncIterator[AnswerStream]:
        """The answers to a conversation; those that have not ended when the block is left are aborted.

            async with server.ask(turns, params) as stream:
                async for delta in stream:
                    ...

        Args:
            turns: up to where the answer begins; their recordings are decoded (``Recording.audio``).
            params: how it is answered.
            prediction: text that the answers are expected to be.
            priority: those with a higher one go first.
            endpoint: what asks, for the counters.
            admitted: it is a part of a request that was admitted: it waits for no place.
            prompt: ``add_generation_prompt`` and ``continue_final_message`` of ``AFNextProcessor.prepare``.

        Raises:
            ApiError: 400 a conversation that cannot be answered, 429 too many are, 503 the engine has died.
        """
        seconds = sum(map(seconds_of, (audio for turn in turns for audio in turn.audios)))
        with nullcontext() if admitted else self.limits.admitted(seconds):
            if not self.thread.alive:
                raise EngineDied
            size = SMALL + 1 if seconds else len(prediction) + sum(len(turn.text) for turn in turns)
            batch, draft = await aside(partial(self._pack, list(turns), prompt, prediction), size)
            options = {"keys": [0], "priority": priority, "prediction": draft}
            stream = await self.thread.submit(partial(_add, batch=batch, params=params, **options))
            del batch  # samples of several recordings are a copy
            with self.metrics.request(stream, endpoint):
                async with stream:
                    yield stream

    def _pack(self, turns: list[Turn], prompt: dict[str, Any], prediction: str) -> tuple[Batch, list[int] | None]:
        """The prompt, and the tokens of what is expected."""
        prepared, context = self.processor.prepare(turns, **prompt), self.processor.max_positions
        if context is not None and len(prepared.ids) >= context:
            what = f"{len(prepared.ids)} tokens leave no room for an answer in the model's context of {context}"
            raise ApiError(400, what, param="messages", code="context_length_exceeded")
        draft = self.processor.tokenizer.encode(prediction, add_special_tokens=False).ids if prediction else None
        return self.processor.pack([prepared], ragged=True), draft


def _add(engine: Engine, batch: Batch, params: SamplingParams, **options: Any) -> InferRequest:
    return engine.add(batch, params, **options)[0]


def seconds_of(audio: Audio) -> float:
    """Of a decoded recording."""
    source = audio.source
    return len(source.pcm if isinstance(source, DecodedRecording) else source) / SAMPLE_RATE


async def aside(work: Callable[[], T], size: int) -> T:
    """Does something in another thread, or here where it is small: another thread costs half a millisecond."""
    return work() if size <= SMALL else await asyncio.to_thread(work)


def server_of(request: Request) -> Server:
    """The server of a request's application."""
    return request.app.state.server
