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
        digest: of the window's samples, 32 bytes (``audio.digests.window_digest``).
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

    def contents(self, pages: int, size: int) -> list[bytes]:
        """``content`` of the first pages, which have no token of an answer; all at once.

        Args:
            pages: how many.
            size: tokens of a page.
        """
        packed = struct.pack(f"<{pages * size}i", *self.ids[: pages * size])
        found = [packed[at : at + 4 * size] for at in range(0, len(packed), 4 * size)]
        for window in self.windows:
            for page in range(window.start // size, min(pages, -(-window.stop // size))):
                found[page] += window.digest + struct.pack("<2i", window.index, window.start - page * size)
        return found


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
    counts = [(index, audio_tokens(samples)) for clip in clips for index, samples in enumerate(clip)]
    if len(counts) != len(digests):
        raise ValueError(f"{len(digests)} digests for the {len(counts)} audio windows of the prompt's recordings")
    wanted, there = sum(tokens for _, tokens in counts), ids.count(audio_token_id)
    if there != wanted:
        raise ValueError(f"{there} audio placeholders in the prompt for {wanted} audio tokens of its recordings")
    spans, stop = [], 0
    for (index, tokens), digest in zip(counts, digests, strict=True):
        start = ids.index(audio_token_id, stop)
        stop = start + tokens
        if ids[start:stop].count(audio_token_id) != tokens:
            last = [place for place, token in enumerate(ids) if place >= start and token == audio_token_id][tokens - 1]
            raise ValueError(f"audio window {len(spans)} has other tokens among its placeholders [{start}, {last + 1})")
        spans.append(WindowSpan(start, stop, digest, index))
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
