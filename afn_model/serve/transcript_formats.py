"""Transcripts as OpenAI's API writes them: json, text, srt, vtt, verbose_json and diarized_json."""

from __future__ import annotations

import zlib
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from afn_model.audio.frames import HOP, SAMPLE_RATE
from afn_model.infer.subtitles import to_srt, to_vtt
from afn_model.infer.text_stream import TextStream
from afn_model.infer.timestamps import Segment
from afn_model.infer.token_logprobs import writer
from afn_model.infer.transcripts import estimated, placed, speaker_in, timed
from afn_model.prompt.processor import AFNextProcessor
from afn_model.scoring.text import answer_in

SILENT = 1e-6  # mean power of a frame, of full scale: -60 dB


@dataclass(frozen=True)
class Spoken:
    """The answer about a piece of a recording.

    Args:
        start, end: seconds.
        text: as the model says it.
        tokens, logprobs: of the text; no log-probabilities where nobody asks for them.
        finish: why it ended.
        prompt_tokens, audio_tokens, cached_tokens: of the prompt.
    """

    start: float
    end: float
    text: str
    tokens: list[int]
    logprobs: list[float]
    finish: str
    prompt_tokens: int
    audio_tokens: int
    cached_tokens: int = 0

    @property
    def shown(self) -> str:
        """The transcript: without thinking, times in it count from the beginning of the recording."""
        return placed(answer_in(self.text), self.start, self.end)

    def segments(self, *, turns: bool = False) -> tuple[list[Segment], str]:
        """Segments with the model's times, or estimated ones, and what ``read_times`` says of the model's."""
        found = timed(self.text, self.start, self.end)
        if found.status == "model":
            return found.segments, found.status
        return estimated(self.text, self.start, self.end, turns=turns), found.status


@dataclass(frozen=True)
class Transcript:
    """What was heard in a recording.

    Args:
        task: "transcribe" or "translate".
        language: its English name in lower case, or "unknown".
        temperature: that it was drawn with.
        pcm: [n] samples at 16 kHz.
        pieces: of it, in order.
        processor: of the model.
    """

    task: str
    language: str
    temperature: float
    pcm: Tensor
    pieces: Sequence[Spoken]
    processor: AFNextProcessor

    @property
    def duration(self) -> float:
        return len(self.pcm) / SAMPLE_RATE

    @property
    def text(self) -> str:
        return "\n".join(filter(None, (piece.shown for piece in self.pieces)))

    @property
    def times(self) -> str:
        """ "model", "estimated", or both where pieces differ."""
        return ", ".join(dict.fromkeys(_times(piece.segments()[1]) for piece in self.pieces))

    def clipped(self, seconds: float) -> float:
        """In whole milliseconds, within the recording."""
        return min(round(seconds, 3), self.duration)


def usage_of(pieces: Sequence[Spoken]) -> dict[str, Any]:
    """Tokens of all pieces, as ``usage`` of OpenAI's transcriptions."""
    prompt, audio = sum(piece.prompt_tokens for piece in pieces), sum(piece.audio_tokens for piece in pieces)
    output = sum(len(piece.tokens) for piece in pieces)
    return {
        "type": "tokens",
        "input_tokens": prompt,
        "output_tokens": output,
        "total_tokens": prompt + output,
        "input_token_details": {"audio_tokens": audio, "text_tokens": prompt - audio},
    }


def logprobs_of(processor: AFNextProcessor, tokens: Sequence[int], logprobs: Sequence[float]) -> list[dict[str, Any]]:
    """Tokens with their bytes and log-probabilities."""
    written = writer(processor.tokenizer)
    return [written.entry(token, logprob) for token, logprob in zip(tokens, logprobs, strict=True)]


def to_json(said: Transcript, *, logprobs: bool = False) -> dict[str, Any]:
    """``response_format`` json."""
    row: dict[str, Any] = {"text": said.text}
    if logprobs:
        row["logprobs"] = [one for p in said.pieces for one in logprobs_of(said.processor, p.tokens, p.logprobs)]
    return row | {"usage": usage_of(said.pieces), "afn": {"pieces": pieces_of(said)}}


def to_verbose_json(said: Transcript) -> dict[str, Any]:
    """``response_format`` verbose_json; the times of the text are in its segments alone."""
    rows, texts = list[dict[str, Any]](), list[str]()
    for piece in said.pieces:
        segments, status = piece.segments()
        places = token_places(piece.tokens, said.processor)
        texts.append(" ".join(one.text for one in segments) if status == "model" else piece.shown)
        rows += [_verbose(said, piece, one, places, len(rows) + number) for number, one in enumerate(segments)]
    return {
        "task": said.task,
        "language": said.language,
        "duration": said.duration,
        "text": "\n".join(filter(None, texts)),
        "segments": rows,
        "usage": {"type": "duration", "seconds": said.duration},
        "afn": {"times": said.times, "pieces": pieces_of(said), "usage": usage_of(said.pieces)},
    }


