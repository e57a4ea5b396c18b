"""The Qwen2-family decoder on packed sequences, with a KV cache for generation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

import afn_kernels as ak
from afn_model.config import TextConfig
from afn_model.shared_prefix import SharedPrefix

if TYPE_CHECKING:
    from afn_kernels.attention.schedule import AttentionSchedule
    from afn_model.share import Share


class RMSNorm(nn.Module):
    """h = x + stream and h / rms(h) · weight, in one pass through ``afn_kernels``."""

    def __init__(self, width: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor, stream: Tensor | None) -> tuple[Tensor, Tensor]:
        if stream is None:
            return ak.rms_norm(x, self.weight, eps=self.eps), x
        return ak.rms_norm(x, self.weight, residual=stream, eps=self.eps)


class Attention(nn.Module):
    """Grouped-query causal attention with rotary positions."""

    def __init__(self, config: TextConfig):
        super().__init__()
        self.head_dim = config.head_dim
        self.q_proj = nn.Linear(config.width, config.heads * config.head_dim)
        self.k_proj = nn.Linear(config.width, config.kv_heads * config.head_dim)
        self.v_proj = nn.Linear(config.width, config.kv_heads * config.head_dim)
        self.o_proj = nn.Linear(config.heads * config.head_dim, config.width, bias=False)

    def forward(self, x_TD: Tensor, step: Step, layer: int) -> Tensor:
        q, k, v = (p(x_TD).unflatten(-1, (-1, self.head_dim)) for p in (self.q_proj, self.k_proj, self.v_proj))
        cache = {} if step.cache is None else {"v": v, **step.cache.places(layer)}
        q, k = ak.rotary(q, k, step.positions, step.inv_freq, **cache)
        if step.shared is not None:
            out = step.shared.attention(q, k, v)
        elif step.schedule is not None:
            out = ak.attention(q, k, v, causal=True, schedule=step.schedule)
        else:
            out = ak.decode_attention(q[:, None], *step.cache.layer(layer), step.cache.lengths)[:, 0]
        return self.o_proj(out.flatten(1))


class MLP(nn.Module):
    """W_down (silu(W_gate x) · W_up x)."""

    def __init__(self, config: TextConfig):
        super().__init__()
        self.gate_proj = nn.Linear(config.width, config.ffn, bias=False)
        self.up_proj = nn.Linear(config.width, config.ffn, bias=False)
        self.down_proj = nn.Linear(config.ffn, config.width, bias=False)

    def forward(self, x_TD: Tensor) -> Tensor:
        return self.down_proj(ak.swiglu(self.gate_proj(x_TD), self.up_proj(x_TD)))


class Block(nn.Module):
    """x + Attention(norm x), then x + MLP(norm x); each sum is left to the norm that follows it."""

    def __init__(self, config: TextConfig):
        super().__init__()
        self.self_attn = Attention(config)
        self.mlp = MLP(config)
        self.input_layernorm = RMSNorm(config.width, config.rms_eps)
        self.post_attention_layernorm = RMSNorm(config.width, config.rms_eps)

    def forward(self, x_TD: Tensor, stream_TD: Tensor | None, step: Step, layer: int) -> tuple[Tensor, Tensor]:
        """What the previous block adds to the residual stream, and the stream; returns the same of this block."""
        x_TD, stream_TD = self.input_layernorm(x_TD, stream_TD)
        x_TD, stream_TD = self.post_attention_layernorm(self.self_attn(x_TD, step, layer), stream_TD)
        return self.mlp(x_TD), stream_TD


class LanguageModel(nn.Module):
    """Token embeddings in, final hidden states out; the head belongs to the whole model."""

    def __init__(self, config: TextConfig):
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.width)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = RMSNorm(config.width, config.rms_eps)

    def forward(
        self,
        x_TD: Tensor,
        positions: Tensor,
        *,
        cu_seqlens: Tensor | None = None,
        cache: KVCache | None = None,
        shared: SharedPrefix | Share | None = None,
    ) -> Tensor:
        """Hidden states after the final norm.

        Args:
            x_TD: [T, width] packed embeddings; with a cache and no ``cu_seqlens``, one new token per sequence.
            positions: [T] float32 rotary positions.
            cu_seqlens: [B + 1] int32 boundaries; given for whole sequences (training and prefill).
            cache: filled by a prefill, extended by each decoding step.
            shared: given instead of both for prompts followed by several answers to each, or tokens that other ranks
                share documents with: whose ``attention(q, k, v)`` it is.

        Returns:
            [T, width].
        """
        d = torch.arange(0, self.config.head_dim, 2, device=x_TD.device, dtype=torch.int64).float()
        inv_freq = 1.0 / self.config.rope_theta ** (d / self.config.head_dim)
        if cache is not None:
            cache.advance(cu_seqlens)
        schedule, calls = None, {"head_dim": self.config.head_dim, "dtype": x_TD.dtype}
        if cu_seqlens is not None:
            schedule = ak.attention_schedule(cu_seqlens, total_q=len(x_TD), causal=True, **calls)
        elif isinstance(shared, SharedPrefix):
            shared = shared.scheduled(**calls)
        step = Step(positions, inv_freq, schedule, cache, shared)
        stream_TD = None
        for index, layer in enumerate(self.layers):
            x_TD, stream_TD = layer(x_TD, stream_TD, step, index)
        return self.norm(x_TD, stream_TD)[0]


@dataclass(frozen=True)
class Step:
    """What every layer of one forward pass shares. Without a schedule it is one new token per sequence."""

    positions: Tensor
    inv_freq: Tensor
    schedule: AttentionSchedule | None
    cache: KVCache | None
    shared: SharedPrefix | Share | None = None


class KVCache:
    """Keys and values of B sequences, [B, capacity, KV heads, head_dim] per layer, and how many are valid."""

    def __init__(self, config: TextConfig, sequences: int, capacity: int, dtype: torch.dtype, device: torch.device):
        shape = (config.layers, 2, sequences, capacity, config.kv_heads, config.head_dim)
        self.kv = torch.empty(shape, dtype=dtype, device=device)
        self.lengths = torch.zeros(sequences, dtype=torch.int64, device=device)
        self.slots = torch.empty(0, dtype=torch.int64, device=device)

    def layer(self, index: int) -> tuple[Tensor, Tensor]:
        return self.kv[index, 0], self.kv[index, 1]

    def advance(self, cu_seqlens: Tensor | None) -> None:
        """Makes room for the coming tokens: a packed prefill into an empty cache, or one token per sequence."""
        capacity = self.kv.shape[3]
        sequence = torch.arange(len(self.lengths), device=self.lengths.device)
        if cu_seqlens is None:
            self.slots = sequence * capacity + self.lengths
            self.lengths = self.lengths + 1
        else:
            self.lengths = cu_seqlens.diff().long()
            sequence = torch.repeat_interleave(sequence, self.lengths)
            self.slots = sequence * capacity + torch.arange(len(sequence), device=sequence.device)
            self.slots -= cu_seqlens[sequence]

    def places(self, index: int) -> dict[str, Tensor]:
        """Where ``ak.rotary`` writes the coming tokens' keys and values."""
        k_cache, v_cache = self.layer(index)
        return {"k_cache": k_cache, "v_cache": v_cache, "slots": self.slots}

    def repeat(self, samples: int, room: int) -> KVCache:
        """``samples`` copies of every sequence, one after another, with room for more tokens; nothing is recomputed."""
        held = self.kv.shape[3]
        repeated = KVCache.__new__(KVCache)
        shape = (*self.kv.shape[:2], samples * self.kv.shape[2], held + room, *self.kv.shape[4:])
        repeated.kv = self.kv.new_empty(shape)
        repeated.kv.unflatten(2, (-1, samples))[:, :, :, :, :held] = self.kv[:, :, :, None]
        repeated.lengths = self.lengths.repeat_interleave(samples)
        repeated.slots = self.slots.new_empty(0)
        return repeated

    def keep(self, sequences: Tensor) -> None:
        """Drops all but some sequences."""
        self.kv, self.lengths = self.kv[:, :, sequences], self.lengths[sequences]
