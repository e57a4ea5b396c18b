"""What an audio model's front end computes, as data: sizes, window, filter bank, logarithm and normalisation."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field, fields
from functools import lru_cache
from typing import TypeVar

import torch

Count = TypeVar("Count", int, torch.Tensor)
TINY = 2.0**-126  # the smallest normal float32
CHOICES = {
    "window": ("hann", "hamming", "povey", "rectangular"),
    "padding": ("reflect", "zeros", None),
    "last_frame": ("keep", "drop", "zero"),
    "mel_scale": ("slaney", "htk"),
    "mel_norm": ("slaney", None),
    "triangles": ("hz", "mel"),
    "power": (1, 2),
    "log": ("log10", "ln", None),
    "normalize": ("per_feature", None),
    "eps_in": ("deviation", "variance"),
}


@dataclass(frozen=True)
class MelConfig:
    """A front end of ``log_mel``. The defaults are Whisper's with 128 mel bins.

    In the order in which they act, on samples x at ``sample_rate``:

        x ← scale · x;  x[n] ← x[n] − preemphasis · x[n − 1], x[0] as it is
        frames of ``win_length`` samples every ``hop_length``, centred or not (``padding``)
        a frame less its mean (``remove_mean``);  less ``frame_preemphasis`` · its predecessor, the first less its own
        e = mel_filters · |FFT(window · frame)|^power
        y = log(max(e, floor) + guard)
        y ← max(y, top − range), with top the row's maximum unless ``top`` is a number
        y ← (y + offset) / divisor
        y ← (y − mean) / (deviation + eps) over the frames of a row, for each mel bin (``normalize``)

    Args:
        sample_rate: of the audio, Hz.
        n_fft: points of the Fourier transform, any number ≥ 2; a window of fewer samples is padded with zeros.
        hop_length: samples between frames.
        win_length: samples of the window; None is ``n_fft``.
        window: "hann", "hamming", "povey" (Hann to the power 0.85) or "rectangular".
        periodic: whether the window has the period ``win_length``, or is symmetric.
        padding: what a centred frame sees beyond the row: its mirror image ("reflect") or "zeros". None: frames are not
            centred, the first begins with the row and none reaches beyond it.
        last_frame: "keep"; "drop" the last one; or leave it out of all statistics and make it "zero", as NeMo does.
        preemphasis: coefficient, of the whole row.
        frame_preemphasis: coefficient, of each frame by itself, as Kaldi does.
        remove_mean: of each frame, as Kaldi does.
        scale: of the samples: 32768 for front ends that expect 16-bit integers.
        n_mels: mel bins.
        f_min, f_max: the filters' range in Hz; None is half the sampling rate.
        mel_scale: "slaney" or "htk", which is Kaldi's too.
        mel_norm: "slaney" gives each filter unit area per Hz, None leaves its peak at 1.
        triangles: whether filters are triangles over "hz" or over "mel".
        power: 2 of the spectrum, or 1.
        log: "log10", "ln" or None.
        floor, guard: of the energies, as above; with a logarithm one of them is above 0.
        range: in the logarithm's units; None clamps nothing.
        top: a fixed maximum, which Voxtral Realtime has so that audio can be streamed.
        offset, divisor: as above.
        normalize: "per_feature" or None.
        eps: of the normalisation, added to the "deviation" or to the "variance" (``eps_in``), which is unbiased. A
            single frame has no deviation and becomes 0.

    Raises:
        ValueError: a value that is none of these, or two that do not fit.
    """

    sample_rate: int = 16_000
    n_fft: int = 400
    hop_length: int = 160
    win_length: int | None = None
    window: str = "hann"
    periodic: bool = True
    padding: str | None = "reflect"
    last_frame: str = "drop"
    preemphasis: float = 0.0
    frame_preemphasis: float = 0.0
    remove_mean: bool = False
    scale: float = 1.0
    n_mels: int = 128
    f_min: float = 0.0
    f_max: float | None = None
    mel_scale: str = "slaney"
    mel_norm: str | None = "slaney"
    triangles: str = "hz"
    power: int = 2
    log: str | None = "log10"
    floor: float = 1e-10
    guard: float = 0.0
    range: float | None = 8.0
    top: float | None = None
    offset: float = 4.0
    divisor: float = 4.0
    normalize: str | None = None
    eps: float = 1e-5
    eps_in: str = "deviation"
    text: str = field(init=False, repr=False, compare=False)  # as the registered op takes it

    def __post_init__(self):
        for name, allowed in CHOICES.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"MelConfig: {name}={getattr(self, name)!r}, not one of {allowed}")
        for name, least in (("sample_rate", 1), ("n_fft", 2), ("hop_length", 1), ("n_mels", 1)):
            if (value := getattr(self, name)) != int(value) or value < least:
                raise ValueError(f"MelConfig: {name}={value}, not an integer of at least {least}")
            object.__setattr__(self, name, int(value))  # 160.0 and NumPy's numbers too
        if not 1 <= self.window_length <= self.n_fft:
            raise ValueError(f"MelConfig: win_length={self.win_length} beside n_fft={self.n_fft}; it is 1 to n_fft")
        if not 0 <= self.f_min < self.top_hz <= self.sample_rate / 2:
            found = f"f_min={self.f_min}, f_max={self.f_max} at sample_rate={self.sample_rate}"
            raise ValueError(f"MelConfig: {found}; they are 0 ≤ f_min < f_max ≤ sample_rate / 2")
        if (self.log and max(self.floor, self.guard) < TINY) or min(self.floor, self.guard) < 0:
            found = f"floor={self.floor}, guard={self.guard}"
            raise ValueError(f"MelConfig: {found}; neither is negative and a logarithm needs one of at least {TINY}")
        ranged = self.range is not None
        if (ranged and not (self.log and self.range > 0)) or (self.top is not None and not ranged):
            found = f"range={self.range}, top={self.top}, log={self.log!r}"
            raise ValueError(f"MelConfig: {found}; a range is positive and of a logarithm, and a top needs a range")
        if self.padding is None and self.last_frame != "keep":
            raise ValueError(f"MelConfig: last_frame={self.last_frame!r} without padding; only a centred one goes")
        if self.preemphasis and self.frame_preemphasis:
            raise ValueError("MelConfig: preemphasis and frame_preemphasis are both set; a front end has one of them")
        numbers = [getattr(self, one.name) for one in fields(self) if one.type in ("float", "float | None")]
        if not all(math.isfinite(x) for x in numbers if x is not None) or not self.divisor or not self.scale:
            raise ValueError("MelConfig: numbers are finite, and divisor and scale are not 0")
        settings = {one.name: getattr(self, one.name) for one in fields(self) if one.init}
        object.__setattr__(self, "text", json.dumps(settings))

    @property
    def window_length(self) -> int:
        """Samples of the window."""
        return self.n_fft if self.win_length is None else self.win_length

    @property
    def top_hz(self) -> float:
        """The upper end of the filters, Hz."""
        return self.sample_rate / 2 if self.f_max is None else self.f_max

    @property
    def before(self) -> int:
        """Samples of the first window that lie before the row."""
        return self.n_fft // 2 - (self.n_fft - self.window_length) // 2 if self.padding else 0

    @property
    def shortest(self) -> int:
        """Samples of the shortest row that has a frame."""
        if self.padding is None:
            return self.window_length
        least = self.n_fft % 2 + (self.hop_length if self.last_frame == "drop" else 0)
        return max(1, least, self.n_fft // 2 + 1 if self.padding == "reflect" else 1)

    def frames(self, samples: Count) -> Count:
        """Frames of a row of ``samples``, an int or an integer tensor."""
        return self._frames(samples, self.last_frame == "drop")

    def valid_frames(self, samples: Count) -> Count:
        """Those that are features of audio: without the last one where the front end makes it 0."""
        return self._frames(samples, self.last_frame != "keep")

    def _frames(self, samples: Count, without_last: bool) -> Count:
        reach = samples - self.window_length
        if self.padding is not None:
            reach = samples + self.n_fft // 2 * 2 - self.n_fft
        frames = reach // self.hop_length + 1 - int(without_last)
        if isinstance(samples, torch.Tensor):
            return torch.where((reach >= 0) & (samples > 0), frames, 0)
        return frames if reach >= 0 and samples > 0 else 0

    @classmethod
    def whisper(cls, n_mels: int = 128) -> MelConfig:
        """Whisper, Qwen2-Audio, Qwen2.5-Omni, Qwen3-Omni, Qwen3-ASR, Voxtral, Audio Flamingo, GLM-ASR: 80 or 128."""
        return cls(n_mels=n_mels)

    @classmethod
    def voxtral_realtime(cls) -> MelConfig:
        """Voxtral Realtime: Whisper's with a fixed maximum."""
        return cls(top=1.5)

    @classmethod
    def nemo(cls, n_mels: int = 80) -> MelConfig:
        """NeMo's for Parakeet and Canary: 80 or 128 mel bins."""
        return cls(
            n_fft=512,
            win_length=400,
            periodic=False,
            padding="zeros",
            last_frame="zero",
            preemphasis=0.97,
            n_mels=n_mels,
            log="ln",
            floor=0.0,
            guard=2.0**-24,
            range=None,
            offset=0.0,
            divisor=1.0,
            normalize="per_feature",
        )

    @classmethod
    def kaldi(cls, n_mels: int = 80, *, scale: float = 32_768.0, f_min: float = 20.0, **changes) -> MelConfig:
        """Kaldi's filter bank features with its defaults; ``changes`` are other fields."""
        settings = {
            "n_fft": 512,
            "win_length": 400,
            "window": "povey",
            "periodic": False,
            "padding": None,
            "last_frame": "keep",
            "frame_preemphasis": 0.97,
            "remove_mean": True,
            "mel_scale": "htk",
            "mel_norm": None,
            "triangles": "mel",
            "log": "ln",
            "floor": 2.0**-23,
            "range": None,
            "offset": 0.0,
            "divisor": 1.0,
        }
        return cls(**{**settings, "n_mels": n_mels, "scale": scale, "f_min": f_min, **changes})

    @classmethod
    def seamless_m4t(cls) -> MelConfig:
        """SeamlessM4T and Wav2Vec2-BERT, which then stack two frames: Kaldi's with normalised features."""
        return cls.kaldi(normalize="per_feature", eps=1e-7, eps_in="variance")

    @classmethod
    def phi4_multimodal(cls) -> MelConfig:
        """Phi-4-multimodal: Kaldi's with a Hamming window, to 7,690 Hz, energies of at least 1."""
        return cls.kaldi(window="hamming", remove_mean=False, f_min=0.0, f_max=7690.0, floor=1.0)

    @classmethod
    def granite_speech(cls) -> MelConfig:
        """Granite Speech, which then stacks two frames: torchaudio's spectrogram with Whisper's logarithm."""
        return cls(n_fft=512, win_length=400, last_frame="keep", n_mels=80, mel_scale="htk", mel_norm=None)

    @classmethod
    def gemma3n(cls) -> MelConfig:
        """Gemma 3n: magnitudes of 32 ms. Its own extractor leaves out a frame that ends with the audio."""
        return cls.kaldi(
            128,
            scale=1.0,
            n_fft=1024,
            win_length=512,
            window="hann",
            periodic=True,
            remove_mean=False,
            f_min=125.0,
            f_max=7600.0,
            triangles="hz",
            power=1,
            floor=1e-5,
        )


@lru_cache
def decoded(text: str) -> MelConfig:
    """The config whose ``text`` it is."""
    return MelConfig(**json.loads(text))
