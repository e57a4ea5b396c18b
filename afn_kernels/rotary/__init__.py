"""Rotary position embedding of q and k by arbitrary float positions: RoPE, and the paper's RoTE."""

import torch

from afn_kernels import _check
from afn_kernels._registry import Impl, Op

OP = Op("rotary", (Impl("reference", "afn_kernels.rotary.reference:rotary", why="plain PyTorch"),))


def rotary(
    q: torch.Tensor, k: torch.Tensor, positions: torch.Tensor, inv_freq: torch.Tensor, *, impl: str = "auto"
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rotates feature d with feature d + D/2 by the angle positions · inv_freq[d].

    (x_d, x_{d+D/2}) → (x_d cos φ − x_{d+D/2} sin φ, x_{d+D/2} cos φ + x_d sin φ), φ = position · inv_freq[d].
    Positions are floats: integers give RoPE, timestamps in 40 ms units give the paper's RoTE.

    Args:
        q: [T, Hq, D], any floating dtype.
        k: [T, Hk, D], same dtype.
        positions: [T] float32 (or float64), in units of one position.
        inv_freq: [D / 2] float32, usually rope_theta^(−2d / D).
        impl: "auto" or the name of an implementation.

    Returns:
        The rotated q and k, same shapes and dtype. Angles, cosines and sines are in the dtype of ``positions``.

    Raises:
        ValueError: shapes or dtypes that do not fit.

    Source: Su et al., 2021, arXiv:2104.09864; Goel et al., 2024, arXiv:2410.12109.
    """
    _check.same_dtype_and_device("rotary", q=q, k=k)
    if q.dim() != 3 or k.dim() != 3 or q.shape[::2] != k.shape[::2] or q.shape[-1] % 2:
        raise ValueError(f"rotary: q is {tuple(q.shape)}, k is {tuple(k.shape)}; expected [T, H, D] with D even")
    if positions.shape != q.shape[:1] or positions.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"rotary: positions are {positions.dtype} {tuple(positions.shape)} for {q.shape[0]} tokens")
    _check.last_dim("rotary", "inv_freq", inv_freq, q.shape[-1] // 2)
    return OP.choose(impl, q, k, positions, inv_freq)(q, k, positions, inv_freq)
