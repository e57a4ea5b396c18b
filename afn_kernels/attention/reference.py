import torch

from afn_kernels.attention.traced import one_op_when_traced
from afn_kernels.attention.window import Window, visible


@one_op_when_traced("reference")
def attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    cu_seqlens_q: torch.Tensor | None,
    cu_seqlens_k: torch.Tensor | None,
    causal: bool,
    window: Window | None,
    softcap: float,
    scale: float,
    return_lse: bool,
    carry: tuple[torch.Tensor, torch.Tensor] | None,
    **_,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    bounds_q = [0, len(q)] if cu_seqlens_q is None else cu_seqlens_q.tolist()
    bounds_k = [0, len(k)] if cu_seqlens_k is None else cu_seqlens_k.tolist()
    outs, lses = [], []
    for q0, q1, k0, k1 in zip(bounds_q[:-1], bounds_q[1:], bounds_k[:-1], bounds_k[1:], strict=True):
        out, lse = one_sequence(q[q0:q1], k[k0:k1], v[k0:k1], causal, window, softcap, scale)
        outs.append(out)
        lses.append(lse)
    # Without any sequence there is no row: the empty products keep dtype and gradient path.
    out = torch.cat(outs) if outs else q * 1.0
    lse = torch.cat(lses) if lses else q.sum(-1)
    if carry is not None:
        return merge((out, lse), carry)
    return (out.to(q.dtype), lse) if return_lse else out.to(q.dtype)


def one_sequence(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    causal: bool,
    window: Window | None,
    softcap: float,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention of one sequence in float32 (float64 for float64 inputs): out [S, Hq, D], lse [S, Hq]."""
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    group = q.shape[1] // k.shape[1]
    k, v = (x.to(wide).repeat_interleave(group, dim=1) for x in (k, v))
    score_HQK = torch.einsum("qhd,khd->hqk", q.to(wide), k) * scale
    if softcap:
        score_HQK = softcap * (score_HQK / softcap).tanh()
    seen = visible(len(q), len(k), causal, window, q.device)
    if seen is not None:
        score_HQK = score_HQK.masked_fill(~seen, float("-inf"))
    lse_HQ = score_HQK.logsumexp(-1)
    # A row without keys has lse = -inf: subtracting 0 instead keeps exp(-inf - 0) = 0 and its gradient finite.
    safe_HQ1 = lse_HQ.masked_fill(lse_HQ == float("-inf"), 0.0)[..., None]
    out = torch.einsum("hqk,khd->qhd", (score_HQK - safe_HQ1).exp(), v)
    return out, lse_HQ.T


def merge(
    a: tuple[torch.Tensor, torch.Tensor], b: tuple[torch.Tensor, torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention over the union of two key sets from the (out, lse) of each."""
    (out_a, lse_a), (out_b, lse_b) = a, b
    # Where both are -inf the derivative of their sum would be NaN.
    nothing = (lse_a == float("-inf")) & (lse_b == float("-inf"))
    lse = torch.logaddexp(lse_a.masked_fill(nothing, 0.0), lse_b.masked_fill(nothing, 0.0))
    lse = lse.masked_fill(nothing, float("-inf"))
    safe = lse.masked_fill(lse == float("-inf"), 0.0)
    out = out_a * (lse_a - safe).exp()[..., None] + out_b * (lse_b - safe).exp()[..., None]
    return out, lse
