"""Heads to the ranks that attend with them and back: the copies before and after an all-to-all, one pass each."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from afn_kernels import _check, _cuda, _triton
from afn_kernels._registry import Impl, Op

Ranges = Sequence[tuple[int, int, int, int]]
WIDEST = 1024


def _avoid(x: torch.Tensor, *_, **__) -> str:
    """On a GPU "auto" takes the kernel untimed: besides it there are only slices and concatenations, one per peer."""
    return "emulated kernels are for tests" if x.device.type == "cpu" else ""


def _width(head_dim: int, size: int, pieces: int) -> str:
    if head_dim * size % (16 * pieces) or head_dim > WIDEST:
        what = "halves of heads" if pieces == 2 else "heads"
        return f"head_dim {head_dim}: {what} must be multiples of 16 bytes, of at most {WIDEST} elements"
    return ""


def _supports_pack(q, k, v, heads, *, positions, inv_freq) -> str:
    if torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in (positions, inv_freq)):
        return "gradients of positions and inv_freq are computed by the reference"
    wrong = _cuda.supports(positions, inv_freq, dtypes=(torch.float32,))
    wrong = wrong or _cuda.supports(q, k, v, positions, inv_freq, dtypes=_triton.DTYPES)
    return wrong or _width(q.shape[2], q.element_size(), 1 if positions is None else 2)


def _supports_unpack(flat, heads, head_dim) -> str:
    return _cuda.supports(flat, dtypes=_triton.DTYPES) or _width(head_dim, flat.element_size(), 1)


PACK = Op(
    "pack_heads",
    (
        _cuda.implementation(
            "afn_kernels.pack_heads.boundary:pack_heads", _supports_pack, _avoid, why="one pass, rotary on the way"
        ),
        Impl("reference", "afn_kernels.pack_heads.reference:pack_heads", why="plain PyTorch"),
    ),
)
UNPACK = Op(
    "unpack_heads",
    (
        _cuda.implementation("afn_kernels.pack_heads.boundary:unpack_heads", _supports_unpack, _avoid, why="one pass"),
        Impl("reference", "afn_kernels.pack_heads.reference:unpack_heads", why="plain PyTorch"),
    ),
)


def pack_heads(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    heads: Ranges,
    *,
    positions: torch.Tensor | None = None,
    inv_freq: torch.Tensor | None = None,
    impl: str = "auto",
) -> torch.Tensor:
    """What an all-to-all sends so that peers attend with their heads: part p = [q[:, a:b], k[:, c:d], v[:, c:d]].

    Parts follow each other, each contiguous [T, heads of peer p, D]: its query heads a .. b − 1, its keys' heads
    c .. d − 1, the same of its values. A KV head may go to several peers; its gradient is the sum of theirs, added in
    float32. Ranks that receive [T of each peer, own heads, D] can attend to it as it lies.

    With ``positions``, q and k are rotated on the way as ``rotary`` does: by angles positions · inv_freq[d].

    Args:
        q: [T, Hq, D], any floating dtype; like k and v it may be a slice of one projection.
        k, v: [T, Hk, D], same dtype.
        heads: (a, b, c, d) of every peer; its query heads begin where those of the peer before end.
        positions: [T] float32 (or float64), in units of one position.
        inv_freq: [D / 2] float32.
        impl: "auto" or the name of an implementation.

    Returns:
        [T · Σ (b − a + 2 (d − c)) · D], the parts of all peers.

    Raises:
        ValueError: shapes or dtypes that do not fit; query heads that are left out or sent twice; KV heads that are
            not there; positions without inv_freq.

    Source: Jacobs et al., 2023, arXiv:2309.14509.
    """
    _check.same_dtype_and_device("pack_heads", q=q, k=k, v=v)
    if q.dim() != 3 or k.dim() != 3 or k.shape != v.shape or q.shape[::2] != k.shape[::2]:
        raise _check.misfit("pack_heads", q=(q, "T Hq D"), k=(k, "T Hk D"), v=(v, "T Hk D"))
    heads = _ranges("pack_heads", tuple(heads), k.shape[1])
    if heads[-1][1] != q.shape[1]:
        raise ValueError(f"pack_heads: the peers have {heads[-1][1]} query heads, q has {q.shape[1]}")
    if (positions is None) != (inv_freq is None):
        raise ValueError("pack_heads: positions and inv_freq go together, one of them is missing")
    if positions is not None and inv_freq is not None:
        _check.positions("pack_heads", positions, q)
        if q.shape[2] % 2:
            raise ValueError(f"pack_heads: heads of {q.shape[2]} elements have no pairs to rotate")
        _check.inv_freq("pack_heads", inv_freq, q.shape[2] // 2, q.device)
    options = {"positions": positions, "inv_freq": inv_freq}
    return PACK.choose(impl, q, k, v, heads, **options)(q, k, v, heads, **options)


def unpack_heads(flat: torch.Tensor, heads: Ranges, head_dim: int, *, impl: str = "auto") -> torch.Tensor:
    """What an all-to-all brings back from the peers, put together: out[:, a:b] = part p.

    Args:
        flat: [T · Hq · D] parts that follow each other, each [T, query heads of peer p, D], any floating dtype.
        heads: (a, b, c, d) of every peer, as ``pack_heads`` takes them; c and d do not matter here.
        head_dim: D.
        impl: "auto" or the name of an implementation.

    Returns:
        [T, Hq, D].

    Raises:
        ValueError: query heads that are left out or come twice; a length that is no multiple of Hq · D.

    Source: Jacobs et al., 2023, arXiv:2309.14509.
    """
    _check.same_dtype_and_device("unpack_heads", flat=flat)
    heads = _ranges("unpack_heads", tuple(heads))
    row = heads[-1][1] * head_dim
    if flat.dim() != 1 or row < 1 or flat.shape[0] % row:
        raise ValueError(f"unpack_heads: flat is {list(flat.shape)}, not rows of {heads[-1][1]} heads of {head_dim}")
    return UNPACK.choose(impl, flat, heads, head_dim)(flat, heads, head_dim)


def _ranges(op: str, heads: Ranges, kv_heads: int | None = None) -> Ranges:
    """The ranges of all peers, once they fit."""
    end = 0
    for peer, (a, b, c, d) in enumerate(heads):
        if a != end or b < a:
            raise ValueError(f"{op}: query heads {a} to {b} of peer {peer}, those of the one before end at {end}")
        if not 0 <= c <= d or (kv_heads is not None and d > kv_heads):
            raise ValueError(f"{op}: KV heads {c} to {d} of peer {peer}, there are {kv_heads}")
        end = b
    if not end:
        raise ValueError(f"{op}: no peer has a head")
    return heads
