"""The Qwen2-family decoder on packed sequences, with a KV cache for generation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

import afn_kernels as ak
from afn_model.config import SpeechConfig, TextConfig
from afn_model.network.joint import FP8, FP8Linear, FP8Rows, JointLinear
from afn_model.network.kv_cache import PagedKV
from afn_model.network.linear import linear, linears
from afn_model.network.shared_prefix import SharedPrefix

if TYPE_CHECKING:
    from afn_kernels.attention.schedule import AttentionSchedule
    from afn_model.network.sequence_shard import SequenceShard


def inverse_frequencies(config: TextConfig | SpeechConfig, device: torch.device) -> Tensor:
    """[head_dim / 2] float32: θ^(−2d / head_dim), radians of a position."""
    d = torch.arange(0, config.head_dim, 2, device=device, dtype=torch.int64).float()
    return 1.0 / config.rope_theta ** (d / config.head_dim)


class ResidualRMSNorm(nn.Module):
    """h = x + residual and h / rms(h) · weight, in one pass through ``afn_kernels``."""

    def __init__(self, width: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor, residual: Tensor | None, *, coded: bool = False) -> tuple[Any, Tensor]:
        """h / rms(h) · weight and h; with ``coded`` the first as the ``FP8Rows`` that layers in FP8 multiply."""
        if coded:
            codes, scale, *h = ak.rms_norm(x, self.weight, residual=residual, eps=self.eps, out_dtype=FP8)
            return FP8Rows(codes, scale, x.dtype), h[0] if h else x
        found = ak.rms_norm(x, self.weight, residual=residual, eps=self.eps)
        return found if isinstance(found, tuple) else (found, x)


def in_fp8(fused: JointLinear | FP8Linear | None) -> bool:
    """Whether layers take their inputs in FP8, which have no gradient."""
    return fused is not None and fused.alone and not torch.is_grad_enabled()


class CausalAttention(nn.Module):
    """Grouped-query causal attention with rotary positions."""

    def __init__(self, config: TextConfig):
        super().__init__()
        self.head_dim, self.heads = config.head_dim, (config.heads, config.kv_heads, config.kv_heads)
        self.q_proj = nn.Linear(config.width, config.heads * config.head_dim)
        self.k_proj = nn.Linear(config.width, config.kv_heads * config.head_dim)
        self.v_proj = nn.Linear(config.width, config.kv_heads * config.head_dim)
        self.o_proj = nn.Linear(config.heads * config.head_dim, config.width, bias=False)
        self.fused: JointLinear | FP8Linear | None = None  # by network.fused, for generation

    def projected(self, x_TD: Tensor) -> Sequence[Tensor]:
        """q, k and v, [T, heads · head_dim] each."""
        if self.fused is not None and self.fused.alone:
            return self.fused.product(x_TD, self.fused.bias).split([heads * self.head_dim for heads in self.heads], 1)
        return linears((self.q_proj, self.k_proj, self.v_proj), x_TD)

    def forward(self, x_TD: Tensor, context: ForwardContext, layer: int) -> Tensor:
        if context.kv is not None:
            return linear(self.o_proj, self.cached(x_TD, context, context.kv, layer).flatten(1))
        q, k, v = (y.unflatten(-1, (-1, self.head_dim)) for y in self.projected(x_TD))
        if context.shared is not None:
            return self.o_proj(context.shared.attention(q, k, v, context.positions, context.inv_freq).flatten(1))
        q, k = ak.rotary(q, k, context.positions, context.inv_freq)
        out = ak.attention(q, k, v, causal=True, schedule=context.schedule)
        assert isinstance(out, Tensor)
        return self.o_proj(out.flatten(1))

    def cached(self, x_TD: Tensor, context: ForwardContext, kv: PagedKV, layer: int) -> Tensor:
        """Attention over paged keys and values, [T, heads, head_dim]."""
        fused, bias = self.fused, None
        if fused is None:
            qkv = torch.cat(list(self.projected(x_TD)), dim=1)
        else:
            qkv, bias = fused.product(x_TD), fused.bias
        caches = kv.slot_mapping(layer)
        if not kv.fresh:
            q = ak.qkv_rotary(qkv, context.positions, context.inv_freq, *caches, bias=bias)
            return kv.attention(q, None, None, layer)
        x = (qkv if bias is None else qkv + bias).unflatten(-1, (-1, self.head_dim))
        kv_heads = kv.kv.shape[-2]
        q, k, v = x.split((x.shape[1] - 2 * kv_heads, kv_heads, kv_heads), 1)
        k_cache, v_cache, slots = caches
        places = context.positions, context.inv_freq
        q, k = ak.rotary(q, k, *places, v=v, k_cache=k_cache, v_cache=v_cache, slots=slots)
        return kv.attention(q, k, v, layer)


class FeedForward(nn.Module):
    """W_down (silu(W_gate x) · W_up x)."""

    def __init__(self, config: TextConfig):
        super().__init__()
        self.gate_proj = nn.Linear(config.width, config.ffn, bias=False)
        self.up_proj = nn.Linear(config.width, config.ffn, bias=False)
        self.down_proj = nn.Linear(config.ffn, config.width, bias=False)
        self.fused: JointLinear | FP8Linear | None = None  # by network.fused, for generation

    def forward(self, x_TD: Tensor) -> Tensor:
        if self.fused is not None and (self.fused.alone or not torch.is_grad_enabled()):
            gate, up = self.fused.product(x_TD).chunk(2, -1)
            if in_fp8(self.fused):
                return self.down_proj(FP8Rows(*ak.swiglu(gate, up, out_dtype=FP8), gate.dtype))
            return self.down_proj(ak.swiglu(gate, up))
        return linear(self.down_proj, ak.swiglu(*linears((self.gate_proj, self.up_proj), x_TD)))


class DecoderBlock(nn.Module):
    """x + Attention(norm x), then x + MLP(norm x); each sum is left to the norm that follows it."""

    def __init__(self, config: TextConfig):
        super().__init__()
        self.self_attn = CausalAttention(config)
        self.mlp = FeedForward(config)
        self.input_layernorm = ResidualRMSNorm(config.width, config.rms_eps)
        self.post_attention_layernorm = ResidualRMSNorm(config.width, config.rms_eps)

    def forward(
        self, x_TD: Tensor, residual_TD: Tensor | None, context: ForwardContext, layer: int
    ) -> tuple[Tensor, Tensor]:
        """(delta, residual) of the previous block to (delta, residual) of this one."""
        attention, mlp = (in_fp8(part.fused) for part in (self.self_attn, self.mlp))
        x_TD, h_TD = self.input_layernorm(x_TD, residual_TD, coded=attention)
        x_TD, h_TD = self.post_attention_layernorm(self.self_attn(x_TD, context, layer), h_TD, coded=mlp)
        return self.mlp(x_TD), h_TD


class LanguageModel(nn.Module):
    """Token embeddings in, final hidden states out; the head belongs to the whole model."""

    def __init__(self, config: TextConfig):
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.width)
        self.layers = nn.ModuleList(DecoderBlock(config) for _ in range(config.layers))
        self.norm = ResidualRMSNorm(config.width, config.rms_eps)

    def forward(
        self,
        x_TD: Tensor,
        positions: Tensor,
        *,
        cu_seqlens: Tensor | None = None,
        longest: int | None = None,
        kv: PagedKV | None = None,
        shared: SharedPrefix | SequenceShard | None = None,
    ) -> Tensor:
        """Hidden states after the final norm.

        Args:
            x_TD: [T, width] packed embeddings.
            positions: [T] float32 rotary positions.
            cu_seqlens: [B + 1] int32 boundaries of whole sequences.
            longest: tokens of the longest of them, where the host knows it.
            kv: the paged keys and values that sequences go on from, in generation; excludes ``cu_seqlens``.
            shared: an object whose ``attention`` method, rotary included, replaces the default: ``SharedPrefix`` or
                ``SequenceShard``; excludes ``kv`` and ``cu_seqlens``.

        Returns:
            [T, width].
        """
        inv_freq = inverse_frequencies(self.config, x_TD.device)
        schedule, calls = None, {"head_dim": self.config.head_dim, "dtype": x_TD.dtype}
        if cu_seqlens is not None:
            known: dict[str, Any] = {} if longest is None else {"longest": longest}
            schedule = ak.attention_schedule(cu_seqlens, total_q=len(x_TD), causal=True, **known, **calls)
        elif isinstance(shared, SharedPrefix):
            shared = shared.scheduled(**calls)
        context = ForwardContext(positions, inv_freq, schedule, kv, shared)
        residual_TD = None
        for index, layer in enumerate(self.layers):
            x_TD, residual_TD = layer(x_TD, residual_TD, context, index)
        return self.norm(x_TD, residual_TD)[0]


@dataclass(frozen=True)
class ForwardContext:
    """What every layer of one forward pass shares."""

    positions: Tensor
    inv_freq: Tensor
    schedule: AttentionSchedule | None
    kv: PagedKV | None
    shared: SharedPrefix | SequenceShard | None = None
