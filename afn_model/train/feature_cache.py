"""A cache of a frozen encoder's features: a recording that comes again is not encoded again.

features = FeatureCache(model, limit_bytes=8 << 30)
loss = model.loss(batch, encoded=features(batch))

Every recording is encoded by itself, never together with others: the shape of a matrix product decides how its sums
are rounded, and features must not depend on what was cached before, or a resumed run would not repeat bit for bit. For
the same reason they differ from those of ``encode_batch`` in the last bits. The price is one encoder call for each new
recording, which leaves a GPU idle where recordings are short.
"""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from afn_model.afnext import AFNext
from afn_model.audio.frames import padded_width
from afn_model.files import atomic_path, fingerprint_of
from afn_model.prompt.batch import Batch
from afn_model.train.flops import forward_flops


class FeatureCache:
    """Stands in for ``model.encode_batch`` while the encoder is frozen.

    The key of a recording is a hash of its samples. The cache is cleared when the encoder's weights are changed in
    place or replaced, so a result is never stale.

    Args:
        model: on its device, in the precision of the computation, on one rank.
        limit_bytes: memory for features, which are kept on the CPU; the least recently used ones leave first.
        folder: also keeps every feature in files, which later runs with the same encoder, precision, kind of device
            and PyTorch read again. They are never deleted. If one cannot be written, no more are.

    Raises:
        ValueError: a limit below zero.
    """

    def __init__(self, model: AFNext, *, limit_bytes: int = 4 << 30, folder: str | Path | None = None):
        if limit_bytes < 0:
            raise ValueError(f"limit_bytes {limit_bytes} is below zero")
        self.model, self.limit_bytes = model, limit_bytes
        self.folder = None if folder is None else Path(folder)
        self.kept: OrderedDict[str, Tensor] = OrderedDict()
        self.bytes = self.hits = self.misses = 0
        self.saved_lengths: list[int] = []
        self.weights: list[tuple[int, int]] | None = None

    @torch.no_grad()
    def __call__(self, batch: Batch) -> tuple[Tensor, list[int]] | None:
        """What ``encode_batch`` returns: features [Σ tokens, audio width] and the tokens of each window; None without
        audio.

        Raises:
            ValueError: the encoder is being trained.
        """
        if batch.pcm is None or not len(batch.pcm):
            return None
        self.check_weights()
        here: dict[str, Tensor] = {}
        features = []
        for audio in audios(batch):
            key = content(audio.pcm, audio.samples)
            if key in here:
                self.count_hit(audio)
            else:
                here[key] = self.find(key, audio)
            features.append(here[key])
        return torch.cat(features), batch.window_tokens.tolist()

    def find(self, key: str, audio: Batch) -> Tensor:
        """Features of one recording on the model's device, from memory, from its file, or from the encoder."""
        cached = self.kept.get(key)
        if cached is None:
            cached = self.read(key)
        if cached is not None:
            self.count_hit(audio)
            self.keep(key, cached)
            return cached.to(self.model.device)
        self.misses += 1
        features, _ = self.model.encode_batch(audio)
        self.keep(key, features.cpu())
        self.write(key, features)
        return features

    def keep(self, key: str, features: Tensor) -> None:
        """Puts features last in the order of use, and drops the first ones that are too many."""
        if key not in self.kept:
            if features.nbytes > self.limit_bytes:
                return
            self.kept[key] = features
            self.bytes += features.nbytes
        self.kept.move_to_end(key)
        while self.bytes > self.limit_bytes:
            self.bytes -= self.kept.popitem(last=False)[1].nbytes

    def count_hit(self, audio: Batch) -> None:
        self.hits += 1
        self.saved_lengths += audio.mel_lengths.tolist()

    def saved_flops(self) -> float:
        """Encoder forward FLOPs saved since the last call."""
        forward = forward_flops(self.model.config, [], 0, self.saved_lengths)
        self.saved_lengths = []
        return sum(value for part, value in forward.items() if part.startswith("encoder_"))

    def check_weights(self) -> None:
        """Forgets everything if the encoder is not the one of the last call."""
        parameters = list(self.model.encoder.parameters())
        if any(parameter.requires_grad for parameter in parameters):
            raise ValueError("features are kept of a frozen encoder only, and this one is being trained")
        weights = [(parameter.data_ptr(), parameter._version) for parameter in parameters]
        if weights == self.weights:
            return
        self.weights, self.bytes = weights, 0
        self.kept.clear()
        if self.folder is not None:
            self.home = self.folder / encoder_fingerprint(self.model)

    def read(self, key: str) -> Tensor | None:
        """Features from their file; None where there is none, or it is broken."""
        if self.folder is None:
            return None
        try:
            return load_file(self.home / key[:2] / key)["features"]
        except (OSError, SafetensorError, KeyError):
            return None

    def write(self, key: str, features: Tensor) -> None:
        """Writes features to their file, atomically."""
        if self.folder is None:
            return
        file = self.home / key[:2] / key
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            with atomic_path(file) as temporary:
                save_file({"features": features.cpu().contiguous()}, temporary)
        except (OSError, ValueError, SafetensorError) as error:
            warnings.warn(f"{file}: {error}; no more features are written", stacklevel=2)
            self.folder = None


def audios(batch: Batch) -> Iterator[Batch]:
    """Each recording of a batch as if it had been packed alone: its windows only as wide as it needs them."""
    per_audio = batch.windows_per_audio.tolist()
    for pcm, samples in zip(batch.windows.split(per_audio), batch.samples.split(per_audio), strict=True):
        pcm = pcm[:, : padded_width(int(samples.max()))].contiguous()
        yield replace(batch, pcm=pcm, samples=samples, windows_per_audio=torch.tensor([len(samples)]))


def content(pcm: Tensor, samples: Tensor) -> str:
    """A hash of a recording: its samples [W, T_pcm], how many of them [W] are valid, and their dtype."""
    counts = samples.tolist()
    windows = [window[:count].contiguous().cpu().numpy() for window, count in zip(pcm, counts, strict=True)]
    return fingerprint_of([f"{pcm.dtype} {counts}", *windows])


def encoder_fingerprint(model: AFNext) -> str:
    """A hash of what features are a function of besides the recording."""

    def parts() -> Iterator[str | memoryview]:
        yield f"{model.config.audio} {model.device.type} {torch.__version__}"
        for name, tensor in model.encoder.state_dict().items():
            yield f"{name} {tensor.dtype}"
            yield memoryview(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())

    return fingerprint_of(parts())
