"""CUDA kernels of csrc/cuda: found as machine code or compiled at first use, and launched on torch's current stream.

A wheel built where nvcc is carries ``_binaries/<source>.fatbin``: code for Hopper, and, of sources that do not include
hopper.cuh, PTX from which the driver makes code for other GPUs. Without it, or on a driver that cannot read it, NVRTC
compiles the same sources once and keeps the result in ``$AFN_CACHE``, else ``$XDG_CACHE_HOME/afn_kernels``, else
``~/.cache/afn_kernels``. Nothing here links against torch, and importing this module imports no bindings of CUDA.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import struct
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

import torch

from afn_kernels import _check
from afn_kernels._kept import refuse_capture
from afn_kernels._registry import Impl, constant

PACKAGE = Path(__file__).with_name("_binaries")  # what the build leaves: sources and machine code
HOPPER = (9, 0)
OLDEST = (8, 0)  # asynchronous copies, bfloat16 matrix instructions
MAPS = 12_000  # the driver's version since which it encodes tensor maps

# For tests: runs a kernel's source compiled for the host, on CPU tensors.
emulator: Callable[[Kernel, tuple[int, int], int, bytes], None] | None = None


@constant
def emulated() -> bool:
    """Whether kernels run on CPU tensors, compiled for the host: for tests, thousands of times slower."""
    return emulator is not None


@lru_cache
def _missing() -> str:
    if not torch.cuda.is_available():
        return "no CUDA GPU is here"
    if torch.cuda.get_device_capability() < OLDEST:
        return f"the GPU is sm_{''.join(map(str, torch.cuda.get_device_capability()))}; the kernels need sm_80"
    try:
        from cuda.bindings import driver  # noqa: F401
    except ImportError as error:
        return f"CUDA's bindings for Python are missing ({error}): pip install cuda-bindings"
    if any(PACKAGE.glob("*.fatbin")):
        return ""
    try:
        from cuda.bindings import nvrtc

        _nvrtc(nvrtc.nvrtcVersion())
    except (ImportError, RuntimeError) as error:
        return f"they were built without nvcc, and NVRTC is missing ({error}): pip install cuda-python"
    return ""


@constant
def available() -> str:
    """Why kernels cannot be launched on this machine; empty when they can."""
    return "" if emulated() else _missing()


@lru_cache
def _missing_for_hopper() -> str:
    if missing := _missing():
        return missing
    major, minor = torch.cuda.get_device_capability()
    if (major, minor) != HOPPER:
        return f"the GPU is sm_{major}{minor}; the kernel is for sm_90 alone"
    version = _done(_driver().cuDriverGetVersion(), "version")
    if version < MAPS:
        return f"the driver is of CUDA {version // 1000}.{version % 1000 // 10}; tensor maps need 12.0"
    return ""


@constant
def hopper() -> str:
    """As ``available``, for kernels of Hopper's instructions."""
    return "" if emulated() else _missing_for_hopper()


def supports(*tensors: torch.Tensor | None, dtypes: tuple[torch.dtype, ...]) -> str:
    """Why kernels do not take these tensors; empty when they do."""
    return _check.kernel_takes(tensors, dtypes, cpu=emulated())


def pointer(x: torch.Tensor | None) -> int:
    """The address of a parameter that may be absent."""
    return 0 if x is None else x.data_ptr()


def implementation(
    target: str,
    supports: Callable,
    avoid: Callable | None = None,
    why: str = "",
    available: Callable[[], str] = available,
) -> Impl:
    """The row of a CUDA implementation in an op's table; ``auto`` takes none that nobody has timed."""
    return Impl("cuda", target, available, supports, avoid or (lambda *_, **__: "not yet timed on a GPU"), why)


