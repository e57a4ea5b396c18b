import torch

from afn_kernels.quantize_fp8.reference import quantize_fp8


def rms_norm(
    x: torch.Tensor,
    weight: torch.Tensor | None,
    *,
    residual: torch.Tensor | None,
    eps: float,
    offset: float | None,
    block: tuple[int, int] | None = None,
) -> torch.Tensor | tuple[torch.Tensor, ...]:
    h = x if residual is None else x + residual
    wide = torch.promote_types(h.dtype, torch.float32)
    n = h.to(wide)
    n = n * torch.rsqrt(n.square().mean(-1, keepdim=True) + eps)
    if weight is None:
        y = n
    elif offset is None:
        y = weight * n.to(h.dtype)
    else:
        y = n * (offset + weight.to(wide))
    y = y.to(x.dtype)
    if block is not None:
        found = quantize_fp8(y, height=block[0], width=block[1], transpose=False)
        return found if residual is None else (*found, h)
    return y if residual is None else (y, h)
