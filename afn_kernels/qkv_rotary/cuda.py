"""A warp per few heads of a token: csrc/cuda/qkv_rotary.cu."""

import torch

from afn_kernels import _cuda, _triton
from afn_kernels._fp8_scales import FP8, count

WARPS = 4
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
KERNELS = {
    (dtype, fp8): _cuda.Kernel(
        "qkv_rotary",
        f"qkv_rotary_{str(dtype).removeprefix('torch.')}{'_fp8' if fp8 else ''}",
        "PPPPPPPPPPqqqqqqiiiiiiii",
        32 * WARPS,
    )
    for dtype in DTYPES
    for fp8 in (False, True)
}


def aligned(bias: torch.Tensor | None) -> torch.Tensor | None:
    """The kernel reads two elements at once: a bias that begins at an odd one, as a slice may, is copied."""
    return bias if bias is None or bias.data_ptr() % (2 * bias.element_size()) == 0 else bias.clone()


def write(
    qkv: torch.Tensor,
    bias: torch.Tensor | None,
    positions: torch.Tensor,
    inv_freq: torch.Tensor,
    slots: torch.Tensor,
    k_scale: torch.Tensor | None,
    v_scale: torch.Tensor | None,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
) -> torch.Tensor:
    """q [T, Hq, D]; row slots[t] of the caches [rows, Hk, D] takes k and v of token t. All but rows are contiguous."""
    tokens, kv_heads, width = len(qkv), *k_cache.shape[1:]
    heads = qkv.shape[1] // width - 2 * kv_heads
    if any(x.data_ptr() % (2 * x.element_size()) for x in (qkv, k_cache, v_cache)):
        raise ValueError("qkv_rotary: qkv or a cache begins at an odd element")
    bias = aligned(bias)
    q = torch.empty(tokens, heads, width, dtype=qkv.dtype, device=qkv.device)
    # A token is spread over as many blocks as are idle otherwise, eight of which a multiprocessor can hold.
    most = -(-(heads + 2 * kv_heads) // WARPS)
    shares = max(1, min(most, 8 * _triton.programs(qkv.device) // max(1, tokens)))
    KERNELS[qkv.dtype, k_cache.dtype == FP8].launch(
        (tokens * shares, 1), 0, qkv.device,
        qkv.data_ptr(), _cuda.pointer(bias), positions.data_ptr(), inv_freq.data_ptr(), slots.data_ptr(),
        _cuda.pointer(k_scale), _cuda.pointer(v_scale), q.data_ptr(), k_cache.data_ptr(), v_cache.data_ptr(),
        qkv.stride(0), len(k_cache),
        *k_cache.stride()[:2], *v_cache.stride()[:2], heads, kv_heads, width // 2, shares,
        positions.dtype == torch.float64, inv_freq.dtype == torch.float64, count(k_scale), count(v_scale),
    )  # fmt: skip
    return q