class Kernel:
    """A kernel of a source file, loaded on each device at its first launch there.

    Args:
        source: csrc/cuda/<source>.cu.
        name: of the kernel.
        parameters: its struct of parameters, as Python's ``struct`` writes it.
        threads: of a block.
    """

    def __init__(self, source: str, name: str, parameters: str, threads: int):
        self.source, self.name, self.threads = source, name, threads
        self.layout = struct.Struct(f"@{parameters}0P")
        self._functions: dict[tuple[int, int], int] = {}
        self._local = threading.local()

    def launch(self, grid: tuple[int, int], shared: int, device: torch.device, *values: int | float | bytes) -> None:
        """Queues the kernel on the device's current stream; into a graph once it has run outside of a capture.

        Args:
            grid: blocks, at most 2³¹ − 1 by 65,535.
            shared: bytes of dynamic shared memory.
            device: of the tensors.
            *values: of the parameters; a tensor is its ``data_ptr()``, a tensor map what ``_tensor_map.encode`` makes.

        Raises:
            RuntimeError: what CUDA says; a kernel that is being captured before it was ever launched.
        """
        if not grid[0] or not grid[1]:
            return
        if emulator is not None:
            emulator(self, grid, shared, self.layout.pack(*values))
            return
        try:
            buffer, pointers = self._local.room
        except AttributeError:
            buffer, pointers = self._local.room = self._room()
            _bind(device)
        function = self._functions.get((device.index, shared)) or self._load(device, shared)
        self.layout.pack_into(buffer, 0, *values)
        stream = torch._C._cuda_getCurrentRawStream(device.index)
        code = _driver().cuLaunchKernel(
            function, grid[0], grid[1], 1, self.threads, 1, 1, shared, stream, pointers, 0
        )  # fmt: skip
        if code[0]:
            raise RuntimeError(f"{self.name}: {_said(code[0])}")

    def _room(self) -> tuple[ctypes.Array, int]:
        """Memory of this thread for the parameters, and the address of the list of pointers to it."""
        buffer = ctypes.create_string_buffer(self.layout.size)
        self._local.list = (ctypes.c_void_p * 1)(ctypes.addressof(buffer))
        return buffer, ctypes.addressof(self._local.list)

    def _load(self, device: torch.device, shared: int) -> int:
        if not any(index == device.index for index, _ in self._functions):
            refuse_capture(self.name)
        driver = _driver()
        with torch.cuda.device(device), _LOCK:
            if (self.source, device.index) not in _LIBRARIES:
                _LIBRARIES[self.source, device.index] = _library(self.source, torch.cuda.get_device_capability(device))
            library = _LIBRARIES[self.source, device.index]
            function = _done(driver.cuLibraryGetKernel(library, self.name.encode()), self.name)
            function = _done(driver.cuKernelGetFunction(function), self.name)
            attribute = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
            most = max([shared, *(size for index, size in self._functions if index == device.index)])
            _done(driver.cuFuncSetAttribute(function, attribute, most), self.name)
        self._functions[device.index, shared] = function
        return function


def sources() -> Path:
    """The folder with cuda/*.cu and include/: the checkout's, or what the build has copied."""
    checkout = Path(__file__).parents[1] / "csrc"
    return checkout if (checkout / "cuda").is_dir() else PACKAGE


def shipped() -> tuple[list[str], list[str]]:
    """Names of the sources that are here, and of those that nvcc has made machine code of."""
    binaries = {file.stem for file in PACKAGE.glob("*.fatbin")}
    names = sorted(file.stem for file in (sources() / "cuda").glob("*.cu"))
    return names, [name for name in names if name in binaries]


_LIBRARIES: dict[tuple[str, int], object] = {}
_LOCK = threading.RLock()


def _bind(device: torch.device) -> None:
    """A thread that has not used CUDA's runtime has no context, and torch gives it none on the current device."""
    driver = _driver()
    if not int(_done(driver.cuCtxGetCurrent(), "context")):
        _done(driver.cuCtxSetCurrent(_done(driver.cuDevicePrimaryCtxRetain(device.index), "context")), "context")


@lru_cache
def _driver():
    from cuda.bindings import driver

    return driver


def _said(code) -> str:
    return _driver().cuGetErrorString(code)[1].decode()


def _done(answer: tuple, what: str):
    if answer[0]:
        raise RuntimeError(f"{what}: {_said(answer[0])}")
    return answer[1] if len(answer) > 1 else None


def _library(source: str, capability: tuple[int, int]):
    driver = _driver()
    fat = PACKAGE / f"{source}.fatbin"
    if fat.is_file() and not stale(source):
        code = fat.read_bytes()
        answer = driver.cuLibraryLoadData(code, [], [], 0, [], [], 0)
        if not answer[0]:
            return answer[1]
        print(f"afn_kernels: {fat.name} does not load here ({_said(answer[0])}); compiling it", file=sys.stderr)
    return _done(driver.cuLibraryLoadData(compiled(source, capability), [], [], 0, [], [], 0), source)


