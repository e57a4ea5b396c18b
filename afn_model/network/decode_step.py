"""Steps of a few tokens in float32 on a CPU: all layers of the language model in one compiled call."""

from __future__ import annotations

from operator import is_

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from afn_kernels import cpu
from afn_model.network.kv_cache import PagedKV
from afn_model.network.language_model import (
    CausalAttention,
    DecoderBlock,
    FeedForward,
    LanguageModel,
    ResidualRMSNorm,
    inverse_frequencies,
)

ROWS, MOST_ROWS = 32, 256  # tokens of a pass: of any model, and of one whose layers are small
# Tokens times weights of a layer: where there are more, a call for each part by oneDNN takes no longer.
MOST_PRODUCTS = 1 << 28


class CompiledRows:
    """The language model where a forward pass has few tokens, without a Python call for every layer's every part.

    A token of a chunk is a row as any other: what it is has nothing to do with the rows beside it.

    Weights are read where they are, and every call looks whether the model still has them, has the same modules and no
    hooks. It takes float32 on a CPU, plain weights, inference mode and keys and values in float32.
    """

    def __init__(self, model: LanguageModel):
        self.model = model
        self._step: cpu.CompiledDecoder | None = None
        self._owners: list[tuple[dict, str]] = []
        self._owned: list[nn.Module | Tensor | None] = []
        self._hooks: list[dict] = []
        self._weights: list[Tensor] = []
        self._pointers: list[int] = []
        self._norms: list[ResidualRMSNorm] = []
        self._eps: list[float] = []
        self._most = 0  # tokens

    def __call__(self, x_TD: Tensor, positions: Tensor, kv: PagedKV) -> Tensor | None:
        """What the model gives, what is behind chunks and rows being zeros; None where that is for the model to say."""
        if not self._takes(x_TD, kv):
            return None
        if not self._same():
            self._look()
        count = kv.chunk_tokens + kv.row_tokens
        if self._step is None or count > self._most or any(self._hooks):
            return None
        found = self._step(x_TD[:count], positions[:count], kv.slots[:count], kv.kv, *sequences(kv))
        padding = len(x_TD) - count
        return F.pad(found, (0, 0, 0, padding)) if found is not None and padding else found

    @staticmethod
    def _takes(x: Tensor, kv: PagedKV) -> bool:
        rows, chunks = kv.rows, kv.chunks
        if not 0 < kv.chunk_tokens + kv.row_tokens <= MOST_ROWS:
            return False
        if rows is not None and (rows.places is not None or rows.prefix_lengths is not None):
            return False
        if chunks is not None and chunks.schedule is not None:
            return False
        alone = (0 if rows is None else len(rows.table)) == kv.row_tokens and (chunks is None) == (not kv.chunk_tokens)
        here = x.is_cpu and x.dtype == kv.kv.dtype == torch.float32 and kv.kv.is_contiguous()
        return alone and here and torch.is_inference_mode_enabled() and not cpu.steered()

    def _same(self) -> bool:
        """Whether modules and weights are those that were looked at."""
        now = [owned.get(name) for owned, name in self._owners]
        same = bool(now) and all(map(is_, now, self._owned)) and [norm.eps for norm in self._norms] == self._eps
        return same and [weight.data_ptr() for weight in self._weights] == self._pointers

    def _look(self) -> None:
        self._owners, self._hooks, self._step, self._weights, self._most = [], [], None, [], 0
        for module in self.model.modules():
            for owned in (module._modules, module._parameters):
                self._owners += [(owned, name) for name in owned]
            self._hooks += [module._forward_hooks, module._forward_pre_hooks]
        self._owned = [owned.get(name) for owned, name in self._owners]
        self._norms = [module for module in self.model.modules() if isinstance(module, ResidualRMSNorm)]
        self._eps = [norm.eps for norm in self._norms]
        layers = [weights_of(layer) for layer in self.model.layers]
        found = [layer for layer in layers if layer is not None]
        if found and len(found) == len(layers) and len(set(self._eps)) == 1 and not cpu.usable():
            self._weights = [weight for layer in found for weight in layer if weight is not None]
            self._weights.append(self.model.norm.weight)
            if all(w.is_cpu and w.dtype == torch.float32 and w.is_contiguous() for w in self._weights):
                config = self.model.config
                self._step = cpu.CompiledDecoder(
                    found, self.model.norm.weight, inverse_frequencies(config, torch.device("cpu")),
                    heads=config.heads, kv_heads=config.kv_heads, eps=self.model.norm.eps,
                )  # fmt: skip
                layer = sum(weight.numel() for weight in self._weights) // len(layers)
                self._most = min(MOST_ROWS, max(ROWS, MOST_PRODUCTS // layer))
        self._pointers = [weight.data_ptr() for weight in self._weights]


def sequences(kv: PagedKV) -> tuple[Tensor, Tensor, Tensor | None]:
    """Pages, lengths and boundaries of chunks, then of rows; no boundaries where there are rows alone."""
    rows, chunks = kv.rows, kv.chunks
    if chunks is None:
        assert rows is not None, "a pass without sequences"
        return rows.table, rows.lengths, None
    if rows is None:
        return chunks.table, chunks.lengths, chunks.cu_seqlens
    wider = rows.table.shape[1] - chunks.table.shape[1]
    tables = [chunks.table, rows.table]
    if wider:
        tables[wider < 0] = F.pad(tables[wider < 0], (0, abs(wider)))
    ends = torch.arange(kv.chunk_tokens + 1, kv.chunk_tokens + kv.row_tokens + 1, dtype=chunks.cu_seqlens.dtype)
    return torch.cat(tables), torch.cat((chunks.lengths, rows.lengths)), torch.cat((chunks.cu_seqlens, ends))


def weights_of(layer: nn.Module) -> cpu.DecoderLayer | None:
    """The weights of a decoder block; None where a part of it is anything else."""
    if type(layer) is not DecoderBlock:
        return None
    attention, mlp, norms = layer.self_attn, layer.mlp, (layer.input_layernorm, layer.post_attention_layernorm)
    if type(attention) is not CausalAttention or type(mlp) is not FeedForward:
        return None
    if any(type(norm) is not ResidualRMSNorm for norm in norms):
        return None
    names = ("q_proj", "k_proj", "v_proj", "o_proj")
    parts = [getattr(attention, name) for name in names]
    parts += [getattr(mlp, name) for name in ("gate_proj", "up_proj", "down_proj")]
    if not all(type(part) is nn.Linear and type(part.weight) is nn.Parameter for part in parts):
        return None
    linear = [x for part in parts for x in (part.weight, part.bias)]
    return cpu.DecoderLayer(norms[0].weight, norms[1].weight, *linear)
