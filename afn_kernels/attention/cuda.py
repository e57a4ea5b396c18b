"""The forward on Hopper by hand: a persistent block per multiprocessor, csrc/include/afn/attention_forward.cuh."""

import torch

from afn_kernels.attention import hopper

KERNELS = hopper.kernels("attention")


def forward(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    out_c: torch.Tensor | None,
    lse_c: torch.Tensor | None,
    table: torch.Tensor | None,
    dq_table: torch.Tensor | None,
    dkv_table: torch.Tensor | None,
    causal: bool,
    left: int,
    right: int,
    softcap: float,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """out [Tq, Hq, D], float32 with a carry, and lse [Tq, Hq], in memory [Hq, Tq]; neither a window nor a softcap.

    ``table`` has the tiles of a packed batch (``tile_table``); the other two are for the backward.
    """
    tokens, heads, width = q.shape
    out = torch.empty(q.shape, dtype=q.dtype if out_c is None else torch.float32, device=q.device)
    lse = torch.empty(heads, tokens, dtype=torch.float32, device=q.device)
    if not out.numel() or not len(k):
        return _without_keys(out, lse.t(), out_c, lse_c)
    carry = None if out_c is None or lse_c is None else (hopper.dense(out_c), lse_c.t().contiguous())
    hopper.launch(KERNELS[q.dtype, width], q, k, v, out, lse, carry, table, None, causal, scale)
    return out, lse.t()


def _without_keys(out, lse, out_c, lse_c) -> tuple[torch.Tensor, torch.Tensor]:
    if out_c is None:
        return out.zero_(), lse.fill_(float("-inf"))
    return out.copy_(out_c.masked_fill((lse_c == float("-inf"))[..., None], 0.0)), lse.copy_(lse_c)
