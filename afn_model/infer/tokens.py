"""A prompt as the engine schedules it: token ids, and which of them are windows of audio."""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from afn_model.audio.frames import audio_tokens


@dataclass(frozen=True)
class WindowSpan:
    """Audio tokens [start, stop) of a prompt are a window of a recording.

    Args:
        start, stop: places in the prompt.
        digest: of the window's samples, 32 bytes (``audio_stream.window_digest``).
        index: the window's number in its recording, which its rotary time embedding depends on.
    """

    start: int
    stop: int
    digest: bytes
    index: int


@dataclass
class PromptTokens:
    """Token ids of a prompt, placeholders included, and its windows in order of their places.

    ``clock`` is the rotary position of each token; None where that is its place.

    Raises:
        ValueError: a window outside of the prompt, or that begins before the one before it ends.
    """

    ids: list[int]
    windows: tuple[WindowSpan, ...] = ()
    clock: list[float] | None = None

    def __post_init__(self):
        end = 0
        for window in self.windows:
            if not end <= window.start < window.stop <= len(self.ids):
                where = f"[{window.start}, {window.stop})"
                raise ValueError(f"audio window at {where} must lie between tokens {end} and {len(self.ids)}")
            end = window.stop

    def content(self, page: int, tokens: Sequence[int]) -> bytes:
        """What keys and values of a full page depend on, beside the pages before it.

        ids ‖ (digest ‖ index ‖ start of the window − start of the page) of each window in the page: int32,
        little-endian, 40 bytes a window.

        Args:
            page: its number; pages have as many tokens as ``tokens``.
            tokens: all ids in it, those of the answer included.
        """
        first = page * len(tokens)
        parts = [struct.pack(f"<{len(tokens)}i", *tokens)]
        for window in self.windows[bisect_right(self.windows, first, key=lambda window: window.stop) :]:
            if window.start >= first + len(tokens):
                break
            parts.append(window.digest + struct.pack("<2i", window.index, window.start - first))
        return b"".join(parts)


def spans_of(
    ids: Sequence[int], clips: Sequence[Sequence[int]], audio_token_id: int, digests: Sequence[bytes]
) -> tuple[WindowSpan, ...]:
    """Where the windows of a prompt's recordings stand in it.

    Args:
        ids: token ids, placeholders included.
        clips: samples of the windows of each of its recordings, in order of appearance.
        audio_token_id: of the placeholders.
        digests: of every window of every recording, as of ``windows_of``.

    Raises:
        ValueError: another number of placeholders or of digests than the recordings have, or a window with other
            tokens inside.
    """
    places = [place for place, token in enumerate(ids) if token == audio_token_id]
    counts = [(index, audio_tokens(samples)) for clip in clips for index, samples in enumerate(clip)]
    if len(counts) != len(digests):
        raise ValueError(f"{len(digests)} digests for the {len(counts)} audio windows of the prompt's recordings")
    if len(places) != sum(tokens for _, tokens in counts):
        wanted = sum(tokens for _, tokens in counts)
        raise ValueError(f"{len(places)} audio placeholders in the prompt for {wanted} audio tokens of its recordings")
    spans, at = [], 0
    for (index, tokens), digest in zip(counts, digests, strict=True):
        start, stop = places[at], places[at + tokens - 1] + 1
        if stop - start != tokens:
            raise ValueError(f"audio window {len(spans)} has other tokens among its placeholders [{start}, {stop})")
        spans.append(WindowSpan(start, stop, digest, index))
        at += tokens
    return tuple(spans)


def prompts_of(
    ids: Sequence[int],
    lengths: Sequence[int],
    clips: Sequence[Sequence[int]],
    audio_token_id: int,
    digests: Sequence[bytes],
) -> list[PromptTokens]:
    """The prompts of a packed batch.

    Args:
        ids: of all prompts, one after another.
        lengths: tokens of each prompt.
        clips: samples of the windows of each recording, in order of appearance.
        audio_token_id: of the placeholders.
        digests: of every window of every recording.

    Raises:
        ValueError: what ``spans_of`` raises, and recordings that belong to no prompt.
    """
    prompts, at, clip, window = [], 0, 0, 0
    for length in lengths:
        own = list(ids[at : at + length])
        wanted, first, windows = own.count(audio_token_id), clip, window
        while clip < len(clips) and wanted > 0:
            wanted -= sum(map(audio_tokens, clips[clip]))
            window += len(clips[clip])
            clip += 1
        spans = spans_of(own, clips[first:clip], audio_token_id, digests[windows:window])
        prompts.append(PromptTokens(own, spans))
        at += length
    if clip < len(clips):
        tokens = sum(map(audio_tokens, (samples for windows in clips for samples in windows)))
        raise ValueError(
            f"{list(ids).count(audio_token_id)} audio placeholders in the prompt for {tokens} audio embeddings"
        )
    return prompts
