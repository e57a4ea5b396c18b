"""Log-mel features as pictures, a PNG for each 30-second window."""

from __future__ import annotations

import struct
import zlib

import torch
from torch import Tensor

import afn_kernels as ak
from afn_model.audio.frames import HOP, WINDOW, mel_frames

LOW, HIGH = -0.5, 1.5  # what the ends of the palette stand for: the model sees little beyond
COLUMNS = (150, 300, 600, 1500, 3000)  # of a full window
# From silence to loud; brightness only grows. The page turns it around on light paper.
ANCHORS = ((25, 25, 27), (36, 35, 40), (78, 52, 74), (176, 70, 108), (240, 146, 128), (255, 240, 205))


def palette() -> bytes:
    """256 colours of three bytes, straight lines between ``ANCHORS``."""
    at = torch.linspace(0, len(ANCHORS) - 1, 256)
    left = at.floor().clamp_(max=len(ANCHORS) - 2).long()
    colours, share = torch.tensor(ANCHORS, dtype=torch.float32), (at - left)[:, None]
    return bytes((colours[left] * (1 - share) + colours[left + 1] * share).round().to(torch.uint8).flatten().tolist())


def window_mel(pcm: Tensor, window: int, columns: int = 3000) -> Tensor:
    """Features of one window as the model hears it, padded with silence for their maximum, cut where it ends.

    Args:
        pcm: [T] samples at 16 kHz of the whole recording: float32 in [−1, 1] or int16.
        window: which, from 0.
        columns: of a full window, one of ``COLUMNS``: each is the largest of its frames.

    Returns:
        [128, ceil(frames · columns / 3000)] float32.

    Raises:
        ValueError: no such window, or other columns.
    """
    if columns not in COLUMNS:
        raise ValueError(f"columns={columns}, not one of {', '.join(map(str, COLUMNS))}")
    clip = pcm[window * WINDOW : (window + 1) * WINDOW] if window >= 0 else pcm[:0]
    if not len(clip):
        raise ValueError(f"there is no window {window}; this recording has {-(-len(pcm) // WINDOW)}")
    row = torch.zeros(1, WINDOW, dtype=pcm.dtype)
    row[0, : len(clip)] = clip
    frames, per = mel_frames(len(clip)), WINDOW // HOP // columns
    return ak.log_mel(row)[0].view(128, columns, per).amax(2)[:, : -(-frames // per)]


def png(values: Tensor) -> bytes:
    """A picture of [rows, columns] uint8 indices into the palette; the first row is on top.

    Source: Portable Network Graphics (PNG) Specification, third edition, W3C, 2023.
    """

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows, columns = values.shape
    header = struct.pack(">IIBBBBB", columns, rows, 8, 3, 0, 0, 0)  # 8 bits, a palette
    lines = torch.cat([torch.zeros(rows, 1, dtype=torch.uint8), values], 1)  # each begins with its filter, none
    data = zlib.compress(lines.numpy().tobytes(), 6)
    chunks = chunk(b"IHDR", header) + chunk(b"PLTE", palette()) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def spectrogram(pcm: Tensor, window: int, columns: int = 3000) -> bytes:
    """A PNG of one window, low frequencies at the bottom; arguments and errors are those of ``window_mel``."""
    mel = window_mel(pcm, window, columns).nan_to_num(LOW)
    shade = ((mel - LOW) * (255 / (HIGH - LOW))).round().clamp_(0, 255).to(torch.uint8)
    return png(shade.flip(0).contiguous())
