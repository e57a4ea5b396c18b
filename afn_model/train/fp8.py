"""Training in FP8: which layers multiply so, and which shapes can."""

from __future__ import annotations

from torch import nn

from afn_model.config import TextConfig
from afn_model.network.fp8_linear import ALIGNED, FP8TrainingLinear
from afn_model.network.language_model import LanguageModel
from afn_model.train.lora_linear import LoRALinear


def check_fp8(text: TextConfig) -> None:
    """Whether a language model's linear layers can be multiplied in FP8.

    Raises:
        ValueError: a width that is no multiple of 16.
    """
    widths = {
        "width": text.width,
        "heads x head dim": text.heads * text.head_dim,
        "key-value heads x head dim": text.kv_heads * text.head_dim,
        "ffn": text.ffn,
    }
    for name, size in widths.items():
        if size % ALIGNED:
            raise ValueError(f"layout: fp8: the language model's {name} is {size}; a multiple of {ALIGNED} is expected")


def multiply_in_fp8(model: LanguageModel) -> None:
    """Lets the linear layers of all blocks multiply in FP8, under adapters too, in place; parameters stay the same.

    Raises:
        ValueError: what ``check_fp8`` raises; a base in few bits.
    """
    check_fp8(model.config)
    for name, layer in [(n, m) for n, m in model.layers.named_modules() if isinstance(m, nn.Linear)]:
        if not isinstance(layer, LoRALinear):
            model.layers.set_submodule(name, FP8TrainingLinear.of(layer))
        elif layer.quantised is None:
            layer.fp8 = True
        else:
            raise ValueError(f"layout: fp8: layer {name} is held in {layer.quantised.kind}; without a base is expected")


def fp8_weights(model: nn.Module) -> list[nn.Parameter]:
    """The weights that are multiplied in FP8, in the order of the forward."""
    return [module.weight for module in model.modules() if getattr(module, "fp8", False)]
