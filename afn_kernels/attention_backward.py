"""Gradients of attention over some of the keys, from the output over all of them."""

import torch

from afn_kernels import _check
from afn_kernels.attention import OP, attention, checks, providers
from afn_kernels.attention.boundary import BACKWARD, BACKWARD_CUDA
from afn_kernels.attention.provided import gradients
from afn_kernels.attention.schedule import CUDA_BACKWARD, TRITON_BACKWARD, AttentionSchedule, tables_of
from afn_kernels.attention.window import flat


def attention_backward(
    dout: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor,
    *,
    cu_seqlens_q: torch.Tensor | None = None,
    cu_seqlens_k: torch.Tensor | None = None,
    causal: bool = False,
    scale: float | None = None,
    schedule: AttentionSchedule | None = None,
    impl: str = "auto",
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(dq, dk, dv) of out = softmax(scale · q kᵀ) v where q reads other keys too.

    p = exp(scale · q kᵀ − lse), dv = pᵀ dout, ds = p ∘ (dout vᵀ − Σ dout ∘ out), dq = scale · ds k, dk = scale · dsᵀ q:
    with ``out`` and ``lse`` over all keys, the gradients of a part of the keys need no other part.

    Args:
        dout: [Tq, Hq, D], dtype of q.
        q: [Tq, Hq, D].
        k, v: [Tk, Hk, D], the part of the keys.
        out: [Tq, Hq, D] float32 over all keys.
        lse: [Tq, Hq] float32 over all keys.
        cu_seqlens_q, cu_seqlens_k, causal, scale, schedule: as in the forward over this part.
        impl: as ``attention`` takes it; what has no backward of its own here computes the part's forward again. What
            "auto" chose and whose launch fails is set aside for the calls that follow, forward and backward.

    Returns:
        dq, this part's share of it, dk and dv.

    Raises:
        ValueError: as ``attention`` does of this part; a dout, out or lse that is not of the queries.

    Source: Dao, 2023, arXiv:2307.08691, section 3.1.
    """
    _check.same_dtype_and_device("attention_backward", q=q, k=k, v=v)
    cu_seqlens_q, cu_seqlens_k = checks.boundaries(
        "attention_backward", q, k, v, cu_seqlens_q, cu_seqlens_k, causal, schedule
    )
    checks.of_all_keys("attention_backward", q, dout, out, lse)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    options = {"cu_seqlens_q": cu_seqlens_q, "cu_seqlens_k": cu_seqlens_k, "causal": causal, "scale": scale}
    asked = options | {"return_lse": True, "carry": None, "window": None, "softcap": 0.0}
    chosen = OP.pick(impl, q, k, v, **asked).name
    tensors = dout, q, k, v, out, lse
    if torch.compiler.is_compiling():
        return _by(chosen, *tensors, schedule=schedule, named=impl != "auto", **options)
    try:
        return _by(chosen, *tensors, schedule=schedule, named=impl != "auto", **options)
    except Exception as error:
        if impl == "auto":
            OP.lost(chosen, error, "attention_backward")
        raise


def _by(chosen: str, dout, q, k, v, out, lse, *, schedule: AttentionSchedule | None, named: bool, **options):
    cu_seqlens_q, cu_seqlens_k, causal, scale = (
        options[x] for x in ("cu_seqlens_q", "cu_seqlens_k", "causal", "scale")
    )
    if chosen in ("triton", "cuda"):
        backward, kernels = (BACKWARD, TRITON_BACKWARD) if chosen == "triton" else (BACKWARD_CUDA, CUDA_BACKWARD)
        tables = [None, None]
        if schedule is not None:
            tables = schedule.of(kernels, q.shape[-1], q.dtype)
        elif cu_seqlens_q is not None and cu_seqlens_k is not None:
            tables = tables_of(kernels, cu_seqlens_q, cu_seqlens_k, causal, len(q), len(k), q.shape[-1], q.dtype)
        numbers, needs = (*flat(None), 0.0, float(scale)), (True, True, False)
        return backward(dout, None, q, k, v, out, lse, None, None, *tables, causal, *numbers, *needs)[:3]
    if chosen in providers.NAMES:
        return gradients(chosen, dout, q, k, v, out, lse, **options, named=named)
    with torch.enable_grad():
        leaves = [x.detach().requires_grad_() for x in (q, k, v)]
        part, part_lse = attention(*leaves, **options, return_lse=True, impl=chosen)
    # out = Σ over the parts of weight · part, weight = exp(lse of the part − lse).
    weight = torch.where(part_lse == float("-inf"), 0.0, (part_lse - lse).exp()).detach()
    dout = dout.to(lse.dtype)
    moved = weight * (dout * (part.detach().to(lse.dtype) - out)).sum(-1)
    grads = ((dout * weight[..., None]).to(part.dtype), moved.to(part_lse.dtype))
    return torch.autograd.grad((part, part_lse), leaves, grads)
