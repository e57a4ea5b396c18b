"""The weights that a command line asks for: an adapter on them, the language model's in fewer bits or in FP8."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from afn_model.afnext import AFNext
from afn_model.network.fused import quantise_fp8
from afn_model.train.quantise import code_base
from afn_model.weights.checkpoint import DTYPES, fill, load, on_meta

CONFIG = "adapter_config.json"


def reader(adapter: str | None, quantize: str | None) -> Callable[..., AFNext]:
    """What ``Session`` reads a model with.

    An adapter is merged into the weights, as training exports it; beside a language model in int8 or NF4 it stays in
    float32.

    Args:
        adapter: folder in peft's format.
        quantize: "int8" or "nf4", decoded before they are multiplied, or "fp8", multiplied as it is.

    Raises:
        ValueError: a folder that is no adapter.
    """
    if adapter is not None and not (Path(adapter) / CONFIG).is_file():
        raise ValueError(f"--adapter {adapter}: no peft adapter: {CONFIG} is missing")
    return partial(_read, adapter, quantize)


def _read(
    adapter: str | None,
    quantize: str | None,
    cls: type[AFNext],
    folder: str | Path,
    *,
    dtype: torch.dtype | None,
    device: torch.device,
    rote: str | None,
    on_step: Callable[[int, int], Any] | None,
) -> AFNext:
    if quantize in (None, "fp8"):
        model = load(cls, folder, dtype=dtype, device=device, rote=rote, on_step=on_step)
    else:
        model, stored = on_meta(cls, folder, rote)
        coded = code_base(model, stored, quantize, device)
        dtype = dtype or DTYPES[stored["lm_head.weight"].dtype]
        fill(model, {name: stored[name] for name in stored if name not in coded}, dtype, device, on_step)
    if adapter is not None:
        from afn_model.train import lora

        lora.load(model, adapter, device)
        if quantize in (None, "fp8"):
            lora.merge(model)
    if quantize == "fp8":
        quantise_fp8(model.language_model)
    return model.eval()
