"""Self-attention."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from afn_kernels.attention import attention
from afn_kernels.nn.norm import RMSNorm
from afn_kernels.nn.position import RotaryEmbedding

TYPE_CHECKING = False
if TYPE_CHECKING:
    from afn_kernels.attention.schedule import AttentionSchedule


class Attention(nn.Module):
    """y = W_o attention(W_q x, W_k x, W_v x): the self-attention of Llama and Qwen2, with their keys.

    q, k and v are what the modules ``q_proj``, ``k_proj`` and ``v_proj`` return, so LoRA, quantisation and hooks on
    them work.

    Args:
        width: D, the last axis of x and y.
        heads: Hq.
        kv_heads: Hk, which divides Hq; default Hq.
        head_dim: of each head; default D / Hq.
        bias: whether ``q_proj``, ``k_proj`` and ``v_proj`` have biases.
        out_bias: whether ``o_proj`` has one.
        qk_norm: eps of the RMSNorms ``q_norm`` and ``k_norm`` over each head (Qwen3); None has no such norms.
        rotary: what rotates q and k; layers may share one. None rotates nothing.
        causal, window, softcap, scale: as ``attention`` takes them.
        device, dtype: of the parameters.
        impl: as ``attention`` takes it.

    Returns:
        Called with x [B, T, D], B sequences of one length: [B, T, D]. Called with x [T, D], packed, and ``cu_seqlens``
        [N + 1] int32 or a ``schedule`` of ``attention_schedule``: [T, D]. ``positions`` are those that ``rotary``
        takes; default 0, 1, … in each sequence.

    Raises:
        ValueError: what ``attention`` and ``rotary`` raise; sizes that do not divide.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        kv_heads: int | None = None,
        head_dim: int | None = None,
        *,
        bias: bool = False,
        out_bias: bool = False,
        qk_norm: float | None = None,
        rotary: RotaryEmbedding | None = None,
        causal: bool = True,
        window: tuple[int, int] | None = None,
        softcap: float | None = None,
        scale: float | None = None,
        device=None,
        dtype=None,
        impl: str = "auto",
    ):
        kv_heads = heads if kv_heads is None else kv_heads
        if heads % kv_heads or (head_dim is None and width % heads):
            raise ValueError(f"{heads} heads over {kv_heads} KV heads, of a width of {width}: they do not divide")
        super().__init__()
        self.head_dim = width // heads if head_dim is None else head_dim
        made = {"device": device, "dtype": dtype}
        self.q_proj = nn.Linear(width, heads * self.head_dim, bias, **made)
        self.k_proj, self.v_proj = (nn.Linear(width, kv_heads * self.head_dim, bias, **made) for _ in range(2))
        self.o_proj = nn.Linear(heads * self.head_dim, width, out_bias, **made)
        self.q_norm = self.k_norm = None
        if qk_norm is not None:
            self.q_norm, self.k_norm = (RMSNorm(self.head_dim, qk_norm, **made) for _ in range(2))
        self.rotary = rotary
        self.options = {"causal": causal, "window": window, "softcap": softcap, "scale": scale, "impl": impl}

    def forward(
        self,
        x: Tensor,
        positions: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        *,
        schedule: AttentionSchedule | None = None,
    ) -> Tensor:
        q, k, v = (project(x).unflatten(-1, (-1, self.head_dim)) for project in (self.q_proj, self.k_proj, self.v_proj))
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        if self.rotary is not None:
            if positions is None:
                found = schedule.cu_seqlens_q if cu_seqlens is None and schedule is not None else cu_seqlens
                positions = within_each(x.shape[-2], found, x.device)
            q, k = self.rotary(q, k, positions)
        out = attention(q, k, v, cu_seqlens_q=cu_seqlens, schedule=schedule, **self.options)
        return self.o_proj(out.flatten(-2))

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value}" for name, value in self.options.items() if value is not None)


def within_each(tokens: int, cu_seqlens: Tensor | None, device: torch.device) -> Tensor:
    """0, 1, … of the tokens of each sequence, float32."""
    index = torch.arange(tokens, device=device)
    if cu_seqlens is not None:
        index = index - cu_seqlens[torch.searchsorted(cu_seqlens, index, right=True, out_int32=True) - 1]
    return index.float()
