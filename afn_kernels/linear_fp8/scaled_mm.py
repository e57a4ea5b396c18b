"""torch._scaled_mm: cuBLAS on a GPU, oneDNN on a CPU."""

import torch

from afn_kernels.linear_fp8.scaling import scaling
from afn_kernels.quantize_fp8.layout import scale_layout


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
    """A bias of 16 bits in the dtype that is returned is added by the product, other things in float32 behind it."""
    kind = scaling(x, w, scale_x, scale_w)
    blocks = kind in ("tiles", "blocks")
    alone = residual is None and not blocks and out_dtype != torch.float32
    fused = bias if alone and bias is not None and bias.dtype == out_dtype else None
    later = [one for one in (bias if fused is None else None, residual) if one is not None]
    dtype = torch.float32 if later or (blocks and out_dtype == torch.float16) else out_dtype
    if blocks:
        scale_x = _laid_out(scale_x, len(x), x.shape[1], 1)
        scale_w = _laid_out(scale_w, len(w), w.shape[1], 128 if kind == "tiles" else 1)
    elif kind == "row":
        scale_x, scale_w = scale_x.contiguous(), scale_w.contiguous()
    scale_w = scale_w if kind == "tensor" else scale_w.T
    y = torch._scaled_mm(x.contiguous(), w.contiguous().T, scale_x, scale_w, bias=fused, out_dtype=dtype)
    for one in later:
        y = y + one.float()
    return y.to(out_dtype)


def _laid_out(scale: torch.Tensor, rows: int, columns: int, height: int) -> torch.Tensor:
    """In the strides that cuBLAS wants, which are those of ``quantize_fp8``."""
    shape, strides = scale_layout(rows, columns, height, 128)
    if scale.stride() == strides:
        return scale
    return torch.empty_strided(shape, strides, dtype=scale.dtype, device=scale.device).copy_(scale)
