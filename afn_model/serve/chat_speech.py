"""Answers to chats in sound: whose voice, what is said of an answer, and what was said before."""

from __future__ import annotations

import asyncio
import base64
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from afn_model.audio.encode import HEADER, MADE, SoundEncoder, wav_header
from afn_model.audio.frames import SAMPLE_RATE
from afn_model.infer.sampling_params import SamplingParams
from afn_model.serve.chat_audio import heard_at
from afn_model.serve.chat_request import ChatRequest, ContentPart, Message, VoiceClip
from afn_model.serve.engine_thread import AnswerStream, Delta
from afn_model.serve.errors import ApiError
from afn_model.serve.server import Server
from afn_model.serve.speaking import DEFAULT, SaidStream, SpeechThread

if TYPE_CHECKING:
    from afn_model.speech.speaker import SpeakerPrompt

CLIP = 60  # seconds of a recording that may be half an hour: a speaker is heard in fewer


def recall(messages: Sequence[Message], server: Server, owner: str) -> None:
    """Puts the text of answers that were spoken in the place of their sound.

    Raises:
        ApiError: 404, an answer that is not known any more.
    """
    for index, message in enumerate(messages):
        if message.audio is None or any(part.text for part in message.content):
            continue
        text = message.audio.transcript
        text = server.spoken.get(owner, message.audio.id) if text is None else text
        if text is None:
            where = f"messages[{index}].audio"
            what = f"{where}: no answer {message.audio.id!r:.80} is known any more; send its text as content"
            raise ApiError(404, what, param=where, code="audio_not_found")
        message.content = [ContentPart(type="text", text=text)]


def voice_of(server: Server, param: str) -> SpeechThread:
    """Raises:
    ApiError: 400, the server has no voice.
    """
    if server.voice is None:
        what = f"{param}: this server has no voice; afn serve --voice DIR gives it one"
        raise ApiError(400, what, param=param, code="no_voice")
    return server.voice


async def speaker_of(server: Server, voice: str | VoiceClip, owner: str, param: str) -> SpeakerPrompt | None:
    """Who speaks; None is the default voice.

    Raises:
        ApiError: 400 an unknown voice, a recording that is silent or too short, or without consent.
    """
    speech = voice_of(server, param)
    if isinstance(voice, str):
        if voice != DEFAULT:
            what = f"{param}: there is no voice {voice!r:.80} here; there is {DEFAULT!r}, and that of a recording: "
            raise ApiError(400, f'{what}{{"audio": ..., "consent": "who, when"}}', param=param, code="unknown_voice")
        return None
    if not voice.consent.strip():
        what = f"{param}.consent: who has agreed that this voice is used, and when, is expected"
        raise ApiError(400, what, param=f"{param}.consent", code="no_consent")
    recording = await heard_at(voice.audio, server, owner, f"{param}.audio")
    try:
        return await speech.speaker(_floats(recording.pcm[: CLIP * SAMPLE_RATE]), SAMPLE_RATE, voice.consent)
    except ValueError as error:
        raise ApiError(400, f"{param}.audio: {error}", param=f"{param}.audio") from None


def _floats(pcm: Tensor) -> Tensor:
    return pcm.float() / 32768 if pcm.dtype == torch.int16 else pcm.float()


def encoder(form: str, rate: int, param: str) -> SoundEncoder:
    """Raises:
    ApiError: 400, a format that is not written here.
    """
    try:
        return SoundEncoder("pcm" if form == "pcm16" else form, rate)
    except ValueError as error:
        raise ApiError(400, f"{param}: {error}", param=param) from None


async def sounds(said: SaidStream, to: SoundEncoder) -> AsyncIterator[bytes]:
    """What is said, in the bytes of a file. What libraries encode is encoded in a thread."""
    apart = to.form in MADE
    async for pcm in said:
        data = await asyncio.to_thread(to.push, pcm) if apart else to.push(pcm)
        if data:
            yield data
    data = to.finish()
    if data:
        yield data


class ChatSpeech:
    """The sound of one answer to a chat.

    Args:
        voice: that speaks.
        speaker: in whose voice.
        to: the format.
        keep: keeps the answer's text for later turns, by its id; until when.
    """

    def __init__(
        self, voice: SpeechThread, speaker: SpeakerPrompt | None, to: SoundEncoder, keep: Callable[[str, str], int]
    ):
        self.voice, self.speaker, self.to, self.keep = voice, speaker, to, keep
        self.id, self.asked = f"audio_{uuid.uuid4().hex}", voice.engine.clock()
        self.stop_ids: frozenset[int] = frozenset()
        self.said: SaidStream | None = None

    @staticmethod
    async def of(asked: ChatRequest, params: SamplingParams, server: Server, owner: str) -> ChatSpeech | None:
        """What a request asks for; None where it asks for no sound.

        Raises:
            ApiError: 400, fields that do not go together, or as of ``speaker_of``.
        """
        wanted = "audio" in (asked.modalities or ())
        if not wanted:
            if asked.audio is not None:
                raise ApiError(400, 'audio: modalities has no "audio"', param="audio")
            return None
        voice = voice_of(server, "modalities")
        if asked.audio is None:
            raise ApiError(400, 'audio: with "audio" among the modalities, {voice, format} is expected', param="audio")
        for name, given in (("n", params.n > 1), ("stop", params.stop_strings), ("afn_caption", asked.afn_caption)):
            if given:
                raise ApiError(400, f"{name}: not with an answer in sound", param=name)
        to = encoder(asked.audio.format, voice.rate, "audio.format")
        speaker = await speaker_of(server, asked.audio.voice, owner, "audio.voice")
        return ChatSpeech(voice, speaker, to, lambda id, text: server.spoken.keep(owner, id, text))

    @asynccontextmanager
    async def open(self, stream: AnswerStream) -> AsyncIterator[None]:
        """Says an answer while it grows; what is left when the block ends is not said."""
        request = stream.request
        self.stop_ids = frozenset(request.params.stop_token_ids or ())
        async with self.voice.open(self.speaker, thinking=request.thinking, asked=self.asked) as self.said:
            yield

    def take(self, delta: Delta) -> None:
        """What the answer has grown by."""
        assert self.said is not None, "the answer is not open"
        self.said.say(delta.without_stop(self.stop_ids))
        if delta.reason is not None:
            self.said.end()

    async def pieces(self) -> AsyncIterator[str]:
        """Its sound as it is made, in base64: decoded, all of them together are the file."""
        assert self.said is not None, "the answer is not open"
        async for data in sounds(self.said, self.to):
            yield base64.b64encode(data).decode()

    async def whole(self, text: str) -> dict[str, Any]:
        """``message.audio`` of an answer whose text is this."""
        assert self.said is not None, "the answer is not open"
        data = b"".join([data async for data in sounds(self.said, self.to)])
        if self.to.form == "wav":  # whose length is known by now
            data = wav_header(self.to.rate, len(data) - HEADER) + data[HEADER:]
        data = base64.b64encode(data).decode()
        return {"id": self.id, "data": data, "transcript": text, "expires_at": self.keep(self.id, text)}

    def times(self) -> dict[str, Any]:
        """``afn.speech``."""
        return {} if self.said is None else {"speech": self.said.answer.times.as_json()}
