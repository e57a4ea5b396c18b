"""Residual vector quantisation: at each level the code nearest to what the levels before have left."""

import torch

from afn_kernels import _check, _triton
from afn_kernels._registry import Impl, Op


def _supports(x, codebooks, *, levels, first) -> str:
    return _triton.supports(x, codebooks)


OP = Op(
    "residual_quantize",
    (
        _triton.implementation(
            "afn_kernels.residual_quantize.boundary:residual_quantize",
            _supports,
            avoid=lambda x, *_, **__: _triton.avoid(x),
            why="all levels in one launch; distances never leave the chip",
        ),
        Impl("reference", "afn_kernels.residual_quantize.reference:residual_quantize", why="plain PyTorch"),
    ),
)


def residual_quantize(
    x: torch.Tensor,
    codebooks: torch.Tensor,
    levels: torch.Tensor | int | None = None,
    first: torch.Tensor | int = 0,
    *,
    impl: str = "auto",
) -> tuple[torch.Tensor, torch.Tensor]:
    """c_l = argmin_k |e_lk|² − 2 r_l · e_lk with r_l = x − Σ e_{j, c_j}, the sum over the levels j < l that were taken.

    The lowest code wins a tie. Products and sums are float32 in every dtype (float64 for float64) and in Triton never
    TF32, which would take other codes: the code taken is the nearest but for rounding, its squared distance above the
    least by no more than 2 · (D + 4) · 2⁻²³ · (2 |r| |e| + |e|²) for the longest e of the level. Implementations add up
    in different orders, so of codes that near to each other they may take different ones. The reference on a GPU is as
    exact as ``torch.backends.cuda.matmul`` lets products be.

    A distance that is NaN counts as infinite: a row with a NaN takes code 0 at every level. There is no gradient; what
    a quantiser passes straight through is ``x + (total - x).detach()``.

    Args:
        x: [T, D], any floating dtype; T may be 0.
        codebooks: [L, K, D], same dtype as x, or float32 where x is bfloat16 or float16; L may be 0, K may not.
        levels: the level at which each row ends, int64 [T] or one number for all, 0 to L; None is L.
        first: the level at which each row begins, the same way. Levels before it and from ``levels`` on have code −1
            and add nothing.
        impl: "auto" or the name of an implementation.

    Returns:
        codes [T, L] int64; total [T, D], the sum of the codes taken, float32, or float64 for float64.

    Raises:
        ValueError: shapes, dtypes or levels that do not fit; an implementation that cannot run here.

    Source: Zeghidour et al., 2021, arXiv:2107.03312, section III-C.
    """
    _check.are_tensors("residual_quantize", codebooks=codebooks)
    _check.mixed("residual_quantize", x, codebooks=codebooks)
    if x.dim() != 2 or codebooks.dim() != 3 or codebooks.shape[2] != x.shape[1] or not codebooks.shape[1]:
        raise _check.misfit("residual_quantize", x=(x, "T D"), codebooks=(codebooks, "L K D"))
    x, codebooks = x.detach(), codebooks.detach()
    limits = {
        "levels": _of_rows("levels", len(codebooks) if levels is None else levels, x, len(codebooks)),
        "first": _of_rows("first", first, x, len(codebooks)),
    }
    return OP.choose(impl, x, codebooks, **limits)(x, codebooks, **limits)


def _of_rows(name: str, given: torch.Tensor | int, x: torch.Tensor, most: int) -> torch.Tensor:
    if not isinstance(given, torch.Tensor):
        if not 0 <= given <= most:
            raise ValueError(f"residual_quantize: {name} is {given}, expected 0 to {most}")
        return torch.full((len(x),), given, dtype=torch.int64, device=x.device)
    _check.beside("residual_quantize", name, given, x)
    if given.shape != x.shape[:1] or given.dtype != torch.int64:
        found = f"{name} is {given.dtype} {list(given.shape)}"
        raise ValueError(f"residual_quantize: {found}, expected int64 [{len(x)}]")
    if _check.readable(given) and given.numel() and not 0 <= int(given.min()) <= int(given.max()) <= most:
        found = f"{name} runs from {int(given.min())} to {int(given.max())}"
        raise ValueError(f"residual_quantize: {found}, expected 0 to {most}")
    return given
