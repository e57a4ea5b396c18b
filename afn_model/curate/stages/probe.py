"""What a recording is: format, length, loudness, what is clipped or silent, and the digest of its samples."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from afn_model.audio.decode import TooLongError, audio_format, audio_seconds, stream_audio
from afn_model.audio.frames import MIN_SAMPLES, SAMPLE_RATE
from afn_model.audio.source import AudioSource, read_source
from afn_model.checks import number, said
from afn_model.curate import identity
from afn_model.curate.stage import Context, Dropped, Failed, Kept, Outcome, Resources, Row, Stage
from afn_model.curate.stages.fetch import digest_of
from afn_model.storage import StorageError

FRAME = SAMPLE_RATE // 10  # samples whose loudness is compared with silence
FLOOR = -120.0  # dBFS of digital silence
FULL = 32_767


@dataclass(frozen=True)
class Probe(Stage):
    """Decodes a recording once, block by block, and measures it at 16 kHz, mono.

    loudness = 10 log₁₀ mean(x²), in dB of full scale; clipped = share of samples at full scale; silence = share of
    tenths of a second whose loudness is below a bound. All are counted in integers, so that they do not depend on the
    order of summation. ``pcm_id`` is BLAKE3 of the samples as int16. A file that is damaged has failed, with what its
    reader says; so has one whose bytes are no longer those that were fetched.

    Args:
        shortest, longest: seconds; others are dropped, a longer one without decoding it where its header tells.
        quietest: dBFS of the whole recording; a quieter one is dropped as silent.
        silence: dBFS below which a tenth of a second is silent.
    """

    name: ClassVar[str] = "probe"
    reads: ClassVar[tuple[str, ...]] = ("file", "source_id")
    writes: ClassVar[tuple[str, ...]] = (
        "seconds",
        "format",
        "rate",
        "channels",
        "loudness",
        "clipped",
        "silence",
        "pcm_id",
    )
    drops: ClassVar[bool] = True
    resources: ClassVar[Resources] = Resources(batch=8, seconds=3.0)

    shortest: float = 1.0
    longest: float = 4 * 3600.0
    quietest: float = -70.0
    silence: float = -50.0

    def __post_init__(self):
        number(self.shortest, "shortest", above=0)
        number(self.longest, "longest", above=self.shortest)
        number(self.quietest, "quietest")
        number(self.silence, "silence")

    def run(self, rows: Sequence[Row], context: Context) -> list[Outcome]:
        return [self._one(row, context.out) for row in rows]

    def _one(self, row: Row, out: Path) -> Outcome:
        path = out / row["file"]
        if digest_of(path) != row["source_id"]:
            return Failed("its file is not what was fetched; fetch it again")
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            try:
                measured = self._measured(read_source(path, row["file"]))
            except StorageError:
                raise
            except ValueError as error:
                return Failed(said(error).removeprefix(f"{row['file']}: "))
        if isinstance(measured, Dropped):
            return measured
        return Kept(measured, {"recordings with a warning": 1} if warned else {})

    def _measured(self, source: AudioSource) -> dict[str, Any] | Dropped:
        kind, rate, channels = audio_format(source)
        try:
            if audio_seconds(source) > self.longest + 1:
                return Dropped("too long", "by its header")
        except ValueError:  # which does not say
            pass
        heard = SampleCounts(self.silence)
        try:
            for block in stream_audio(source, max_seconds=self.longest, dtype=torch.int16):
                heard.add(block.numpy())
        except TooLongError:
            return Dropped("too long")
        except ValueError:
            if heard.samples and heard.samples < MIN_SAMPLES:
                return Dropped("too short", f"{heard.samples} samples")
            raise
        seconds = round(heard.samples / SAMPLE_RATE, 3)
        if seconds < self.shortest:
            return Dropped("too short", f"{seconds:g} s")
        loudness = heard.loudness()
        if loudness < self.quietest:
            return Dropped("silent", f"{loudness:g} dBFS")
        return {
            "seconds": seconds,
            "format": kind,
            "rate": rate,
            "channels": channels,
            "loudness": loudness,
            "clipped": round(heard.clipped / heard.samples, 6),
            "silence": round(heard.silent / heard.frames, 4) if heard.frames else 0.0,
            "pcm_id": heard.digest.hexdigest()[: identity.DIGITS],
        }


class SampleCounts:
    """Counts of samples that come in pieces.

    Args:
        silence: dBFS below which a tenth of a second is silent.
    """

    def __init__(self, silence: float):
        import blake3  # pyright: ignore[reportMissingImports]

        self.digest = blake3.blake3()
        self.samples = self.power = self.clipped = self.frames = self.silent = 0
        self.bound = FRAME * (32_768 * 10 ** (silence / 20)) ** 2
        self.rest = np.zeros(0, np.int16)

    def add(self, pcm: np.ndarray) -> None:
        """Counts [n] int16."""
        self.digest.update(np.ascontiguousarray(pcm, "<i2").view(np.uint8).data)
        self.samples += len(pcm)
        self.clipped += int(np.count_nonzero((pcm >= FULL) | (pcm <= -FULL)))
        pcm = np.concatenate([self.rest, pcm])
        whole = len(pcm) // FRAME * FRAME
        # Squares of int16 and sums of 1,600 of them are exact in float64, in any order.
        rows = pcm[:whole].reshape(-1, FRAME).astype(np.float64)
        powers = np.einsum("nt,nt->n", rows, rows)
        self.power += int(powers.sum())
        self.frames, self.silent = self.frames + len(rows), self.silent + int((powers < self.bound).sum())
        self.rest = pcm[whole:]

    def loudness(self) -> float:
        """dBFS of all of it, to a hundredth."""
        rest = self.rest.astype(np.float64)
        power = (self.power + int(rest @ rest)) / max(1, self.samples) / 32_768**2
        return round(max(FLOOR, 10 * math.log10(power)), 2) if power else FLOOR