def to_diarized_json(said: Transcript) -> dict[str, Any]:
    """``response_format`` diarized_json."""
    rows = [row for piece in said.pieces for row in speaker_rows(said, piece)]
    for number, row in enumerate(rows):
        row["id"] = f"seg_{number}"
    return {
        "task": said.task,
        "duration": said.duration,
        "text": "\n".join(f"{row['speaker']}: {row['text']}" for row in rows),
        "segments": rows,
        "usage": usage_of(said.pieces),
        "afn": {"times": said.times, "pieces": pieces_of(said)},
    }


def speaker_rows(said: Transcript, piece: Spoken) -> list[dict[str, Any]]:
    """What each speaker says in a piece, one after the other; who is not named is who spoke before, at first A."""
    rows, speaker = [], 1
    for one in piece.segments(turns=True)[0]:
        number, text = speaker_in(one.text)
        speaker = speaker if number is None else number
        if text:
            row = {"type": "transcript.text.segment", "id": "", "speaker": letter(speaker), "text": text}
            rows.append(row | {"start": said.clipped(one.start), "end": said.clipped(one.end)})
    return rows


def letter(speaker: int) -> str:
    """A, B, ... as OpenAI calls speakers, from 1 on; those behind the alphabet keep their number."""
    return chr(ord("A") + speaker - 1) if 1 <= speaker <= 26 else f"Speaker {speaker}"


def subtitles(said: Transcript, form: str) -> str:
    """``response_format`` srt or vtt; a VTT file says where its times are estimated."""
    segments = [
        Segment(said.clipped(one.start), said.clipped(one.end), one.text)
        for piece in said.pieces
        for one in piece.segments()[0]
    ]
    if form == "srt":
        return to_srt(segments)
    return to_vtt(segments, "" if said.times == "model" else f"times: {said.times}")


def pieces_of(said: Transcript) -> list[dict[str, Any]]:
    """What became of each piece: whose times it has, what is wrong with the model's, and why its answer ended."""
    rows = []
    for piece in said.pieces:
        status = piece.segments()[1]
        row = {"start": piece.start, "end": piece.end, "times": _times(status)}
        row |= {} if status == "model" else {"model_times": status}
        rows.append(row | {"finish_reason": piece.finish, "cached_tokens": piece.cached_tokens})
    return rows


def token_places(tokens: Sequence[int], processor: AFNextProcessor) -> list[int]:
    """Where in the text of an answer each of its tokens begins."""
    places, length = [], 0

    def write(piece: str) -> None:
        nonlocal length
        length += len(piece)

    stream = TextStream(processor.decode, write)
    for token in tokens:
        places.append(length)
        stream(token)
    return places


def silent_share(pcm: Tensor, start: float, end: float) -> float:
    """The share of the frames of 10 ms from ``start`` to ``end`` seconds whose mean power is below -60 dB of full
    scale; 0 where there is no whole one."""
    part = pcm[round(start * SAMPLE_RATE) : round(end * SAMPLE_RATE)]
    frames = part[: len(part) // HOP * HOP].view(-1, HOP).float()
    if not len(frames):
        return 0.0
    full = 1.0 if pcm.dtype.is_floating_point else float(torch.iinfo(pcm.dtype).max + 1)
    return float(((frames / full).square().mean(1) < SILENT).float().mean())


def compression_ratio(text: str) -> float:
    """Bytes of a text over those that zlib makes of it, as Whisper measures repetition."""
    raw = text.encode()
    return len(raw) / len(zlib.compress(raw))


def _verbose(said: Transcript, piece: Spoken, one: Segment, places: list[int], number: int) -> dict[str, Any]:
    inside = slice(*(bisect_left(places, bound) for bound in one.span))
    logprobs = piece.logprobs[inside]
    return {
        "id": number,
        "seek": round(piece.start * SAMPLE_RATE / HOP),
        "start": said.clipped(one.start),
        "end": said.clipped(one.end),
        "text": one.text,
        "tokens": piece.tokens[inside],
        "temperature": said.temperature,
        "avg_logprob": sum(logprobs) / len(logprobs) if logprobs else 0.0,
        "compression_ratio": compression_ratio(one.text),
        "no_speech_prob": silent_share(said.pcm, one.start, one.end),
    }


def _times(status: str) -> str:
    return "model" if status == "model" else "estimated"
