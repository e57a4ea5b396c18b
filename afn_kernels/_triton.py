"""Whether Triton kernels can run here, and on how many programs. Importing this module does not import Triton."""

import importlib.util
import os
from functools import lru_cache

import torch

from afn_kernels import _check
from afn_kernels._registry import Impl, constant

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
compile_only = False  # python -m bench.sm90 sets it: launches compile for a GPU that is not here


@constant
def interpreted() -> bool:
    """Whether kernels run in Triton's interpreter, on CPU tensors: for tests, hundreds of times slower."""
    return os.environ.get("TRITON_INTERPRET") == "1"


@lru_cache
def _installed() -> bool:
    return importlib.util.find_spec("triton") is not None


@lru_cache
def _gpu() -> bool:
    return torch.cuda.is_available()


@constant
def available() -> str:
    """Why kernels cannot be launched on this machine; empty when they can."""
    if not _installed():
        return "triton is not installed"
    if _gpu() or interpreted() or compile_only:
        return ""
    return "no CUDA GPU is here (with TRITON_INTERPRET=1 it runs on a CPU, for tests)"


def supports(*tensors: torch.Tensor | None, dtypes: tuple[torch.dtype, ...] = DTYPES) -> str:
    """Why kernels do not take these tensors; empty when they do."""
    return _check.kernel_takes(tensors, dtypes, cpu=interpreted())


def avoid(x: torch.Tensor, *_, **__) -> str:
    """Why ``impl="auto"`` leaves a kernel aside: on the CPU it would run in the interpreter."""
    return "Triton's interpreter is for tests" if x.device.type == "cpu" else ""


def implementation(target: str, supports=supports, avoid=avoid, why: str = "") -> Impl:
    """The row of a Triton implementation in an op's table."""
    return Impl("triton", target, available=available, supports=supports, avoid=avoid, why=why)


@lru_cache
def _processors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count


def programs(device: torch.device) -> int:
    """Streaming multiprocessors, for persistent grids: 132 on an H100 or H200; 3 in the interpreter."""
    if device.type == "cuda":
        return _processors(device)
    return 132 if device.type == "meta" else 3
