import torch


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, interleaved: bool = False) -> torch.Tensor:
    """The first pairs of features turned, as many as there are cosines; the features behind them pass."""
    width = 2 * cos.shape[-1]
    if interleaved:
        a, b = x[..., :width:2], x[..., 1:width:2]
        turned = [torch.stack((a * cos - b * sin, b * cos + a * sin), dim=-1).flatten(-2)]
    else:
        a, b = x[..., :width].chunk(2, dim=-1)
        turned = [a * cos - b * sin, b * cos + a * sin]
    return torch.cat((*turned, x[..., width:]), dim=-1)


def rotary(
    q: torch.Tensor,
    k: torch.Tensor,
    positions: torch.Tensor,
    inv_freq: torch.Tensor,
    *,
    interleaved: bool,
    v: torch.Tensor | None,
    k_cache: torch.Tensor | None,
    v_cache: torch.Tensor | None,
    slots: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    positions_TK = positions if positions.dim() == 2 else positions[:, None]
    angle_T1K = (positions_TK * inv_freq.to(positions.dtype))[:, None]
    cos, sin = angle_T1K.cos().to(q.dtype), angle_T1K.sin().to(q.dtype)
    q, k = rotate(q, cos, sin, interleaved), rotate(k, cos, sin, interleaved)
    if slots is not None:
        kept = slots >= 0
        for cache, new in ((k_cache, k), (v_cache, v)):
            cache.index_copy_(0, slots[kept].long(), new[kept])
    return q, k


def apply_rotary(
    q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, *, interleaved: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    cos, sin = cos.to(q.dtype)[:, None], sin.to(q.dtype)[:, None]
    return rotate(q, cos, sin, interleaved), rotate(k, cos, sin, interleaved)
