"""Persistent blocks with a ring of tensor copies and products of warpgroups: csrc/cuda/linear_fp8.cu."""

import torch

from afn_kernels import _cuda, _tensor_map, _triton
from afn_kernels.linear_fp8.config import LARGE, MEDIUM, SMALL, choose
from afn_kernels.linear_fp8.scaling import scaling

TYPES = (torch.float32, torch.bfloat16, torch.float16)  # as the kernel numbers them
SCALED = {"tensor": "at_end", "row": "at_end", "tiles": "by_tile", "blocks": "by_row"}
KERNELS = {
    (tile, scaled): _cuda.Kernel(
        "linear_fp8", f"linear_fp8_{tile.rows}x{tile.columns}_{scaled}", "128s128sPPPPPqqqqqqiiiiiiiii4x", tile.threads
    )
    for tile in (LARGE, MEDIUM, SMALL)
    for scaled in ("at_end", "by_tile", "by_row")
}


def wide(x: torch.Tensor | None) -> bool:
    """Whether four columns from any multiple of four on can be read at once."""
    if x is None or x.stride(1) != 1:
        return False
    whole = 4 * x.element_size()
    return x.shape[1] % 4 == 0 and x.stride(0) % 4 == 0 and x.data_ptr() % whole == 0


def product(
    x: torch.Tensor,
    w: torch.Tensor,
    scale_x: torch.Tensor,
    scale_w: torch.Tensor,
    bias: torch.Tensor | None,
    residual: torch.Tensor | None,
    out_dtype: torch.dtype,
) -> torch.Tensor:
    """y [M, N], none of M, N and K zero."""
    (rows, inner), columns = x.shape, len(w)
    y = torch.empty(rows, columns, dtype=out_dtype, device=x.device)
    processors = _triton.programs(x.device)
    tile, scaled = choose(rows, columns, processors), SCALED[scaling(x, w, scale_x, scale_w)]
    x, w = _tensor_map.mappable(x), _tensor_map.mappable(w)
    strides = [n for scale in (scale_x, scale_w) for n in (scale.stride() if scale.dim() else (0, 0))]
    strides += (0, 0) if residual is None else residual.stride()
    bias = None if bias is None else bias.contiguous()
    count = tile.count(rows, columns)
    KERNELS[tile, scaled].launch(
        (min(count, processors), 1), tile.shared(scaled != "at_end"), x.device,
        _tensor_map.encode(x, (tile.rows, 128), 128), _tensor_map.encode(w, (tile.columns, 128), 128),
        scale_x.data_ptr(), scale_w.data_ptr(), _cuda.pointer(bias), _cuda.pointer(residual), y.data_ptr(),
        *strides, rows, columns, inner, count,
        *(0 if one is None else TYPES.index(one.dtype) for one in (bias, residual, y)),
        columns % 4 == 0, wide(residual),
    )  # fmt: skip
    return y
