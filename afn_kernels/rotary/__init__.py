"""Rotary position embedding of q and k by arbitrary float positions: RoPE, and the paper's RoTE."""

from collections.abc import Sequence

import torch

from afn_kernels import _check, _triton
from afn_kernels._kept import kept
from afn_kernels._registry import Impl, Op
from afn_kernels.cpu import avoid as _outside_inference
from afn_kernels.cpu import supports as _row_supports
from afn_kernels.cpu import usable, wants_gradient

MOST_PAIRS = 512  # of features that the compiled kernel turns, as in csrc/include/afn/rows_simd.h


def _supports(q, k, positions, inv_freq, *, interleaved, v, k_cache, v_cache, slots) -> str:
    if torch.is_grad_enabled() and (positions.requires_grad or inv_freq.requires_grad):
        return "gradients of positions and inv_freq are computed by the reference"
    if q.shape[-1] > 1024:
        return f"a head of {q.shape[-1]} elements does not fit one program"
    angles = _triton.supports(positions, inv_freq, q, dtypes=(*_triton.DTYPES, torch.float64))
    return angles or _triton.supports(q, k, v, k_cache, v_cache, slots)


def _supports_given(q, k, cos, sin, *, interleaved) -> str:
    if torch.is_grad_enabled() and (cos.requires_grad or sin.requires_grad):
        return "gradients of cos and sin are computed by the reference"
    if q.shape[-1] > 1024:
        return f"a head of {q.shape[-1]} elements does not fit one program"
    return _triton.supports(q, k, cos, sin)


def _supports_cpu(q, k, positions, inv_freq, *, interleaved, v, k_cache, v_cache, slots) -> str:
    if inv_freq.shape[0] > MOST_PAIRS:
        return f"{inv_freq.shape[0]} pairs of features are above {MOST_PAIRS}"
    return _row_supports(q, k, v, k_cache, v_cache) or wants_gradient(positions, inv_freq)


OP = Op(
    "rotary",
    (
        _triton.implementation(
            "afn_kernels.rotary.boundary:rotary", _supports, why="q, k and the cache in one launch, angles once a token"
        ),
        Impl(
            "cpu",
            "afn_kernels.rotary.boundary:rotary_cpu",
            available=usable,
            supports=_supports_cpu,
            avoid=_outside_inference,
            why="compiled, q, k and the cache in one pass, angles once a token, rounded as the reference's",
        ),
        Impl("reference", "afn_kernels.rotary.reference:rotary", why="plain PyTorch"),
    ),
)

GIVEN = Op(
    "apply_rotary",
    (
        _triton.implementation(
            "afn_kernels.rotary.boundary:apply_rotary", _supports_given, why="q and k in one launch, rounded once"
        ),
        Impl("reference", "afn_kernels.rotary.reference:apply_rotary", why="plain PyTorch"),
    ),
)