def _files(source: str) -> list[Path]:
    """The source and all headers."""
    return [sources() / "cuda" / f"{source}.cu", *sorted((sources() / "include" / "afn").glob("*.cuh"))]


def stale(source: str) -> bool:
    """Whether a checkout's source is another than the one that was built, a copy of which is beside the machine code.

    Contents decide: a checkout that was copied or cloned has times of its own.
    """
    copies = [PACKAGE / file.relative_to(sources()) for file in _files(source)]
    try:
        return any(copy.read_bytes() != file.read_bytes() for copy, file in zip(copies, _files(source), strict=True))
    except OSError:
        return True


def architecture(capability: tuple[int, int]) -> str:
    """What NVRTC compiles for: sm_90a has instructions that no other GPU has."""
    return f"sm_{capability[0]}{capability[1]}{'a' if capability == HOPPER else ''}"


def compiled(source: str, capability: tuple[int, int]) -> bytes:
    """Machine code of csrc/cuda/<source>.cu from the cache, or by NVRTC, which takes some seconds, once.

    Raises:
        RuntimeError: no NVRTC, or what it says of the source.
    """
    name = hashlib.sha256(b"\0".join(made_of(source, capability))).hexdigest()[:32]
    cached = cache() / f"{source}-{name}.cubin"
    with suppress(OSError):
        return cached.read_bytes()
    print(f"afn_kernels: compiling {source} for {architecture(capability)}, once ...", file=sys.stderr, flush=True)
    code, _ = compile_now(source, capability)
    keep(cached, code)
    return code


def made_of(source: str, capability: tuple[int, int]) -> list[bytes]:
    """All that decides its machine code: compiler, options, the source and every header."""
    try:
        from cuda.bindings import nvrtc

        version = _nvrtc(nvrtc.nvrtcVersion())
    except (ImportError, RuntimeError) as error:
        raise RuntimeError(
            f"{source}: NVRTC is missing ({error}): pip install cuda-python, or build with nvcc"
        ) from None
    return [repr((version, _options(capability))).encode(), *(file.read_bytes() for file in _files(source))]


def compile_now(source: str, capability: tuple[int, int]) -> tuple[bytes, str]:
    """Machine code by NVRTC, and what its compiler and assembler remark."""
    from cuda.bindings import nvrtc

    text = (sources() / "cuda" / f"{source}.cu").read_bytes()
    options = [*_options(capability), f"--include-path={sources() / 'include'}"]
    program = _nvrtc(nvrtc.nvrtcCreateProgram(text, f"{source}.cu".encode(), 0, [], []))
    answer = nvrtc.nvrtcCompileProgram(program, len(options), [option.encode() for option in options])
    log = bytearray(_nvrtc(nvrtc.nvrtcGetProgramLogSize(program)))
    nvrtc.nvrtcGetProgramLog(program, log)
    said = log.decode(errors="replace").strip("\0 \n")
    if answer[0]:
        raise RuntimeError(f"{source}: NVRTC: {said[:2000]}")
    code = bytearray(_nvrtc(nvrtc.nvrtcGetCUBINSize(program)))
    _nvrtc(nvrtc.nvrtcGetCUBIN(program, code))
    return bytes(code), said


def _options(capability: tuple[int, int]) -> list[str]:
    return [f"--gpu-architecture={architecture(capability)}", "--std=c++17"]


def _nvrtc(answer: tuple):
    if answer[0]:
        raise RuntimeError(str(answer[0]))
    return answer[1] if len(answer) == 2 else answer[1:]


def cache() -> Path:
    """Where compiled kernels are kept; no folder where nobody says where and this user has no home."""
    if os.environ.get("AFN_CACHE"):
        return Path(os.environ["AFN_CACHE"])
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "afn_kernels"
    except RuntimeError:  # a user without a home
        return Path(os.devnull) / "afn_kernels"  # can neither be read nor made


def keep(file: Path, code: bytes) -> None:
    """Writes a file whole or not at all; a folder that cannot be written costs a line and the next compilation."""
    fresh = file.with_suffix(f".{os.getpid()}.{threading.get_ident()}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        fresh.write_bytes(code)
        os.replace(fresh, file)
    except OSError as error:
        print(f"afn_kernels: {file.parent} cannot keep the compiled kernel ({error}); AFN_CACHE names another folder",
              file=sys.stderr)  # fmt: skip
        with suppress(OSError):
            fresh.unlink()
