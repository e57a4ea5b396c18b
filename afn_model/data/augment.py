"""Noise and rooms for recordings that are trained on, drawn anew every time that a record comes.

What is drawn is a function of seed, dataset, record and visit: neither workers nor ranks nor a restart change it.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from afn_model.audio.frames import MIN_SAMPLES, SAMPLE_RATE
from afn_model.audio.recording import Audio, load
from afn_model.checks import is_number, number, shown
from afn_model.data.index import Corpus
from afn_model.data.records import audios_of, parse_sample
from afn_model.data.speed import at_speed
from afn_model.hashing import key
from afn_model.storage import NoAnswerError

MADE = ("white", "pink")  # noises that need no recordings
_LOUDEST = 32767 / 32768  # of int16, where 1 is full scale


@dataclass(frozen=True)
class NoiseSettings:
    """Noise that is mixed in.

    Args:
        data: white, pink, or the name of a dataset, of whose recordings a stretch is taken.
        snr: dB, lowest and highest; see ``mixed``.
        share: of the recordings that get noise.
    """

    data: str
    snr: Sequence[float] = (5.0, 20.0)
    share: float = 0.5

    def __post_init__(self):
        object.__setattr__(self, "snr", _span(self.snr, "snr", -40.0, 100.0))
        _check_share(self.share)


@dataclass(frozen=True)
class RoomSettings:
    """Rooms that recordings are played in; see ``room_response``.

    Args:
        t60: seconds in which the sound of a room decays by 60 dB, shortest and longest.
        direct: dB by which the direct sound has more energy than all reflections, lowest and highest.
        share: of the recordings that get a room.
    """

    t60: Sequence[float] = (0.1, 0.6)
    direct: Sequence[float] = (0.0, 10.0)
    share: float = 0.3

    def __post_init__(self):
        object.__setattr__(self, "t60", _span(self.t60, "t60", 0.02, 5.0))
        object.__setattr__(self, "direct", _span(self.direct, "direct", -20.0, 60.0))
        _check_share(self.share)


@dataclass(frozen=True)
class Augmentation:
    """Noise and rooms of a stage, and where the recordings of noise are (None where noise is made)."""

    noise: NoiseSettings | None = None
    rooms: RoomSettings | None = None
    file: str | Path | None = None

    def corpus(self) -> Corpus | None:
        """The recordings of noise.

        Raises:
            ValueError: they are not there or not indexed, or have no durations.
        """
        if self.file is None:
            return None
        corpus = Corpus(self.file)
        if without := corpus.facts.unmeasured:
            told = f"{without:,} recordings of noise have no duration; `afn data index --measure` finds it"
            raise ValueError(f"{corpus.path}: {told}")
        return corpus


class Augmenter:
    """Rooms first and then noise, of the same settings for all recordings.

    Args:
        settings: what to draw.
        corpus: the settings' ``corpus()``.
    """

    def __init__(self, settings: Augmentation, corpus: Corpus | None):
        self.noise, self.rooms, self.corpus = settings.noise, settings.rooms, corpus

    def __call__(self, pcm: Tensor, seed: int) -> Tensor:
        """A recording [n] float32 in a room and in noise, or without either, as a seed of 64 bits draws it: [n].

        Raises:
            ValueError: a recording of noise that cannot be used, with its name.
        """
        generator = torch.Generator().manual_seed(seed >> 1)
        roomy, t60, direct, noisy, snr, record, place = torch.rand(7, generator=generator).tolist()
        if self.rooms is not None and roomy < self.rooms.share:
            response = room_response(_between(self.rooms.t60, t60), _between(self.rooms.direct, direct), generator)
            pcm = convolved(pcm, response)
        if self.noise is not None and noisy < self.noise.share:
            noise = self._stretch(len(pcm), record, place, generator)
            pcm = mixed(pcm, noise, _between(self.noise.snr, snr))
        return pcm

    def _stretch(self, samples: int, record: float, place: float, generator: torch.Generator) -> Tensor:
        """Samples of noise: record and place in it are drawn from [0, 1); a short recording is looped."""
        if self.corpus is None:
            assert self.noise is not None
            return made_noise(self.noise.data, samples, generator)
        number, wanted = int(record * len(self.corpus)), samples / SAMPLE_RATE
        try:
            audios = audios_of(parse_sample(self.corpus[number], self.corpus.folder))
            if not audios:
                raise ValueError("there is no recording in it")
            seconds = self.corpus.seconds(number) if len(set(audios)) == 1 else 0.0
            start = (audios[0].start or 0.0) + place * max(0.0, seconds - wanted)
            with warnings.catch_warnings():  # of what is cut, which here is meant
                warnings.simplefilter("ignore")
                found = load(replace(audios[0], start=start), max_seconds=max(wanted, MIN_SAMPLES / SAMPLE_RATE))
        except NoAnswerError:
            raise
        except ValueError as error:
            raise ValueError(f"noise, record {number}: {error}") from None
        return found.repeat(-(-samples // len(found)))[:samples]


class AugmentedLoad:
    """Stands in for ``load`` of the recordings of one sample: at a speed, and augmented.

    Args:
        speed: at which they are played; ``max_seconds`` is after that.
        augmenter: of the stage, if any.
        seed: of the sample; each of its recordings has a draw of its own.
    """

    def __init__(self, speed: float = 1.0, augmenter: Augmenter | None = None, seed: int = 0):
        self.speed, self.augmenter, self.seed, self.count = speed, augmenter, seed, 0

    def __call__(self, audio: Audio, *, strict: bool, max_seconds: float, dtype: torch.dtype) -> Tensor:
        """What ``load`` returns, changed. int16 samples that would clip are all made quieter until none does.

        Raises:
            ValueError: as of ``load`` and ``Augmenter``; too short at this speed.
        """
        pcm = at_speed(load(audio, strict=strict, max_seconds=max_seconds * self.speed), self.speed)
        pcm = pcm[: round(max_seconds * SAMPLE_RATE)]
        if len(pcm) < MIN_SAMPLES:
            raise ValueError(f"{len(pcm) / SAMPLE_RATE:.4f} s is too short at speed {self.speed:g}")
        if self.augmenter is not None:
            pcm = self.augmenter(pcm, key(self.seed, self.count))
        self.count += 1
        if dtype != torch.int16:
            return pcm
        peak = float(pcm.abs().max())
        pcm = pcm * (_LOUDEST / peak) if peak > _LOUDEST else pcm
        return (pcm * 32768).round().clamp(-32768, 32767).to(torch.int16)


def mixed(pcm: Tensor, noise: Tensor, snr: float) -> Tensor:
    """x + g v with 10 log10(Σ x² / Σ (g v)²) = ``snr``: powers are means over the whole recording, pauses included.

    Silence stays silent, and a silent stretch of noise adds nothing.

    Args:
        pcm, noise: [n] float32.
        snr: dB.
    """
    signal, added = (float(x.double().square().mean()) for x in (pcm, noise))
    if not signal or not added:
        return pcm
    return pcm + math.sqrt(signal / added / 10 ** (snr / 10)) * noise


def made_noise(colour: str, samples: int, generator: torch.Generator) -> Tensor:
    """[samples] float32 Gaussian noise: white, or pink, whose power falls with 1 / frequency."""
    white = torch.randn(samples, generator=generator)
    if colour == "white":
        return white
    size = 1 << max(samples - 1, 1).bit_length()
    spectrum = torch.fft.rfft(white, size)
    spectrum[1:] /= torch.arange(1, len(spectrum)).sqrt()
    spectrum[0] = 0
    return torch.fft.irfft(spectrum, size)[:samples]


def room_response(t60: float, direct: float, generator: torch.Generator) -> Tensor:
    """h = (δ + c w) / √(1 + c²) with w[k] ∝ e[k] 10^(-3 k / (16,000 T60)), k > 0, Σ w² = 1, e Gaussian.

    The direct sound is sample 0, so that no word moves; Σ h² = 1, and it ends where it has decayed by 60 dB. Real rooms
    swallow high frequencies sooner, and their first reflections stand apart.

    Args:
        t60: T60, seconds in which the reflections decay by 60 dB.
        direct: -20 log10 c, dB by which the direct sound has more energy than all reflections.
        generator: on the CPU.

    Returns:
        [⌈16,000 · T60⌉ + 1] float32.

    Source: Moorer, 1979, About this reverberation business; Ko et al., 2017, for training with synthetic rooms.
    """
    length = math.ceil(t60 * SAMPLE_RATE)
    place = torch.arange(1, length + 1, dtype=torch.float64)
    tail = torch.randn(length, generator=generator).double() * 10 ** (-3 * place / (t60 * SAMPLE_RATE))
    share = 10 ** (-direct / 10)
    tail *= math.sqrt(share / float(tail.square().sum()))
    return (torch.cat((tail.new_ones(1), tail)) / math.sqrt(1 + share)).float()


def convolved(pcm: Tensor, response: Tensor) -> Tensor:
    """y[k] = Σ_j h[j] x[k - j], as long as x [n], by FFTs of blocks; h [m] float32."""
    size = max(1 << 14, 1 << (4 * len(response) - 1).bit_length())
    block, over = size - len(response) + 1, len(response) - 1
    blocks = torch.nn.functional.pad(pcm, (0, -len(pcm) % block)).view(-1, block)
    found = torch.fft.irfft(torch.fft.rfft(blocks, size) * torch.fft.rfft(response, size), size)
    whole = found[:, :block].contiguous()
    whole[1:, :over] += found[:-1, block : block + over]
    return whole.flatten()[: len(pcm)]


def _between(span: Sequence[float], drawn: float) -> float:
    return span[0] + drawn * (span[1] - span[0])


def _span(value: object, what: str, least: float, most: float) -> tuple[float, float]:
    found = tuple(value) if isinstance(value, (list, tuple)) else ()
    if len(found) != 2 or not all(is_number(x) for x in found) or not least <= found[0] <= found[1] <= most:
        raise ValueError(f"{what} is {shown(value)}; [lowest, highest] from {least:g} to {most:g} is expected")
    return float(found[0]), float(found[1])


def _check_share(share: float) -> None:
    if not 0 <= number(share, "share") <= 1:
        raise ValueError(f"share is {share}; 0 to 1 is expected")
