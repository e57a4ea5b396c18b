import torch


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)


def rotary(
    q: torch.Tensor,
    k: torch.Tensor,
    positions: torch.Tensor,
    inv_freq: torch.Tensor,
    *,
    v: torch.Tensor | None,
    k_cache: torch.Tensor | None,
    v_cache: torch.Tensor | None,
    slots: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    angle_T1K = (positions[:, None] * inv_freq.to(positions.dtype))[:, None]
    cos, sin = angle_T1K.cos().to(q.dtype), angle_T1K.sin().to(q.dtype)
    q, k = rotate(q, cos, sin), rotate(k, cos, sin)
    if slots is not None:
        kept = slots >= 0
        for cache, new in ((k_cache, k), (v_cache, v)):
            cache.index_copy_(0, slots[kept].long(), new[kept])
    return q, k
