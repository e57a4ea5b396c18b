"""Product of FP8 matrices (e4m3) with the scales of ``quantize_fp8``, bias and residual."""

import torch

from afn_kernels import _check, _cuda, _device, _versions
from afn_kernels._fp8_scales import FP8
from afn_kernels._registry import Impl, Op, constant
from afn_kernels.linear_fp8.scaling import scaling

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def _scaled_mm(x, w, scale_x, scale_w, *, bias, residual, out_dtype) -> str:
    (rows, inner), columns, kind = x.shape, len(w), scaling(x, w, scale_x, scale_w)
    if out_dtype not in DTYPES or scale_x.dtype != torch.float32:
        return "float64 is computed by the reference"
    if not (rows and inner and columns):
        return "there is nothing to multiply"
    if x.device.type == "cpu":
        return "" if kind == "tensor" else "on a CPU PyTorch takes one scale for a tensor alone"
    if inner % 16 or columns % 16:
        return f"K = {inner} and N = {columns} are not both multiples of 16"
    blocks, hopper = kind in ("tiles", "blocks"), _device.capability(x.device) == _device.HOPPER
    if blocks and inner % 128:
        return f"K = {inner} is no multiple of 128"
    if blocks and not hopper:
        return "blocks of 128 are for Hopper"
    if kind == "tiles" and inner // 128 % 4:  # PyTorch has laid out such scales wrongly, without an error
        return f"K = {inner} is {inner // 128} blocks of 128, and scales of tiles come by fours"
    alone = out_dtype == torch.bfloat16 == (torch.bfloat16 if bias is None else bias.dtype) and residual is None
    if (blocks or (kind == "row" and not alone)) and not (hopper and _cublas_scales()):
        what = "blocks of 128" if blocks else "rows in another dtype than bfloat16"
        return f"{what} are for Hopper, by PyTorch from 2.9 on with CUDA from 12.9 on"
    return _device.fp8(x.device)


@constant
def _cublas_scales() -> bool:
    """Whether PyTorch asks cuBLAS for scales of blocks, and of rows: its own kernel of rows returns bfloat16."""
    return _versions.number(torch.__version__) >= (2, 9) and _versions.number(torch.version.cuda or "0.0") >= (12, 9)


def _kernel(x, w, scale_x, scale_w, *, bias, residual, out_dtype) -> str:
    (rows, inner), columns = x.shape, len(w)
    if not (rows and inner and columns):
        return "there is nothing to multiply"
    if inner % 16:
        return f"K = {inner}; tensor maps take multiples of 16"
    if out_dtype not in DTYPES:
        return "float64 is computed by the reference"
    codes = _cuda.supports(x, w, dtypes=(FP8,))
    return codes or _cuda.supports(x.new_empty(0, dtype=torch.float32), scale_x, bias, residual, dtypes=DTYPES)


def _on_cpu(x, *_, **__) -> str:
    return "on a CPU the reference adds up in an order that is written down" if x.device.type == "cpu" else ""


OP = Op(
    "linear_fp8",
    (
        _cuda.implementation(
            "afn_kernels.linear_fp8.boundary:linear_fp8",
            _kernel,
            why="blocks are scaled between Hopper's products; every scaling, M and N",
            available=_cuda.hopper,
        ),
        Impl(
            "scaled_mm",
            "afn_kernels.linear_fp8.scaled_mm:linear_fp8",
            supports=_scaled_mm,
            avoid=_on_cpu,
            why="torch._scaled_mm: cuBLAS",
        ),
        Impl("reference", "afn_kernels.linear_fp8.reference:linear_fp8", why="plain PyTorch"),
    ),
)


