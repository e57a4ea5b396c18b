"""Modules over the ops, for people who build their own model.

Parameters, defaults, initialisation and state-dict keys are those of the PyTorch module of the same name where there
is one. Each takes ``impl=`` as its op does. Parameters have the dtype of the input; those of norms may be float32 where
the input is bfloat16 or float16.
"""

from afn_kernels.nn.audio import AudioFrontEnd
from afn_kernels.nn.loss import LinearCrossEntropy
from afn_kernels.nn.mlp import GeGLU, SwiGLU
from afn_kernels.nn.norm import LayerNorm, PooledNorm, RMSNorm
from afn_kernels.nn.position import RotaryTimeEmbedding

__all__ = [
    "AudioFrontEnd",
    "GeGLU",
    "LayerNorm",
    "LinearCrossEntropy",
    "PooledNorm",
    "RMSNorm",
    "RotaryTimeEmbedding",
    "SwiGLU",
]
