"""What answers' bits depend on beside their requests, as OpenAI's ``system_fingerprint``."""

from __future__ import annotations

import hashlib
from argparse import Namespace
from pathlib import Path

import torch

import afn_kernels

OPTIONS = ("dtype", "quantize", "kv_dtype", "deterministic", "rote", "system", "strict")
WEIGHTS = ("*.safetensors", "*.json", "*.jinja")
PART = 1 << 16  # bytes, of the beginning, the middle and the end of a large file


def fingerprint(args: Namespace, device: str) -> str:
    """``fp_`` and 12 hexadecimal digits.

    They change with versions, device, threads, the options that change answers, and the files of model and adapter. Of
    large files the size and three parts are read, not all.

    Args:
        args: the command line of ``afn serve``, with ``model`` and ``adapter``.
        device: its name, such as "cpu" or that of the GPU.
    """
    found = hashlib.sha256()
    options = [(name, getattr(args, name, None)) for name in OPTIONS]
    found.update(repr((afn_kernels.__version__, torch.__version__, device, torch.get_num_threads(), options)).encode())
    for folder in filter(None, (args.model, getattr(args, "adapter", None))):
        for file in sorted({file for pattern in WEIGHTS for file in Path(folder).glob(pattern) if file.is_file()}):
            found.update(repr((file.name, file.stat().st_size)).encode())
            with file.open("rb") as data:
                size = file.stat().st_size
                for at in sorted({0, max(0, size // 2 - PART // 2), max(0, size - PART)}):
                    data.seek(at)
                    found.update(data.read(PART))
    return f"fp_{found.hexdigest()[:12]}"
