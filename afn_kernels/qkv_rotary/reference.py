import torch

from afn_kernels._fp8_scales import FP8
from afn_kernels.rotary.reference import rotate


def entries(x: torch.Tensor, scale: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor:
    """[T, Hk, D] as a cache of ``dtype`` keeps it: divided by the scale, the nearest value that the dtype has."""
    if scale is not None:
        x = x.to(torch.promote_types(x.dtype, torch.float32)) / scale.reshape(-1, 1)
    return x.clamp(-448.0, 448.0).to(FP8).view(torch.uint8) if dtype == FP8 else x.to(dtype)


def qkv_rotary(
    qkv: torch.Tensor,
    positions: torch.Tensor,
    inv_freq: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    slots: torch.Tensor,
    *,
    bias: torch.Tensor | None,
    k_scale: torch.Tensor | None,
    v_scale: torch.Tensor | None,
) -> torch.Tensor:
    kv_heads, width = k_cache.shape[1:]
    x = (qkv if bias is None else qkv + bias).unflatten(1, (-1, width))
    q, k, v = x.split((x.shape[1] - 2 * kv_heads, kv_heads, kv_heads), 1)
    angle_T1K = (positions[:, None] * inv_freq.to(positions.dtype))[:, None]
    cos, sin = angle_T1K.cos().to(q.dtype), angle_T1K.sin().to(q.dtype)
    kept = slots >= 0
    for cache, new, scale in ((k_cache, rotate(k, cos, sin), k_scale), (v_cache, v, v_scale)):
        made = entries(new.detach()[kept], scale, cache.dtype)
        cache.view(made.dtype).index_copy_(0, slots[kept], made)
    return rotate(q, cos, sin)
