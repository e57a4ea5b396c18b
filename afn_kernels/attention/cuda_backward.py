"""The backward on Hopper: dq, dk and dv in one pass over blocks of keys, csrc/cuda/attention_backward.cu."""

import torch

from afn_kernels import _cuda, _tensor_map
from afn_kernels.attention.config import CUDA_KEYS
from afn_kernels.attention.gradients import empty_gradients
from afn_kernels.attention.hopper import LOG2E, dense

QUERIES = {64: 128, 128: 64}  # of a step, by head dimension
THREADS = 384  # one warpgroup that fetches, two that multiply
SHARED = {64: 216_200, 128: 214_664}  # bytes of BackwardTile
DTYPES = (torch.bfloat16, torch.float16)


def _kernels(name: str, parameters: str, threads: int) -> dict[tuple[torch.dtype, int], _cuda.Kernel]:
    return {
        (dtype, dim): _cuda.Kernel(
            "attention_backward", f"{name}_{str(dtype).removeprefix('torch.')}_{dim}", parameters, threads
        )
        for dtype in DTYPES
        for dim in QUERIES
    }


STATS = _kernels("attention_stats", "PPPPPPPPPqqqqqqqqiiiii", 256)
BACKWARD = _kernels("attention_backward", "128s128s128s128s128sPPPPPffiiiii60x", THREADS)
DQ = _kernels("attention_dq", "PPfii", 256)


def backward(
    dout: torch.Tensor,
    dlse: torch.Tensor | None,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor,
    out_c: torch.Tensor | None,
    lse_c: torch.Tensor | None,
    dq_table: torch.Tensor | None,
    dkv_table: torch.Tensor | None,
    causal: bool,
    left: int,
    right: int,
    softcap: float,
    scale: float,
    need_dq: bool,
    need_dkv: bool,
    need_carry: bool,
    ordered: bool = True,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """dq, dk, dv, and the carry's gradients; empty tensors for those that are not needed.

    As ``triton_backward.backward``, of heads of 64 and 128 in 16 bits without a window or capped scores, but that
    ``dkv_table`` has tiles of 128 keys and ``dq_table`` is not read.

    Args:
        ordered: whether blocks of keys add to a query's dq one after another, so that it is the same in every run.
    """
    (tokens, heads, dim), (keys, kv_heads, _) = q.shape, k.shape
    dq, dk, dv, dout_c, dlse_c = empty_gradients(q, k, v, need_dq, need_dkv, need_carry)
    if not tokens:
        return dq, dk.zero_(), dv.zero_(), dout_c, dlse_c
    q, k, v, dout, out = *map(_tensor_map.mappable, (q, k, v, dout)), dense(out)
    out_c = None if out_c is None else dense(out_c)
    stats = torch.empty(2 * heads, -(-tokens // 4) * 4, dtype=torch.float32, device=q.device)
    strides = [(0, 0) if x is None else x.stride() for x in (lse, dlse, lse_c)]
    STATS[q.dtype, dim].launch(
        (-(-tokens // 8), heads), 0, q.device,
        dout.data_ptr(), out.data_ptr(), lse.data_ptr(), _cuda.pointer(dlse),
        *(_cuda.pointer(x if need_carry else None) for x in (out_c, lse_c)),
        stats.data_ptr(), dout_c.data_ptr(), dlse_c.data_ptr(),
        *dout.stride()[:2], *strides[0], *strides[1], *strides[2],
        tokens, heads, stats.shape[1], dout.dtype == torch.float32, out.dtype == torch.float32,
    )  # fmt: skip
    if not keys or not (need_dq or need_dkv):
        return dq.zero_(), dk, dv, dout_c, dlse_c
    dout = dout.to(q.dtype)  # float32 with a carry
    added, turns = None, None
    if need_dq:
        added = torch.zeros(heads, dim // 64, tokens, 64, dtype=torch.float32, device=q.device)
        turns = torch.zeros(1 + added.numel() // 64, dtype=torch.int32, device=q.device) if ordered else None
    rows = {"q": (q, QUERIES[dim]), "k": (k, CUDA_KEYS), "v": (v, CUDA_KEYS), "dout": (dout, QUERIES[dim])}
    maps = [_tensor_map.encode(x, (box, 1, 64), 128) for x, box in rows.values()]
    tiles = -(-keys // CUDA_KEYS) if dkv_table is None else len(dkv_table)
    BACKWARD[q.dtype, dim].launch(
        (tiles * kv_heads, 1), SHARED[dim], q.device,
        *maps, _tensor_map.encode(stats, (2, QUERIES[dim]), 0),
        _cuda.pointer(added), *(x.data_ptr() if need_dkv else 0 for x in (dk, dv)), _cuda.pointer(dkv_table),
        _cuda.pointer(turns), scale, scale * LOG2E, tokens, keys, kv_heads, heads // kv_heads, causal,
    )  # fmt: skip
    if added is not None:
        blocks = -(-tokens * heads * dim // (16 * 256))
        DQ[q.dtype, dim].launch(
            (blocks, 1), 0, q.device, added.data_ptr(), dq.data_ptr(), scale, tokens, heads
        )  # fmt: skip
    return dq, dk, dv, dout_c, dlse_c
