"""What answers depend on beside their requests, in a few letters."""

from __future__ import annotations

import hashlib
import json

import torch

import afn_kernels
from afn_model.network.network import Network

VALUES = 64  # of each tensor


@torch.no_grad()
def weights_digest(model: Network) -> str:
    """SHA-256 over the configuration and, of each tensor, name, dtype, shape and ``VALUES`` values at even places: what
    has been trained differs everywhere, and reading 16 GB would take as long as loading them."""
    found = hashlib.sha256(repr(model.config).encode())
    tensors = [*model.named_parameters(), *model.named_buffers()]
    for name, tensor in sorted(tensors, key=lambda one: one[0]):
        flat = tensor.reshape(-1)
        places = torch.linspace(0, max(0, flat.numel() - 1), min(VALUES, flat.numel()), dtype=torch.float64)
        some = flat[places.long().to(flat.device)].contiguous().view(torch.uint8).cpu()
        found.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode() + some.numpy().tobytes())
    return found.hexdigest()


def facts(model: Network, *, weights: str, **options: object) -> dict[str, str]:
    """What bits of keys, values and answers depend on.

    Args:
        model: the model.
        weights: ``weights_digest``.
        options: of the engine.
    """
    device = torch.cuda.get_device_name(model.device) if model.device.type == "cuda" else model.device.type
    versions = {"torch": torch.__version__, "afn_kernels": afn_kernels.__version__}
    found = {"weights": weights, "dtype": model.dtype, "device": device} | versions | options
    return {name: str(value) for name, value in found.items()}


def fingerprint(found: dict[str, str]) -> str:
    """``system_fingerprint``: 12 hexadecimal digits of the SHA-256 of ``facts``."""
    return f"fp_{hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()[:12]}"
