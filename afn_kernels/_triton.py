"""Whether Triton kernels can run here, and on how many programs. Importing this module does not import Triton."""

import importlib.util
import os
from functools import lru_cache

import torch

from afn_kernels import _check, _versions
from afn_kernels._registry import Impl, constant

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
FIRST_WITH_NUMPY_2_4 = (3, 7)  # whose interpreter reads a run-time bound from an array of one element
compile_only = False  # python -m bench.sm90 sets it: launches compile for a GPU that is not here
as_on_a_gpu = False  # tests set it: the interpreter takes the tiles of a GPU


@constant
def interpreted() -> bool:
    """Whether kernels run in Triton's interpreter, on CPU tensors: for tests, hundreds of times slower."""
    return os.environ.get("TRITON_INTERPRET") == "1"


@constant
def small_tiles() -> bool:
    """Whether kernels take tiles whose borders short tests cross: in the interpreter, unless a test wants a GPU's."""
    return interpreted() and not as_on_a_gpu


@lru_cache
def _installed() -> bool:
    return importlib.util.find_spec("triton") is not None


@lru_cache
def _gpu() -> bool:
    return torch.cuda.is_available()


@lru_cache
def _unfit(interpreted: bool) -> str:
    """Why this Triton does not run the kernels, or its interpreter does not; empty when it does."""
    triton, numpy = _versions.installed("triton"), _versions.installed("numpy")
    oldest = _versions.TESTED["triton"][0]
    if _versions.number(triton) < _versions.number(oldest):
        return f"triton {triton} is older than {oldest}, which the kernels need at least"
    if interpreted and _versions.number(numpy) >= (2, 4) and _versions.number(triton) < FIRST_WITH_NUMPY_2_4:
        cure = f'pip install "numpy<2.4", or triton {".".join(map(str, FIRST_WITH_NUMPY_2_4))} or newer'
        return f"the interpreter of triton {triton} does not run with numpy {numpy}: {cure}"
    return ""


@constant
def available() -> str:
    """Why kernels cannot be launched on this machine; empty when they can."""
    if not _installed():
        return "triton is not installed"
    simulated = interpreted()
    if why := _unfit(simulated and not compile_only):
        return why
    if _gpu() or simulated or compile_only:
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
