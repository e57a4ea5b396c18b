"""What every call of attention is checked for, before an implementation is chosen."""

from __future__ import annotations

import torch

from afn_kernels import _check
from afn_kernels.attention.schedule import AttentionSchedule

Boundaries = tuple[torch.Tensor | None, torch.Tensor | None]


def boundaries(
    op: str,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cu_seqlens_q: torch.Tensor | None,
    cu_seqlens_k: torch.Tensor | None,
    causal: bool,
    schedule: AttentionSchedule | None,
    *,
    ours: bool = False,
) -> Boundaries:
    """The boundaries of a call on q [Tq, Hq, D], k and v [Tk, Hk, D]; ``ours`` are right, for we made them.

    Raises:
        ValueError: shapes, head counts, boundaries or a schedule that do not fit.
    """
    if q.dim() != 3 or k.dim() != 3 or k.shape != v.shape or q.shape[-1] != k.shape[-1]:
        raise misfit(op, q, k, v)
    if not k.shape[1] or q.shape[1] % k.shape[1]:
        raise ValueError(f"{op}: {q.shape[1]} query heads are not a multiple of {k.shape[1]} KV heads")
    if schedule is not None:
        cu_seqlens_q, cu_seqlens_k = schedule.boundaries(cu_seqlens_q, cu_seqlens_k, causal, len(q), len(k))
    if cu_seqlens_k is None:
        cu_seqlens_k = cu_seqlens_q
    if (cu_seqlens_q is None) != (cu_seqlens_k is None):
        raise ValueError(f"{op}: cu_seqlens_k without cu_seqlens_q")
    if cu_seqlens_q is not None and cu_seqlens_k is not None and not ours:
        _check.cu_seqlens(op, "cu_seqlens_q", cu_seqlens_q, q.shape[0], q)
        _check.cu_seqlens(op, "cu_seqlens_k", cu_seqlens_k, k.shape[0], k)
        if cu_seqlens_q.shape != cu_seqlens_k.shape:
            raise ValueError(f"{op}: {len(cu_seqlens_q) - 1} query and {len(cu_seqlens_k) - 1} key sequences")
    return cu_seqlens_q, cu_seqlens_k


def of_all_keys(op: str, q: torch.Tensor, dout: torch.Tensor, out: torch.Tensor, lse: torch.Tensor) -> None:
    """A gradient, an output and a log-sum-exp as the queries have them.

    Raises:
        ValueError: shapes, dtypes or devices that do not fit.
    """
    _check.are_tensors(op, dout=dout, out=out, lse=lse)
    if dout.shape != q.shape or out.shape != q.shape or lse.shape != q.shape[:2]:
        raise _check.misfit(op, q=(q, "T H D"), dout=(dout, "T H D"), out=(out, "T H D"), lse=(lse, "T H"))
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    for name, x, dtypes in (("dout", dout, (q.dtype, wide)), ("out", out, (wide, q.dtype)), ("lse", lse, (wide,))):
        if x.dtype not in dtypes or x.device != q.device:
            wanted = " or ".join(map(str, dict.fromkeys(dtypes)))
            raise ValueError(f"{op}: {name} is {x.dtype} on {x.device}, expected {wanted} on {q.device}")


def misfit(op: str, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> ValueError:
    """The error of q, k and v that do not fit each other."""
    axes = ("B Tq Hq D", "B Tk Hk D") if q.dim() == 4 else ("Tq Hq D", "Tk Hk D")
    error = _check.misfit(op, q=(q, axes[0]), k=(k, axes[1]), v=(v, axes[1]))
    if q.dim() == k.dim() == v.dim() > 0 and k.shape[:-1] == v.shape[:-1] and k.shape[-1] == q.shape[-1] != v.shape[-1]:
        return ValueError(f"{error}: heads of v have the size of those of q and k; pad the smaller with zeros")
    return error
