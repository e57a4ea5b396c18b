"""log_mel of thirty minutes of audio, 60 windows of 30 s, and of one window."""

from functools import lru_cache

import torch

from afn_kernels.log_mel import reference
from bench.ops import Absent, Workload, normal, sized

SAMPLES, MELS = 480_000, 128
FLOPS = 2 * 3 * (8 * 64 * 64 + 4 * 64 * 128)  # of a frame: products of the folded DFT and of the filters, three each


def inputs(rows: int, whole: bool, samples: int):
    def make(device: str, dtype: torch.dtype):
        if whole and device == "meta":
            return {"pcm": torch.empty(rows, samples, device=device, dtype=torch.int16)}
        pcm = normal(rows, samples, device=device, dtype=torch.float32) / 10
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
    windows: int = 60, samples: int = SAMPLES, int16: bool = False, out_dtype: torch.dtype = torch.float32
) -> Workload:
    frames = samples // 160
    least = windows * (samples * (2 if int16 else 4) + MELS * frames * out_dtype.itemsize)
    seconds = windows * samples / 16_000
    length = f"{seconds / 60:g} min" if seconds > 60 else f"{seconds:g} s"
    name = str(out_dtype).removeprefix("torch.")
    return Workload(
        "log_mel",
        f"{length}, {'int16' if int16 else 'float32'} to {name}",
        inputs(windows, int16, samples),
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
]