def linear_fp8(
    x: torch.Tensor,
    w: torch.Tensor,
    scale_x: torch.Tensor,
    scale_w: torch.Tensor,
    bias: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
    *,
    out_dtype: torch.dtype = torch.bfloat16,
    impl: str = "auto",
) -> torch.Tensor:
    """y = Σ_b s_x,b · s_w,b · (x_b w_bᵀ) + bias + residual over blocks b of 128 of K, of which the last may be short.

    Products of e4m3 values are exact in float32. The products of a block are added in float32, then block after block
    from the first, each times the product of its scales; what all blocks share is applied to the whole sum. Bias and
    residual are added to that in float32, and the result is rounded once. Hopper's matrix units keep about 14 bits of
    a block's sum: an error below 136 · 2⁻¹³ of its largest product or partial sum, times its scales. A NaN among codes
    or scales makes NaN what it is multiplied into, an infinite scale gives ±∞, or NaN where it meets a sum of zero.

    There is no gradient: dx = dy w and dw = dyᵀ x are two more calls, on codes quantised along the other axis.

    Args:
        x: [M, K] float8_e4m3fn.
        w: [N, K] float8_e4m3fn.
        scale_x: float32 as ``quantize_fp8`` returns it for x: [] with [] of w (block "tensor"), [M, 1] with [N, 1]
            ("row"), [M, ⌈K / 128⌉] ((1, 128)) with [⌈N / 128⌉, ⌈K / 128⌉] ((128, 128)) or with [N, ⌈K / 128⌉]
            ((1, 128)); any strides. float64 by the reference alone.
        scale_w: that of w, in the same dtype.
        bias: [N], any floating dtype of 16 bits or more.
        residual: [M, N], the same.
        out_dtype: float32, bfloat16, float16, or float64, in which the reference then computes.
        impl: "auto" or the name of an implementation.

    Returns:
        y [M, N] in out_dtype; bias and residual alone where K is 0.

    Raises:
        ValueError: dtypes, shapes or scales that do not fit; an argument that requires a gradient.

    Source: Micikevicius et al., 2022, arXiv:2209.05433; blocks and sums as in DeepSeek-V3, 2024, arXiv:2412.19437.
    """
    _check.alike("linear_fp8", x=x, w=w)
    if x.dtype != FP8 or x.dim() != 2 or w.dim() != 2 or x.shape[1] != w.shape[1]:
        found = f"x is {x.dtype} {tuple(x.shape)}, w {tuple(w.shape)}"
        raise ValueError(f"linear_fp8: {found}, expected float8_e4m3fn [M, K] and [N, K]")
    _check.alike("linear_fp8", scale_x=scale_x, scale_w=scale_w)
    _check.beside("linear_fp8", "scale_x", scale_x, x)
    if scale_x.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"linear_fp8: the scales are {scale_x.dtype}, expected float32")
    if not scaling(x, w, scale_x, scale_w):
        found = f"scales {tuple(scale_x.shape)} and {tuple(scale_w.shape)} of x {tuple(x.shape)} and w {tuple(w.shape)}"
        wanted = "[] and [], [M, 1] and [N, 1], or [M, ⌈K / 128⌉] and [⌈N / 128⌉, ⌈K / 128⌉] or [N, ⌈K / 128⌉]"
        raise ValueError(f"linear_fp8: {found}, expected {wanted}")
    if out_dtype not in (*DTYPES, torch.float64):
        raise ValueError(f"linear_fp8: out_dtype is {out_dtype}, expected float32, bfloat16, float16 or float64")
    for name, added, shape in (("bias", bias, w.shape[:1]), ("residual", residual, (len(x), len(w)))):
        if added is None:
            continue
        _check.beside("linear_fp8", name, added, x)
        if added.shape != shape or not added.is_floating_point() or added.dtype.itemsize < 2:
            found = f"{name} is {added.dtype} {tuple(added.shape)}"
            raise ValueError(f"linear_fp8: {found}, expected floating {tuple(shape)} of 16 bits or more")
    if torch.is_grad_enabled():
        given = {"x": x, "w": w, "scale_x": scale_x, "scale_w": scale_w, "bias": bias, "residual": residual}
        if wanting := [name for name, one in given.items() if one is not None and one.requires_grad]:
            raise ValueError(f"linear_fp8: it has no gradient, and {wanting[0]} requires one; detach it")
    args, options = (x, w, scale_x, scale_w), {"bias": bias, "residual": residual, "out_dtype": out_dtype}
    return OP.choose(impl, *args, **options)(*args, **options)
