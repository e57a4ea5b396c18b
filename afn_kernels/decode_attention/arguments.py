"""What a call of decode_attention must be: from shapes, dtypes and devices alone, and from values."""

import numbers

import torch

from afn_kernels import _cache_attention, _check
from afn_kernels._fp8_scales import FP8, check_scales
from afn_kernels.attention.window import Window

OP = "decode_attention"


def check_tensors(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    lengths: torch.Tensor,
    block_table: torch.Tensor | None,
    prefix_lengths: torch.Tensor | None,
    k_scale: torch.Tensor | None,
    v_scale: torch.Tensor | None,
) -> None:
    """No value is looked at.

    Raises:
        ValueError: shapes, dtypes or devices that do not fit.
    """
    _check.are_tensors(OP, q=q, k_cache=k_cache, v_cache=v_cache, lengths=lengths)
    others = {"block_table": block_table, "prefix_lengths": prefix_lengths, "k_scale": k_scale, "v_scale": v_scale}
    others = {name: x for name, x in others.items() if x is not None}
    _check.are_tensors(OP, **others)
    if k_cache.dtype == FP8:
        _check.alike(OP, k_cache=k_cache, v_cache=v_cache)
        _check.same_dtype_and_device(OP, q=q, cache=k_cache.new_empty(0, dtype=q.dtype))
    else:
        _check.same_dtype_and_device(OP, q=q, k_cache=k_cache, v_cache=v_cache)
    for name, x in {"lengths": lengths, **others}.items():
        _check.beside(OP, name, x, q)
    if q.dim() != 4 or k_cache.dim() != 4 or k_cache.shape != v_cache.shape or q.shape[-1] != k_cache.shape[-1]:
        caches = {"k_cache": (k_cache, "P S Hk D"), "v_cache": (v_cache, "P S Hk D")}
        raise _check.misfit(OP, q=(q, "B n Hq D"), **caches)
    if not k_cache.shape[2] or q.shape[2] % k_cache.shape[2]:
        raise ValueError(f"{OP}: {q.shape[2]} query heads over {k_cache.shape[2]} KV heads")
    if not q.shape[3]:
        raise ValueError(f"{OP}: heads of 0 elements")
    if block_table is not None and block_table.dim() != 2:
        raise _check.misfit(OP, block_table=(block_table, "B pages"))
    if lengths.dim() != 1:
        raise _check.misfit(OP, lengths=(lengths, "B"))
    sequences = len(k_cache if block_table is None else block_table)
    if not len(q) == sequences == len(lengths):
        raise ValueError(f"{OP}: {len(q)} queries, {sequences} caches, {len(lengths)} lengths")
    if prefix_lengths is not None:
        if prefix_lengths.dim() != 1:
            raise _check.misfit(OP, prefix_lengths=(prefix_lengths, "groups"))
        groups = len(prefix_lengths)
        if len(q) % groups if groups else len(q):
            raise ValueError(f"{OP}: {len(q)} sequences are not {groups} groups of equal size")
    check_scales(OP, k_cache.shape[2], k_scale=k_scale, v_scale=v_scale)
    for name, x in {"lengths": lengths, **others}.items():
        if "scale" not in name:
            _check.integers(OP, name, x)


def check_split(split: int | None) -> int:
    """``split`` as implementations take it: 0 for none.

    Raises:
        ValueError: it is no multiple of 16.
    """
    if split is not None and (not isinstance(split, numbers.Integral) or split < 16 or split % 16):
        raise ValueError(f"{OP}: split={split!r}, expected a multiple of 16 keys, or None")
    return int(split or 0)


def fitting_split(split: int, capacity: int) -> int:
    """A split of at most all keys there can be: the same cuts, and sums of them within int32."""
    return min(split, max(1, -(-capacity // 16)) * 16)


def readable(*tensors: torch.Tensor | None) -> bool:
    """Whether ``check_values`` costs nothing."""
    return all(x is None or _check.readable(x) for x in tensors)


def check_values(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    lengths: torch.Tensor,
    block_table: torch.Tensor | None,
    prefix_lengths: torch.Tensor | None = None,
    window: Window | None = None,
) -> None:
    """What kernels take on trust; on a GPU it waits for the device.

    Raises:
        ValueError: a length below the new tokens or past the capacity, a prefix that is no part of what all new tokens
            of its group see, or a page that is read and is not there.
    """
    if not len(lengths):
        return
    left = -1 if window is None else window[0]
    here = {"fresh": q.shape[1], "table": block_table, "prefixes": prefix_lengths, "left": left}
    if q.shape[1] and _cache_attention.fits(k_cache, lengths, q.shape[2], **here):
        return
    new, page = q.shape[1], k_cache.shape[1]
    capacity = page if block_table is None else block_table.shape[1] * page
    shortest, longest = (int(x) for x in lengths.aminmax())
    if shortest < new:
        raise ValueError(f"{OP}: length {shortest} is below the {new} new tokens")
    if longest > capacity:
        raise ValueError(f"{OP}: length {longest} is past the capacity {capacity}")
    members, first = 1, torch.zeros_like(lengths)
    if prefix_lengths is not None:
        members = len(lengths) // len(prefix_lengths)
        first = prefix_lengths.repeat_interleave(members).to(lengths.dtype)
        bad = (first < 0) | (first > lengths - new)
        if bad.any():
            row = int(bad.nonzero()[0])
            seen = f"the {int(lengths[row]) - new} keys before the new tokens of sequence {row}"
            raise ValueError(f"{OP}: a prefix of {int(first[row])} keys is no part of {seen}")
        first = first.masked_fill(torch.arange(len(lengths), device=lengths.device) % members == 0, 0)
    if block_table is None or not page:
        return
    if window is not None:
        first = torch.maximum(first, lengths - (window[0] + new))
    column = torch.arange(block_table.shape[1], device=lengths.device)
    read = (column >= first[:, None] // page) & (column * page < lengths[:, None])
    bad = ((block_table < 0) | (block_table >= len(k_cache))) & read
    if bad.any():
        row, column = bad.nonzero()[0].tolist()
        found = int(block_table[row, column])
        raise ValueError(f"{OP}: page {column} of sequence {row} is {found}, outside the {len(k_cache)} pages")
