"""Rotary position embedding of q and k by arbitrary float positions: RoPE, and the paper's RoTE."""

import torch

from afn_kernels import _check, _triton
from afn_kernels._registry import Impl, Op


def _supports(q, k, positions, inv_freq, *, v, k_cache, v_cache, slots) -> str:
    if torch.is_grad_enabled() and (positions.requires_grad or inv_freq.requires_grad):
        return "gradients of positions and inv_freq are computed by the reference"
    if q.shape[-1] > 1024:
        return f"a head of {q.shape[-1]} elements does not fit one program"
    angles = _triton.supports(positions, inv_freq, q, dtypes=(*_triton.DTYPES, torch.float64))
    return angles or _triton.supports(q, k, v, k_cache, v_cache, slots)


OP = Op(
    "rotary",
    (
        _triton.implementation(
            "afn_kernels.rotary.boundary:rotary", _supports, why="q, k and the cache in one launch, angles once a token"
        ),
        Impl("reference", "afn_kernels.rotary.reference:rotary", why="plain PyTorch"),
    ),
)


def rotary(
    q: torch.Tensor,
    k: torch.Tensor,
    positions: torch.Tensor,
    inv_freq: torch.Tensor,
    *,
    v: torch.Tensor | None = None,
    k_cache: torch.Tensor | None = None,
    v_cache: torch.Tensor | None = None,
    slots: torch.Tensor | None = None,
    impl: str = "auto",
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rotates feature d with feature d + D/2 by the angle positions · inv_freq[d].

    (x_d, x_{d+D/2}) → (x_d cos φ − x_{d+D/2} sin φ, x_{d+D/2} cos φ + x_d sin φ), φ = position · inv_freq[d].
    Positions are floats: integers give RoPE, timestamps in 40 ms units give the paper's RoTE.

    The reference computes φ, cosines and sines in the dtype of ``positions`` and rounds them to that of q; the triton
    implementation takes the exact product of the float32 operands and keeps cosines and sines in float32.

    With ``slots`` the rotated k and v are also written into the caches: what index_copy_ would do, in the same pass.
    That changes the caches in place and has no gradient.

    Args:
        q: [T, Hq, D], any floating dtype; like k and v it may be a slice of one projection.
        k: [T, Hk, D], same dtype.
        positions: [T] float32 (or float64), in units of one position.
        inv_freq: [D / 2] float32 (or float64), usually rope_theta^(−2d / D).
        v: like k.
        k_cache: [rows, Hk, D], or [B, capacity, Hk, D] or [pages, page_size, Hk, D], whose first two axes are one
            run of rows; dtype of q.
        v_cache: like k_cache.
        slots: [T] int64, the row of the cache that takes each token: sequence · capacity + position, or
            page · page_size + offset. No row twice; a negative one writes nothing.
        impl: "auto" or the name of an implementation.

    Returns:
        The rotated q and k, same shapes and dtype.

    Raises:
        ValueError: shapes or dtypes that do not fit; some but not all of v, the caches and ``slots``; a slot past the
            cache (on the CPU; a GPU writes nothing then); gradients wanted of a call that writes a cache.

    Source: Su et al., 2021, arXiv:2104.09864; Goel et al., 2024, arXiv:2410.12109.
    """
    _check.same_dtype_and_device("rotary", q=q, k=k)
    if q.dim() != 3 or k.dim() != 3 or q.shape[::2] != k.shape[::2]:
        raise _check.misfit("rotary", q=(q, "T Hq D"), k=(k, "T Hk D"))
    if q.shape[-1] % 2:
        raise ValueError(f"rotary: heads of {q.shape[-1]} elements have no pairs to rotate")
    _check.positions("rotary", positions, q.shape[0])
    _check.inv_freq("rotary", inv_freq, q.shape[-1] // 2, q.device)
    given = [name for name, x in zip(_CACHE, (v, k_cache, v_cache, slots), strict=True) if x is not None]
    if given:
        if len(given) < len(_CACHE):
            raise ValueError(f"rotary: {', '.join(given)} given, a cache needs all of {', '.join(_CACHE)}")
        k_cache, v_cache = _rows(q, k, v, k_cache, v_cache, slots)
    options = {"v": v, "k_cache": k_cache, "v_cache": v_cache, "slots": slots}
    return OP.choose(impl, q, k, positions, inv_freq, **options)(q, k, positions, inv_freq, **options)


_CACHE = ("v", "k_cache", "v_cache", "slots")


def _rows(q, k, v, k_cache, v_cache, slots) -> tuple[torch.Tensor, torch.Tensor]:
    """The caches as [rows, Hk, D], which share their memory, once everything fits."""
    _check.same_as("rotary", "v", v, "k", k)
    _check.same_as("rotary", "v_cache", v_cache, "k_cache", k_cache)
    _check.same_dtype_and_device("rotary", q=q, k_cache=k_cache)
    if k_cache.dim() not in (3, 4) or k_cache.shape[-2:] != k.shape[1:]:
        raise _check.misfit("rotary", k=(k, "T Hk D"), k_cache=(k_cache, "... Hk D"))
    _check.slots("rotary", slots, k)
    if torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v, k_cache, v_cache)):
        raise ValueError("rotary: writing a cache has no gradient; call it under torch.no_grad()")
    k_cache, v_cache = (_check.cache_rows("rotary", n, x) for n, x in (("k_cache", k_cache), ("v_cache", v_cache)))
    _check.slots_within("rotary", slots, len(k_cache))
    return k_cache, v_cache
