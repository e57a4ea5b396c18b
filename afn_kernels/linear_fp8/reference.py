import torch

from afn_kernels.linear_fp8.scaling import BLOCK, scaling


def linear_fp8(
    x: torch.Tensor,
    w: torch.Tensor,
    scale_x: torch.Tensor,
    scale_w: torch.Tensor,
    *,
    bias: torch.Tensor | None,
    residual: torch.Tensor | None,
    out_dtype: torch.dtype,
) -> torch.Tensor:
    (rows, inner), columns, kind = x.shape, len(w), scaling(x, w, scale_x, scale_w)
    wide = torch.float64 if out_dtype == torch.float64 else torch.float32
    scale_x, scale_w = scale_x.to(wide), scale_w.to(wide)
    if kind == "tiles":
        scale_w = scale_w.repeat_interleave(BLOCK, 0)[:columns]
    y = torch.zeros(rows, columns, dtype=wide, device=x.device)
    for number, start in enumerate(range(0, inner, BLOCK)):
        part = x[:, start : start + BLOCK].to(wide) @ w[:, start : start + BLOCK].to(wide).T
        if kind in ("tiles", "blocks"):
            part = part * (scale_x[:, number, None] * scale_w[:, number])
        y = y + part
    if kind in ("tensor", "row"):
        y = y * (scale_x * (scale_w.T if kind == "row" else scale_w))
    y = y if bias is None else y + bias.to(wide)
    return (y if residual is None else y + residual.to(wide)).to(out_dtype)