def rotary(
    q: torch.Tensor,
    k: torch.Tensor,
    positions: torch.Tensor,
    inv_freq: torch.Tensor,
    *,
    rotary_dim: int | None = None,
    interleaved: bool = False,
    sections: Sequence[int] | None = None,
    sections_interleaved: bool = False,
    v: torch.Tensor | None = None,
    k_cache: torch.Tensor | None = None,
    v_cache: torch.Tensor | None = None,
    slots: torch.Tensor | None = None,
    impl: str = "auto",
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rotates feature d with feature d + R/2 by the angle positions · inv_freq[d]; R is D, or ``rotary_dim``.

    (x_d, x_{d+R/2}) → (x_d cos φ − x_{d+R/2} sin φ, x_{d+R/2} cos φ + x_d sin φ), φ = position · inv_freq[d].
    Positions are floats: integers give RoPE, timestamps in 40 ms units give the paper's RoTE. Features from R on pass
    unchanged. ``interleaved`` pairs 2d with 2d + 1, as GPT-J and Cohere do. ``sections`` are those of M-RoPE: positions
    have several axes (time, height, width), and each pair takes one of them.

    The reference computes φ, cosines and sines in the dtype of ``positions`` and rounds them to that of q; the triton
    implementation takes the exact product of the float32 operands and keeps cosines and sines in float32.

    With ``slots`` the rotated k and v are also written into the caches: what index_copy_ would do, in the same pass.
    That changes the caches in place and has no gradient.

    Args:
        q: [T, Hq, D], any floating dtype; like k and v it may be a slice of one projection.
        k: [T, Hk, D], same dtype.
        positions: [T] float32 (or float64), in units of one position; [axes, T] with ``sections``.
        inv_freq: [R / 2] float32 (or float64), usually rope_theta^(−2d / R).
        rotary_dim: R, even; default D.
        interleaved: pairs are neighbours, not halves of the head.
        sections: how many of the R / 2 pairs take the position of each axis: the first ones that of axis 0, and so on
            (``mrope_section`` of Qwen2-VL and Qwen2.5-Omni).
        sections_interleaved: pair d takes axis d mod axes as long as that has pairs left in its section, else axis 0
            (Qwen3-VL and Qwen3-Omni).
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

    Source: Su et al., 2021, arXiv:2104.09864; Goel et al., 2024, arXiv:2410.12109; sections: Wang et al., 2024,
    arXiv:2409.12191.
    """
    _check.same_dtype_and_device("rotary", q=q, k=k)
    if q.dim() != 3 or k.dim() != 3 or q.shape[::2] != k.shape[::2]:
        raise _check.misfit("rotary", q=(q, "T Hq D"), k=(k, "T Hk D"))
    pairs = _pairs("rotary", q, rotary_dim)
    if sections is not None:
        positions = _of_each_pair(positions, q, tuple(sections), sections_interleaved, pairs)
    elif sections_interleaved:
        raise ValueError("rotary: sections_interleaved without sections")
    else:
        _check.positions("rotary", positions, q)
    _check.inv_freq("rotary", inv_freq, pairs, q.device)
    given = [name for name, x in zip(_CACHE, (v, k_cache, v_cache, slots), strict=True) if x is not None]
    if given:
        if len(given) < len(_CACHE):
            raise ValueError(f"rotary: {', '.join(given)} given, a cache needs all of {', '.join(_CACHE)}")
        k_cache, v_cache = _rows(q, k, v, k_cache, v_cache, slots)
    options = {"interleaved": interleaved, "v": v, "k_cache": k_cache, "v_cache": v_cache, "slots": slots}
    return OP.choose(impl, q, k, positions, inv_freq, **options)(q, k, positions, inv_freq, **options)


def apply_rotary(
    q: torch.Tensor,
    k: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    *,
    rotary_dim: int | None = None,
    interleaved: bool = False,
    impl: str = "auto",
) -> tuple[torch.Tensor, torch.Tensor]:
    """What ``rotary`` does, with cosines and sines that somebody has made: (x_d, x_{d+R/2}) → as there.

    For a model that makes them once for all layers, as those of transformers do; ``rotary`` has exact angles at any
    position, these have the precision of their dtype.

    Args:
        q: [T, Hq, D], any floating dtype; like k it may be a slice of one projection.
        k: [T, Hk, D], same dtype.
        cos: [T, R / 2], or [T, R] as transformers makes them: twice the same half, or with ``interleaved`` each value
            twice. Any floating dtype, and no gradient from Triton.
        sin: like cos.
        rotary_dim: R, even; default D.
        interleaved: pairs are neighbours (2d, 2d + 1), not halves of the head (d, d + R / 2).
        impl: "auto" or the name of an implementation.

    Returns:
        The rotated q and k, same shapes and dtype. The reference rounds cos and sin to the dtype of q; the triton
        implementation computes in float32.

    Raises:
        ValueError: shapes or dtypes that do not fit.

    Source: Su et al., 2021, arXiv:2104.09864.
    """
    _check.same_dtype_and_device("apply_rotary", q=q, k=k)
    if q.dim() != 3 or k.dim() != 3 or q.shape[::2] != k.shape[::2]:
        raise _check.misfit("apply_rotary", q=(q, "T Hq D"), k=(k, "T Hk D"))
    pairs = _pairs("apply_rotary", q, rotary_dim)
    _check.same_as("apply_rotary", "sin", sin, "cos", cos)
    if cos.shape not in ((len(q), pairs), (len(q), 2 * pairs)) or cos.device != q.device:
        found = f"cos is {tuple(cos.shape)} on {cos.device}"
        hint = "; of a batch: q.flatten(0, 1), cos.flatten(0, 1)" if cos.dim() == 3 else ""
        expected = f"[{len(q)}, {pairs}] or [{len(q)}, {2 * pairs}] on {q.device}"
        raise ValueError(f"apply_rotary: {found}, expected {expected}{hint}")
    if cos.shape[1] != pairs:
        cos, sin = (x[:, ::2] if interleaved else x[:, :pairs] for x in (cos, sin))
    return GIVEN.choose(impl, q, k, cos, sin, interleaved=interleaved)(q, k, cos, sin, interleaved=interleaved)


def _pairs(op: str, q: torch.Tensor, rotary_dim: int | None) -> int:
    """How many pairs of features turn."""
    width = q.shape[-1]
    if rotary_dim is None:
        if width % 2:
            raise ValueError(f"{op}: heads of {width} elements have no pairs to rotate")
        return width // 2
    if not 0 < rotary_dim <= width or rotary_dim % 2:
        raise ValueError(f"{op}: rotary_dim={rotary_dim}, expected an even number up to the {width} of a head")
    return rotary_dim // 2


def _of_each_pair(
    positions: torch.Tensor, q: torch.Tensor, sections: tuple[int, ...], interleaved: bool, pairs: int
) -> torch.Tensor:
    """Positions [axes, T] as [T, pairs]: each pair has that of its axis."""
    _check.beside("rotary", "positions", positions, q)
    tokens = len(q)
    if positions.shape != (len(sections), tokens) or positions.dtype not in (torch.float32, torch.float64):
        hint = "" if positions.dtype.is_floating_point else ", position_ids.flatten(1).float() for one"
        found = f"positions are {positions.dtype} {tuple(positions.shape)} for {tokens} tokens"
        raise ValueError(f"rotary: {found}, expected float32 or float64 [{len(sections)}, {tokens}]{hint}")
    if sum(sections) != pairs or min(sections) < 0:
        raise ValueError(f"rotary: sections {sections} do not make up the {pairs} pairs of features")
    return positions.t().index_select(1, _axes(sections, interleaved, positions.device))


@kept(most=32)
def _axes(sections: tuple[int, ...], interleaved: bool, device: torch.device) -> torch.Tensor:
    """The axis of each pair."""
    if interleaved:
        count = len(sections)
        axes = [d % count if d < count * sections[d % count] else 0 for d in range(sum(sections))]
    else:
        axes = [axis for axis, n in enumerate(sections) for _ in range(n)]
    return torch.tensor(axes, dtype=torch.int64, device=device)


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
