"""log_mel of thirty minutes of audio, 60 windows of 30 s, and of one window: noise, speech, padding, silence.

Features of noise are all above the floor; speech reaches below it here and there, and padding everywhere.
"""

from functools import lru_cache

import torch
from torch import Tensor

from afn_kernels.log_mel import reference
from bench.ops import Absent, Workload, normal, sized

SAMPLES, MELS = 480_000, 128
FLOPS = 2 * 3 * (8 * 64 * 64 + 4 * 64 * 128)  # of a frame: products of the folded DFT and of the filters, three each


def noise(rows: int, samples: int, device: str) -> Tensor:
    return normal(rows, samples, device=device, dtype=torch.float32) / 10


def speech(rows: int, samples: int, device: str) -> Tensor:
    """Voices of 12 harmonics in syllables and phrases, and the noise of a quiet room."""
    t = torch.arange(samples, device=device) / 16_000
    hz = 90 + 130 * torch.rand(rows, 1, device=device)
    phase = 2 * torch.pi * (hz * t + 6 * torch.sin(4.4 * t))
    voice = sum(torch.sin(k * phase) / k**1.3 for k in range(1, 13))
    loud = torch.sin(2 * torch.pi * 4 * t).clamp(min=0).sqrt() * (torch.sin(2 * torch.pi * t / 3) > -0.4)
    return 0.1 * voice * loud + 1e-4 * normal(rows, samples, device=device, dtype=torch.float32)


def padded(rows: int, samples: int, device: str) -> Tensor:
    """A sixth of speech (5 s of 30), then zeros."""
    pcm = torch.zeros(rows, samples, device=device)
    pcm[:, : samples // 6] = speech(rows, samples // 6, device)
    return pcm


def silence(rows: int, samples: int, device: str) -> Tensor:
    return torch.zeros(rows, samples, device=device)


AUDIO = {"noise": noise, "speech": speech, "padded": padded, "silence": silence}


def inputs(rows: int, whole: bool, samples: int, audio: str):
    signal = AUDIO[audio]

    def make(device: str, dtype: torch.dtype):
        if device == "meta":
            kind = torch.int16 if whole else torch.float32
            return {"pcm": torch.empty(rows, samples, device=device, dtype=kind)}
        pcm = signal(rows, samples, device)
        return {"pcm": (pcm * 32767).clamp(-32768, 32767).to(torch.int16) if whole else pcm}

    return make


def torchs(out_dtype: torch.dtype):
    return lambda i: reference.log_mel(i["pcm"], n_mels=MELS, out_dtype=out_dtype)


def floats(pcm: torch.Tensor) -> torch.Tensor:
    return pcm / 32768 if pcm.dtype == torch.int16 else pcm


@lru_cache
def extractor():
    try:
        from transformers import WhisperFeatureExtractor
    except ImportError as error:
        raise Absent("transformers is not installed") from error
    return WhisperFeatureExtractor(feature_size=MELS)


def transformers(out_dtype: torch.dtype):
    """Its PyTorch path, without the copies to and from the host that its public call makes."""

    def run(i):
        extract, pcm = extractor(), floats(i["pcm"])
        window = torch.hann_window(extract.n_fft, device=pcm.device)
        stft = torch.stft(pcm, extract.n_fft, extract.hop_length, window=window, return_complex=True)
        filters = torch.from_numpy(extract.mel_filters).to(pcm)
        log = (filters.T @ (stft[..., :-1].abs() ** 2)).clamp(min=1e-10).log10()
        log = torch.maximum(log, log.amax((1, 2), keepdim=True) - 8.0)
        return ((log + 4.0) / 4.0).to(out_dtype)

    return run


@lru_cache
def spectrogram(device: torch.device):
    try:
        from torchaudio.transforms import MelSpectrogram
    except ImportError as error:
        raise Absent("torchaudio is not installed") from error
    options = {"n_fft": 400, "hop_length": 160, "n_mels": MELS, "norm": "slaney", "mel_scale": "slaney"}
    return MelSpectrogram(16_000, **options).to(device)


def torchaudio(out_dtype: torch.dtype):
    def run(i):
        log = spectrogram(i["pcm"].device)(floats(i["pcm"]))[..., :-1].clamp(min=1e-10).log10()
        return ((torch.maximum(log, log.amax((1, 2), keepdim=True) - 8) + 4) / 4).to(out_dtype)

    return run


@sized(lambda frames, **_: {"windows": 3, "samples": 160 * max(frames, 2)})
def workload(
    windows: int = 60,
    samples: int = SAMPLES,
    int16: bool = False,
    out_dtype: torch.dtype = torch.float32,
    audio: str = "noise",
) -> Workload:
    frames = samples // 160
    least = windows * (samples * (2 if int16 else 4) + MELS * frames * out_dtype.itemsize)
    seconds = windows * samples / 16_000
    length = f"{seconds / 60:g} min" if seconds > 60 else f"{seconds:g} s"
    name = str(out_dtype).removeprefix("torch.")
    return Workload(
        "log_mel",
        f"{length}, {'int16' if int16 else 'float32'} to {name}{'' if audio == 'noise' else f', {audio}'}",
        inputs(windows, int16, samples, audio),
        (),
        (least, 0),
        (windows * frames * FLOPS, 0),
        {"n_mels": MELS, "out_dtype": out_dtype},
        peers={
            "torch": torchs(out_dtype),
            "torch.compile": torch.compile(torchs(out_dtype), dynamic=True),
            "transformers": transformers(out_dtype),
            "torchaudio": torchaudio(out_dtype),
        },
        differs={"torchaudio": (1.6e-5, "its mel filters are made in float32, up to 1.6e-5 of their largest off")},
        matrix=("log_mel_kernel",),
    )


WORKLOADS = [
    workload(windows, int16=int16, out_dtype=out_dtype)
    for windows, int16, out_dtype in (
        (60, False, torch.float32),
        (60, False, torch.bfloat16),
        (60, True, torch.float32),
        (60, True, torch.bfloat16),
        (1, False, torch.float32),
    )
] + [workload(audio=audio) for audio in ("speech", "padded", "silence")]
