"""Conversations packed one after another, as the model reads them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from afn_model.audio.frames import conv_frames, mel_frames, padded_width, token_frames, window_samples

IGNORED = -100


@dataclass
class Batch:
    """Conversations packed one after another.

    Args:
        input_ids: [T] int64, all conversations.
        cu_seqlens: [B + 1] int32, where each conversation starts, and T.
        pcm: float32 or int16 at 16 kHz: [W, T_pcm] windows padded with zeros, or ragged, [Σ samples] window after
            window without padding; None without audio.
        samples: [W] int64, valid samples of each window.
        windows_per_audio: [A] int64, audios in order of appearance.
        labels: [T] int64, -100 where not supervised, or None.
        digests: ``audio.digests.window_digest`` of each window where it is known, which spares an engine hashing it.
    """

    input_ids: Tensor
    cu_seqlens: Tensor
    pcm: Tensor | None
    samples: Tensor
    windows_per_audio: Tensor
    labels: Tensor | None = None
    digests: list[bytes | None] | None = None

    @property
    def mel_lengths(self) -> Tensor:
        """[W] int64, valid mel frames of each window: ceil(samples / 160)."""
        return mel_frames(self.samples)

    @property
    def window_tokens(self) -> Tensor:
        """[W] int64, audio tokens of each window."""
        return token_frames(conv_frames(self.mel_lengths))

    @property
    def targets(self) -> Tensor:
        """[T] int64, the label of the token after each one; -100 where nothing is supervised."""
        if self.labels is None:
            raise ValueError("the batch has no labels: make it with processor(..., training=True)")
        if not len(self.labels):
            return self.labels.clone()
        shifted = F.pad(self.labels[1:], (0, 1), value=IGNORED)
        # An empty conversation has the last token of the one before it, and the first one that of the batch.
        last = (self.cu_seqlens[1:].long() - 1) % len(shifted)
        return shifted.index_fill(0, last, IGNORED)

    @property
    def supervised(self) -> int:
        """Tokens that a loss is computed for, sum(targets != -100) without making them; 0 without labels."""
        if self.labels is None:
            return 0
        first = self.cu_seqlens[:-1][self.cu_seqlens.diff() > 0]  # no token precedes it in its conversation
        wanted = self.labels != IGNORED
        return int(wanted.sum() - wanted[first.long()].sum())

    @property
    def windows(self) -> Tensor | None:
        """[W, T_pcm] windows padded with zeros; None without audio."""
        if self.pcm is None or self.pcm.dim() == 2:
            return self.pcm
        return padded_windows(self.pcm, self.samples.tolist())

    def to(self, device: torch.device | str) -> Batch:
        """The batch with every tensor on ``device``."""
        tensors = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(self, **{name: x.to(device) for name, x in tensors.items() if isinstance(x, Tensor)})

    def padded(self, pad_id: int) -> tuple[Tensor, Tensor]:
        """(input_ids [B, S], attention_mask [B, S]), padded on the right with ``pad_id`` and 0."""
        lengths = self.cu_seqlens.diff().tolist()
        rows = self.input_ids.split(lengths)
        mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
        return torch.nn.utils.rnn.pad_sequence(list(rows), True, pad_id), mask.long().to(self.input_ids.device)


def padded_windows(pcm: Tensor, samples: list[int]) -> Tensor:
    """Ragged samples [Σ samples] as windows [W, ``padded_width``] padded with zeros, on the samples' device."""
    width = padded_width(max(samples, default=0))
    windows = pcm.new_zeros(len(samples), width)
    at = first = 0
    for whole, run in itertools.groupby(samples, lambda count: count == width):
        counts = list(run)
        if whole:  # the full windows of a long recording are copied at once
            windows[first : first + len(counts)] = pcm[at : at + len(counts) * width].view(-1, width)
            at, first = at + len(counts) * width, first + len(counts)
            continue
        for count in counts:
            windows[first, :count] = pcm[at : at + count]
            at, first = at + count, first + 1
    return windows


def join(first: Batch, second: Batch) -> Batch:
    """Two batches as one; labels where both have them.

    Raises:
        ValueError: samples of different dtypes, which have different scales.
    """
    parts = [first, second]
    windows = [windows for batch in parts if (windows := batch.windows) is not None]
    if len({pcm.dtype for pcm in windows}) > 1:
        raise ValueError(f"batches of {windows[0].dtype} and {windows[1].dtype} samples cannot be joined")
    width = max((pcm.shape[1] for pcm in windows), default=0)
    labels = [batch.labels for batch in parts if batch.labels is not None]
    digests = [digest for batch in parts for digest in batch.digests or [None] * len(batch.samples)]
    return Batch(
        input_ids=torch.cat([batch.input_ids for batch in parts]),
        cu_seqlens=torch.cat((first.cu_seqlens, second.cu_seqlens[1:] + first.cu_seqlens[-1])),
        pcm=torch.cat([torch.nn.functional.pad(pcm, (0, width - pcm.shape[1])) for pcm in windows])
        if windows
        else None,
        samples=torch.cat([batch.samples for batch in parts]),
        windows_per_audio=torch.cat([batch.windows_per_audio for batch in parts]),
        labels=torch.cat(labels) if len(labels) == len(parts) else None,
        digests=digests if any(digests) else None,
    )


@dataclass
class Prepared:
    """One conversation: token ids [n], labels [n] or None, its clips [samples] at 16 kHz in order of appearance, and
    digests of the windows of each clip, where they are known."""

    ids: Tensor
    labels: Tensor | None
    clips: list[Tensor]
    digests: Sequence[Sequence[bytes] | None] | None = None


def _pack(prepared: Sequence[Prepared], dtype: torch.dtype, ragged: bool = False) -> Batch:
    ids, clips = [one.ids for one in prepared], [clip for one in prepared for clip in one.clips]
    labels = [one.labels for one in prepared if one.labels is not None]
    samples = [window_samples(clip.numel()) for clip in clips]
    counts, pcm = list(itertools.chain(*samples)), None
    if clips:
        # A tail too short for a token is in no window.
        parts = [clip[: sum(of_clip)].to(dtype) for clip, of_clip in zip(clips, samples, strict=True)]
        pcm = torch.cat(parts) if len(parts) > 1 else parts[0]
        pcm = pcm if ragged else padded_windows(pcm, counts)
    lengths = torch.tensor([0] + [len(row) for row in ids])
    known = [found for one in prepared for found in one.digests or [None] * len(one.clips)]
    digests = [
        digest for of_clip, found in zip(samples, known, strict=True) for digest in found or [None] * len(of_clip)
    ]
    return Batch(
        input_ids=torch.cat(ids),
        cu_seqlens=lengths.cumsum(0).to(torch.int32),
        pcm=pcm,
        samples=torch.tensor(counts, dtype=torch.int64),
        windows_per_audio=torch.tensor([len(of_clip) for of_clip in samples], dtype=torch.int64),
        labels=torch.cat(labels) if len(labels) == len(ids) else None,
        digests=digests if any(digests) else None,
    )
