"""FP8 entries of a KV cache: their dtype and the scales they are multiplied with."""

import torch

FP8 = torch.float8_e4m3fn


def check_scales(op: str, kv_heads: int, **scales: torch.Tensor | None) -> None:
    """Each float32 of one element, or of one per KV head."""
    for name, x in scales.items():
        if x is not None and (x.shape not in ((), (1,), (kv_heads,)) or x.dtype != torch.float32):
            raise ValueError(f"{op}: {name} is {x.dtype} {tuple(x.shape)}, expected float32 of 1 or {kv_heads}")


def count(scale: torch.Tensor | None) -> int:
    """0 without a scale, 1 for one of the whole tensor, 2 for one per KV head."""
    return 0 if scale is None else min(2, scale.numel())
