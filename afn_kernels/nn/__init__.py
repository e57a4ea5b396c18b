"""Modules over the ops, for people who build their own model.

Parameters, defaults, initialisation and state-dict keys are those of the PyTorch module of the same name where there
is one. Each takes ``impl=`` as its op does, and a parameter has the dtype of the input: cast the whole module.
"""

from afn_kernels.nn.audio import AudioFrontEnd
from afn_kernels.nn.loss import LinearCrossEntropy
from afn_kernels.nn.mlp import SwiGLU
from afn_kernels.nn.norm import LayerNorm, PooledNorm, RMSNorm
from afn_kernels.nn.position import RotaryTimeEmbedding

__all__ = [
    "AudioFrontEnd",
    "LayerNorm",
    "LinearCrossEntropy",
    "PooledNorm",
    "RMSNorm",
    "RotaryTimeEmbedding",
    "SwiGLU",
]
