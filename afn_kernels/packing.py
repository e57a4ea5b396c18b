"""A padded batch to sequences that lie end to end, and back."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from afn_kernels import _check


def unpad(x: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """packed = x[mask]: the rows of a padded batch end to end, with their boundaries, as ``attention`` takes them.

    On a GPU it waits for the number of rows, and torch.compile breaks its graph there: call it once, before the layers.
    ``pad`` is the way back; both are differentiable.

    Args:
        x: [B, T, ...], any dtype.
        mask: [B, T], bool or numbers, true or nonzero where x has a row; padding may be on either side.

    Returns:
        packed [total, ...]; cu_seqlens [B + 1] int32; indices [total] int64, the row of x.flatten(0, 1) that each is.

    Raises:
        ValueError: a mask that does not fit.
    """
    _check.are_tensors("unpad", x=x, mask=mask)
    if mask.dim() != 2 or x.shape[:2] != mask.shape:
        raise _check.misfit("unpad", x=(x, "B T ..."), mask=(mask, "B T"))
    if mask.device != x.device:
        raise ValueError(f"unpad: mask is on {mask.device}, x on {x.device}")
    mask = mask != 0
    indices = mask.flatten().nonzero().flatten()
    cu_seqlens = F.pad(mask.sum(1).cumsum(0), (1, 0)).to(torch.int32)
    return x.flatten(0, 1).index_select(0, indices), cu_seqlens, indices


def pad(packed: torch.Tensor, indices: torch.Tensor, batch: int, length: int) -> torch.Tensor:
    """out.flatten(0, 1)[indices] = packed, and zeros elsewhere: ``unpad`` undone.

    Args:
        packed: [total, ...], any dtype.
        indices: [total] int64, those that ``unpad`` returned.
        batch: B.
        length: T.

    Returns:
        [B, T, ...].

    Raises:
        ValueError: indices that do not fit ``packed``, or on the CPU an index past ``batch`` times ``length``.
    """
    _check.are_tensors("pad", packed=packed, indices=indices)
    if indices.shape != packed.shape[:1] or indices.dtype != torch.int64 or indices.device != packed.device:
        found = f"indices are {indices.dtype} {tuple(indices.shape)} on {indices.device}"
        raise ValueError(f"pad: {found}, expected int64 [{len(packed)}] on {packed.device}, as unpad returns them")
    if _check.readable(indices) and len(indices) and int(indices.max()) >= batch * length:
        raise ValueError(f"pad: index {int(indices.max())} is past the {batch} x {length} rows")
    out = packed.new_zeros(batch * length, *packed.shape[1:])
    return out.index_copy(0, indices, packed).unflatten(0, (batch, length))
