"""Steps of a few rows in float32 on a CPU: all layers of the language model in one compiled call."""

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

MOST_ROWS = 32  # twice as fast as torch up to there, and still faster at 64


class CompiledRows:
    """The language model where a forward pass is rows alone, without a Python call for every layer's every part.

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

    def __call__(self, x_TD: Tensor, positions: Tensor, kv: PagedKV) -> Tensor | None:
        """What the model gives, rows behind ``kv.row_tokens`` being zeros; None where that is for the model to say."""
        if not self._takes(x_TD, kv):
            return None
        if not self._same():
            self._look()
        rows, count = kv.rows, kv.row_tokens
        if self._step is None or rows is None or any(self._hooks):
            return None
        step = x_TD[:count], positions[:count], kv.slots[:count], kv.kv, rows.table, rows.lengths
        found = self._step(*step)
        padding = len(x_TD) - count
        return F.pad(found, (0, 0, 0, padding)) if found is not None and padding else found

    @staticmethod
    def _takes(x: Tensor, kv: PagedKV) -> bool:
        rows = kv.rows
        if rows is None or kv.chunks is not None or kv.chunk_tokens or not 0 < kv.row_tokens <= MOST_ROWS:
            return False
        alone = rows.places is None and rows.prefix_lengths is None and len(rows.table) == kv.row_tokens
        here = x.is_cpu and x.dtype == kv.kv.dtype == torch.float32 and kv.kv.is_contiguous()
        return alone and here and torch.is_inference_mode_enabled() and not cpu.steered()

    def _same(self) -> bool:
        """Whether modules and weights are those that were looked at."""
        now = [owned.get(name) for owned, name in self._owners]
        same = bool(now) and all(map(is_, now, self._owned))
        return same and [weight.data_ptr() for weight in self._weights] == self._pointers

    def _look(self) -> None:
        self._owners, self._hooks, self._step, self._weights = [], [], None, []
        for module in self.model.modules():
            for owned in (module._modules, module._parameters):
                self._owners += [(owned, name) for name in owned]
            self._hooks += [module._forward_hooks, module._forward_pre_hooks]
        self._owned = [owned.get(name) for owned, name in self._owners]
        layers = [weights_of(layer) for layer in self.model.layers]
        found = [layer for layer in layers if layer is not None]
        if found and len(found) == len(layers) and not cpu.usable():
            self._weights = [weight for layer in found for weight in layer if weight is not None]
            self._weights.append(self.model.norm.weight)
            if all(w.is_cpu and w.dtype == torch.float32 and w.is_contiguous() for w in self._weights):
                config = self.model.config
                self._step = cpu.CompiledDecoder(
                    found, self.model.norm.weight, inverse_frequencies(config, torch.device("cpu")),
                    heads=config.heads, kv_heads=config.kv_heads, eps=self.model.norm.eps,
                )  # fmt: skip
        self._pointers = [weight.data_ptr() for weight in self._weights]


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
