"""The compiled kernel of csrc/cpu/rows_simd.cpp: angles once a token, for all its heads and the rows of a cache."""

import torch

from afn_kernels import _cpu

NOWHERE = 0, (0, 0, 0)


def _heads(x: torch.Tensor) -> tuple[int, tuple[int, int, int]]:
    token, head, _ = x.stride()
    return x.data_ptr(), (token, head, x.shape[1])


def _rows(x: torch.Tensor) -> tuple[int, tuple[int, int, int]]:
    row, head, _ = x.stride()
    return x.data_ptr(), (x.shape[0], row, head)


def forward(
    q: torch.Tensor,
    k: torch.Tensor,
    positions: torch.Tensor,
    inv_freq: torch.Tensor,
    interleaved: bool,
    threads: int = 0,
    level: str = "",
) -> tuple[torch.Tensor, torch.Tensor]:
    """q [T, Hq, D] and k [T, Hk, D], contiguous in their last axes, turned; positions [T] or [T, pairs]."""
    return _turned(q, k, positions, inv_freq, interleaved, NOWHERE, 0, NOWHERE, NOWHERE, threads, level)


def write(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    positions: torch.Tensor,
    inv_freq: torch.Tensor,
    slots: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    interleaved: bool,
    threads: int = 0,
    level: str = "",
) -> tuple[torch.Tensor, torch.Tensor]:
    """The same, and k and v go into the rows ``slots`` of the caches [rows, Hk, D]."""
    caches = _heads(v), slots.data_ptr(), _rows(k_cache), _rows(v_cache)
    return _turned(q, k, positions, inv_freq, interleaved, *caches, threads, level)


def _turned(q, k, positions, inv_freq, interleaved, v, slots, k_cache, v_cache, threads, level):
    turned = tuple(torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, k))
    _cpu.rotary(
        *_heads(q), *_heads(k), turned[0].data_ptr(), turned[1].data_ptr(), positions.data_ptr(),
        positions.dtype == torch.float64, positions.dim() == 2, inv_freq.data_ptr(), inv_freq.dtype == torch.float64,
        interleaved, q.shape[0], q.shape[2], inv_freq.shape[0], *v, slots, *k_cache, *v_cache,
        threads or torch.get_num_threads(), level,
    )  # fmt: skip
    return turned
