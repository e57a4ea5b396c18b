"""Kernels for audio-language models: one folder per op, each with a plain PyTorch reference.

Every op takes ``impl="auto"``, which picks the fastest implementation that can run the call; ``explain`` says
which one that is and why. Importing this package imports torch and nothing heavier.
"""

import warnings
from typing import TYPE_CHECKING

from afn_kernels import _versions
from afn_kernels import nn as nn
from afn_kernels._check import check
from afn_kernels._registry import ASKED, OPS, Explained, Explanation, prefer, report, strict
from afn_kernels.attention import attention, attention_schedule
from afn_kernels.attention_backward import attention_backward
from afn_kernels.bias_gelu import bias_gelu
from afn_kernels.causal_conv import causal_conv
from afn_kernels.cross_entropy import cross_entropy
from afn_kernels.decode_attention import decode_attention
from afn_kernels.geglu import geglu
from afn_kernels.istft import istft
from afn_kernels.layer_norm import layer_norm
from afn_kernels.linear_cross_entropy import linear_cross_entropy, linear_logprob
from afn_kernels.linear_fp8 import linear_fp8
from afn_kernels.log_mel import MelConfig, log_mel
from afn_kernels.log_mel_stream import LogMelStream
from afn_kernels.merge_embeddings import merge_embeddings
from afn_kernels.pack_heads import pack_heads, unpack_heads
from afn_kernels.packing import pad, unpad
from afn_kernels.paged_attention import paged_attention
from afn_kernels.patch import patch
from afn_kernels.pool_norm import pool_norm
from afn_kernels.qkv_rotary import qkv_rotary
from afn_kernels.quantize_fp8 import quantize_fp8
from afn_kernels.residual_quantize import residual_quantize
from afn_kernels.rms_norm import rms_norm
from afn_kernels.rotary import apply_rotary, rotary
from afn_kernels.rote import rote
from afn_kernels.swiglu import swiglu
from afn_kernels.verify import verify

if TYPE_CHECKING:
    from afn_kernels.features import FeatureExtractor as FeatureExtractor
    from afn_kernels.parakeet_features import ParakeetFeatureExtractor as ParakeetFeatureExtractor

__version__ = "0.1.0"

__all__ = [
    "LogMelStream",
    "MelConfig",
    "apply_rotary",
    "attention",
    "attention_backward",
    "attention_schedule",
    "bias_gelu",
    "causal_conv",
    "check",
    "cross_entropy",
    "decode_attention",
    "explain",
    "istft",
    "geglu",
    "layer_norm",
    "linear_cross_entropy",
    "linear_fp8",
    "linear_logprob",
    "log_mel",
    "merge_embeddings",
    "pack_heads",
    "pad",
    "paged_attention",
    "patch",
    "pool_norm",
    "prefer",
    "qkv_rotary",
    "quantize_fp8",
    "report",
    "residual_quantize",
    "rms_norm",
    "rotary",
    "rote",
    "strict",
    "swiglu",
    "unpack_heads",
    "unpad",
    "verify",
]

RENAMED = {"splice": "merge_embeddings"}  # old names, which work until 0.2


def explain(op: str, *args, **kwargs) -> Explanation:
    """Which implementation of an op ``impl="auto"`` would run, and why each other one would not.

    Args:
        op: the op's name, for example ``"attention"``.
        *args, **kwargs: the arguments of a call; without them, what this machine could run at all.

    Returns:
        An ``Explanation`` with ``chosen`` and ``rows``; ``print`` shows it as a table.

    Raises:
        ValueError: there is no op of that name; arguments that the op refuses.
    """
    op = RENAMED.get(op, op)
    if op not in OPS:
        raise ValueError(f"no op {op!r}; there are {', '.join(sorted(OPS))}")
    if not args and not kwargs:
        return OPS[op].explain()
    try:
        globals()[op](*args, **{**kwargs, "impl": ASKED})
    except Explained as answer:
        return answer.args[0]
    raise AssertionError(f"{op} returned without a choice")


def __getattr__(name: str):
    if name in RENAMED:
        warnings.warn(f"afn_kernels.{name} is now {RENAMED[name]}", DeprecationWarning, stacklevel=2)
        return globals()[RENAMED[name]]
    if name == "FeatureExtractor":  # imports transformers
        from afn_kernels.features import FeatureExtractor

        _versions.warn_if_newer("transformers", "numpy")
        return FeatureExtractor
    if name == "ParakeetFeatureExtractor":
        from afn_kernels.parakeet_features import ParakeetFeatureExtractor

        _versions.warn_if_newer("transformers", "numpy")
        return ParakeetFeatureExtractor
    raise AttributeError(f"module 'afn_kernels' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, "FeatureExtractor", "ParakeetFeatureExtractor", "nn", "__version__"])
