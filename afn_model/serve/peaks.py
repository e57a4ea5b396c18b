"""The outline of a recording: how far it goes down and up in each of many short parts."""

from __future__ import annotations

import torch
from torch import Tensor


def peaks(pcm: Tensor, n: int) -> tuple[Tensor, float]:
    """out[i] = (min, max) of pcm[i·h : (i + 1)·h] · 127 / loudest, h = ceil(len(pcm) / n), rounded away from zero.

    Relative to its loudest sample a quiet recording has an outline as fine as a loud one.

    Args:
        pcm: [T] samples: floating in [−1, 1], or int16, which counts 1/32768.
        n: the most parts.

    Returns:
        ([m, 2] int8, m = ceil(T / h) ≤ n, where the last part may be shorter; loudest = max |pcm|, in [0, 1]).

    Raises:
        ValueError: n below 1.
    """
    if n < 1:
        raise ValueError(f"peaks: {n} parts, not 1 or more")
    if not len(pcm):
        return torch.zeros(0, 2, dtype=torch.int8), 0.0
    hop = -(-len(pcm) // n)
    whole = len(pcm) // hop
    parts = pcm[: whole * hop].view(whole, hop)
    found = torch.stack([parts.amin(1), parts.amax(1)], 1)  # torch.aminmax takes five times as long on a CPU
    if whole * hop < len(pcm):
        rest = pcm[whole * hop :]
        found = torch.cat([found, torch.stack([rest.amin(), rest.amax()])[None]])
    found = found.double().mul_(1 / 32768 if pcm.dtype == torch.int16 else 1).nan_to_num_(0).clamp_(-1, 1)
    loudest = float(found.abs().max())
    scaled = found * (127 / loudest if loudest else 0)
    return torch.where(scaled < 0, scaled.floor(), scaled.ceil()).clamp_(-127, 127).to(torch.int8), loudest
