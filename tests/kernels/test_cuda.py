"""CUDA kernels before they run: compilation at first use, and everything that a machine may lack."""

import ctypes
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import afn_kernels as ak
from afn_kernels import _cuda
from afn_kernels.log_mel import cuda as log_mel
from tests import cuda
from tests.built import built
from tests.cuda.mutants import included

nvrtc = pytest.importorskip("cuda.bindings.nvrtc", reason="torch without CUDA's bindings")
ROOT = Path(__file__).parents[2]
SOURCES = sorted(file.stem for file in (ROOT / "csrc" / "cuda").glob("*.cu"))
SOURCES = [name for name in SOURCES if not name[-1].isdigit()]  # head dims: tests/kernels/decode_attention/test_cuda.py
COMPILE = "from afn_kernels import _cuda; {}_cuda.compiled('ulysses_permute', (9, 0))"


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("AFN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


OLDER = [name for name in SOURCES if "hopper.cuh" not in included(ROOT / "csrc", name)]


# For Hopper test_binaries.py compiles them all.
@pytest.mark.parametrize(("source", "capability"), [*((name, (8, 0)) for name in OLDER), ("qkv_rotary", (9, 0))])
def test_nvrtc_compiles_once(source, capability, cache, capsys):
    code = _cuda.compiled(source, capability)
    assert code[:4] == b"\x7fELF"
    target = "sm_90a" if capability == (9, 0) else "sm_80"
    assert capsys.readouterr().err == f"afn_kernels: compiling {source} for {target}, once ...\n"
    assert _cuda.compiled(source, capability) == code
    assert capsys.readouterr().err == ""
    assert [file.suffix for file in cache.iterdir()] == [".cubin"]


@pytest.mark.slow
@pytest.mark.parametrize("source", [name for name in SOURCES if name not in OLDER])
def test_products_of_hopper_are_not_serialised(source):
    """The assembler says so where a register is used between a product and its wait: then each product waits."""

    def compile_to(file: Path) -> None:
        file.write_text(_cuda.compile_now(source, _cuda.HOPPER)[1])

    remarks = built(f"remarks-{source}", _cuda.made_of(source, _cuda.HOPPER), compile_to).read_text()
    assert not re.search(cuda.SERIALISED, remarks), remarks


def test_what_serialises_products_is_said(tmp_path, monkeypatch):
    for kind in ("cuda", "include"):
        (tmp_path / kind).mkdir()
    (tmp_path / "include" / "afn").symlink_to(ROOT / "csrc" / "include" / "afn")
    text = """#include "afn/hopper.cuh"
    struct P { float* y; };
    AFN_KERNEL(one, P, 128, 1) {
        using namespace afn;
        float d[32];
        uint64_t tile = descriptor(shared_memory(), 16, 1024, Swizzle::bytes_128);
        wgmma_fence();
        wgmma<Number::bf16, 64>(d, tile, tile, false);
        wgmma_commit();
        p.y[thread_index()] = d[0];
        wgmma_wait<0>();
        p.y[thread_index()] += d[1];
    }"""
    monkeypatch.setattr(_cuda, "sources", lambda: tmp_path)
    (tmp_path / "cuda" / "early.cu").write_text(text)
    assert re.search(cuda.SERIALISED, _cuda.compile_now("early", _cuda.HOPPER)[1])
    (tmp_path / "cuda" / "late.cu").write_text(text.replace("p.y[thread_index()] = d[0];", ""))
    assert not re.search(cuda.SERIALISED, _cuda.compile_now("late", _cuda.HOPPER)[1])


def test_another_source_is_another_kernel(cache, tmp_path, monkeypatch):
    folder = tmp_path / "csrc"
    (folder / "cuda").mkdir(parents=True)
    (folder / "include" / "afn").mkdir(parents=True)
    monkeypatch.setattr(_cuda, "sources", lambda: folder)
    (folder / "cuda" / "one.cu").write_text('extern "C" __global__ void one(float* x) { x[0] = 1; }')
    first = _cuda.compiled("one", (9, 0))
    (folder / "include" / "afn" / "new.cuh").write_text("// a header has changed")
    _cuda.compiled("one", (9, 0))
    assert len(list(cache.iterdir())) == 2
    (folder / "cuda" / "one.cu").write_text('extern "C" __global__ void one(float* x) { x[1] = 2; }')
    assert _cuda.compiled("one", (9, 0)) != first
    (folder / "cuda" / "one.cu").write_text('extern "C" __global__ void one(float* x) { y = 2; }')
    with pytest.raises(RuntimeError, match=r'one: NVRTC: .*identifier "y" is undefined'):
        _cuda.compiled("one", (9, 0))


def test_a_cache_that_cannot_be_written_costs_a_line(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("AFN_CACHE", str(tmp_path / "file" / "cache"))
    assert _cuda.compiled("qkv_rotary", (9, 0))[:4] == b"\x7fELF"
    assert "cannot keep the compiled kernel" in capsys.readouterr().err


def compiling(cache: Path, first: str = "", then: str = "") -> subprocess.Popen:
    env = {**os.environ, "AFN_CACHE": str(cache)}
    command = [sys.executable, "-c", COMPILE.format(first) + then]
    return subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True)


def test_two_processes_at_once(cache):
    process = compiling(cache, "import os; other = os.fork(); ", "; assert not other or os.wait()[1] == 0")
    said = process.communicate(timeout=120)[1]
    assert process.returncode == 0, said
    assert len(list(cache.iterdir())) == 1


def test_a_compilation_that_was_interrupted(cache):
    process = compiling(cache)
    assert "compiling ulysses_permute" in process.stderr.readline()
    time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.wait()
    cache.mkdir(exist_ok=True)
    (cache / "ulysses_permute-0.123.456").write_bytes(b"half a")  # killed while it wrote
    assert _cuda.compiled("ulysses_permute", (9, 0))[:4] == b"\x7fELF"


def test_a_binary_of_another_source_is_not_used(tmp_path, monkeypatch):
    """Whatever the times of the files are."""
    csrc, package = tmp_path / "csrc", tmp_path / "_binaries"
    monkeypatch.setattr(_cuda, "sources", lambda: csrc)
    monkeypatch.setattr(_cuda, "PACKAGE", package)
    for folder in (csrc, package):
        (folder / "cuda").mkdir(parents=True)
        (folder / "include" / "afn").mkdir(parents=True)
        (folder / "cuda" / "one.cu").write_text("source")
        (folder / "include" / "afn" / "one.cuh").write_text("header")
    os.utime(package / "cuda" / "one.cu", (0, 0))
    assert not _cuda.stale("one")
    (csrc / "include" / "afn" / "one.cuh").write_text("another header")
    assert _cuda.stale("one")
    (package / "include" / "afn" / "one.cuh").write_text("another header")
    assert not _cuda.stale("one")
    (package / "cuda" / "one.cu").unlink()
    assert _cuda.stale("one")


@pytest.fixture
def a_gpu(monkeypatch):
    """As if one were here."""
    monkeypatch.setattr(_cuda, "emulator", None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    for found in (_cuda._missing, _cuda._missing_for_hopper):
        found.cache_clear()
    yield monkeypatch
    for found in (_cuda._missing, _cuda._missing_for_hopper):
        found.cache_clear()


def test_what_is_missing_is_said(a_gpu):
    assert _cuda.available() == ""
    for name, value, said in (
        ("is_available", lambda: False, "no CUDA GPU is here"),
        ("get_device_capability", lambda device=None: (7, 5), "the GPU is sm_75; the kernels need sm_80"),
    ):
        _cuda._missing.cache_clear()
        with a_gpu.context() as patch:
            patch.setattr(torch.cuda, name, value)
            assert _cuda.available() == said
    _cuda._missing.cache_clear()
    with a_gpu.context() as patch:
        patch.setitem(sys.modules, "cuda.bindings.driver", None)
        patch.setitem(sys.modules, "cuda.bindings", None)
        assert "bindings for Python are missing" in _cuda.available()


@pytest.mark.parametrize(
    ("capability", "version", "said"),
    [
        ((9, 0), 12_000, ""),
        ((9, 0), 11_080, "the driver is of CUDA 11.8; tensor maps need 12.0"),
        ((10, 0), 13_000, "the GPU is sm_100; the kernel is for sm_90 alone"),
        ((7, 5), 13_000, "the GPU is sm_75; the kernels need sm_80"),
    ],
)
def test_what_kernels_of_hopper_need(capability, version, said, a_gpu):
    a_gpu.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
    a_gpu.setattr(_cuda, "_driver", lambda: SimpleNamespace(cuDriverGetVersion=lambda: (0, version)))
    assert _cuda.hopper() == said


class Driver:
    """Stands in for CUDA's: notes what it is asked for, and reads a launch's parameters as a GPU would."""

    class CUfunction_attribute:
        CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES = 8

    def __init__(self, size: int, code: int = 0):
        self.size, self.code, self.calls, self.most, self.context = size, code, [], 0, 0

    def __getattr__(self, name):
        def call(*args):
            self.calls.append((name, *args))
            return (0, f"{name}'s")

        return call

    def cuFuncSetAttribute(self, function, attribute, value):
        self.most = value
        return (0,)

    def cuCtxGetCurrent(self):
        return 0, self.context

    def cuCtxSetCurrent(self, context):
        self.context = context
        return (0,)

    def cuLaunchKernel(self, function, x, y, z, threads, one, two, shared, stream, parameters, extra):
        address = ctypes.cast(parameters, ctypes.POINTER(ctypes.c_void_p))[0]
        read = ctypes.string_at(address, self.size)
        assert shared <= self.most, "more shared memory than the function was given"
        assert self.context, "the thread has no context"
        self.calls.append(("launch", function, (x, y, z), (threads, one, two), shared, stream, read))
        return (self.code,)

    def cuGetErrorString(self, code):
        return 0, b"the driver's words"


def test_a_launch(a_gpu):
    kernel = _cuda.Kernel("log_mel", "log_mel_float32_float32", "PPPPPqqiiii", 320)
    values = (1, 2, 3, 4, 2**40, -7, 480_000, 3000, 94, 128, 1600)
    driver = Driver(kernel.layout.size)
    a_gpu.setattr(_cuda, "_driver", lambda: driver)
    a_gpu.setattr(_cuda, "_LIBRARIES", {("log_mel", 0): "library"})
    a_gpu.setattr(torch.cuda, "current_stream", lambda: None)
    a_gpu.setattr(torch.cuda, "device", lambda device: nullcontext())
    a_gpu.setattr(torch._C, "_cuda_getCurrentRawStream", lambda index: 77, raising=False)
    with a_gpu.context() as patch:
        patch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
        with pytest.raises(
            RuntimeError, match="log_mel_float32_float32 is being captured for the first time; call it on"
        ):
            kernel.launch((94, 1), 85_000, torch.device("cuda", 0), *values)
    assert [call[0] for call in driver.calls] == ["cuDevicePrimaryCtxRetain"]
    driver.calls.clear()
    for shared in (85_000, 40_000, 85_000):  # a limit set for the smaller size would refuse the larger one
        kernel.launch((94, 1), shared, torch.device("cuda", 0), *values)
    asked = [call[0] for call in driver.calls]
    once = ["cuLibraryGetKernel", "cuKernelGetFunction", "launch"]
    assert asked == [*once, *once, "launch"]
    assert driver.calls[0][2] == b"log_mel_float32_float32"
    *launch, read = driver.calls[-1]
    assert launch == ["launch", "cuKernelGetFunction's", (94, 1, 1), (320, 1, 1), 85_000, 77]
    assert kernel.layout.unpack(read) == values
    kernel.launch((0, 1), 0, torch.device("cuda", 0), *values)
    assert len(driver.calls) == len(asked), "a launch of no blocks is none"
    driver.code = 1
    with pytest.raises(RuntimeError, match="log_mel_float32_float32: the driver's words"):
        kernel.launch((94, 1), 85_000, torch.device("cuda", 0), *values)


# Calls through CUDA's own bindings to a driver that runs the host's kernels (tests/cuda/libcuda.c).
THROUGH_THE_DRIVER = """
import ctypes
from contextlib import nullcontext
import torch
import afn_kernels as ak
from afn_kernels import _cuda
from tests import cuda
q, cache = torch.randn(2, 1, 14, 128).half(), torch.randn(2, 2, 150, 2, 128).half()
pcm, frequencies, qkv = torch.randn(2, 9600), torch.rand(64), torch.randn(3, 18 * 128).half()
slots, positions, lengths = torch.tensor([0, 299, 7]), torch.arange(3.0), torch.tensor([150, 33])
q3, kv = torch.randn(3, 14, 128).half(), torch.randn(2, 3, 2, 128).half()
parts = ((0, 5, 0, 1), (5, 14, 0, 2))
CALLS = {
    "log_mel": lambda: ak.log_mel(pcm, impl="cuda"),
    "decode_attention": lambda: ak.decode_attention(q, *cache, lengths, impl="cuda"),
    "qkv_rotary": lambda: ak.qkv_rotary(qkv, positions, frequencies, *cache.clone(), slots, impl="cuda"),
    "attention": lambda: ak.attention(q3, *kv, causal=True, impl="cuda"),
    "ulysses_permute": lambda: ak.pack_heads(q3, *kv, parts, positions=positions, inv_freq=frequencies, impl="cuda"),
}
def through(kernel, grid, shared, parameters):
    print("given", kernel.name, *grid, kernel.threads, shared, flush=True)
    _cuda.emulator = None
    kernel.launch(grid, shared, torch.device("cuda", 0), *kernel.layout.unpack(parameters))
    _cuda.emulator = through
with cuda.emulated():
    expected = {name: call() for name, call in CALLS.items()}
torch.cuda.device = lambda device: nullcontext()
torch.cuda.get_device_capability = lambda device=None: (9, 0)
torch.cuda.is_current_stream_capturing = lambda: False
torch._C._cuda_getCurrentRawStream = lambda index: 77
_cuda.compiled = lambda source, capability: b"\\x7fELF"
_cuda.stale = lambda *_: True
_cuda.emulator = through
for name, call in CALLS.items():
    ctypes.CDLL(str(cuda.build(name, _cuda.sources())), mode=ctypes.RTLD_GLOBAL)
    for _ in range(2):  # the second finds the function where the first left it
        assert torch.equal(call(), expected[name]), name
_cuda.emulator = None
try:
    _cuda.Kernel("log_mel", "nobodys", "P", 32).launch((1, 1), 64, torch.device("cuda", 0), 0)
except RuntimeError as error:
    print("error", error)
"""


@pytest.mark.slow
def test_what_arrives_at_the_driver(tmp_path):
    if not cuda.compiler():
        pytest.skip("no C++ compiler")
    env = cuda.stub_driver(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", THROUGH_THE_DRIVER], cwd=ROOT, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-3000:]
    lines = [line.split(" ", 1) for line in done.stdout.splitlines()]
    asked = [what for what, _ in lines]
    once = ["given", "attribute", "launch", "given", "launch"]
    assert asked == ["given", "retain", *once[1:], *once * 4, "attribute", "error"]  # a thread keeps its context
    assert lines[-1][1] == "nobodys: the stub's words"
    given, launched = ([rest for what, rest in lines if what == name] for name in ("given", "launch"))
    assert launched == [f"{line} 77" for line in given]
    most = {tuple(rest.split()) for what, rest in lines[:-2] if what == "attribute"}
    assert most == {(line.split()[0], line.split()[4]) for line in given}


def test_a_driver_that_cannot_read_the_wheels_code(a_gpu, cache, tmp_path, capsys):
    """An old driver, or none of the architectures in it: the sources are compiled for this GPU instead."""
    (tmp_path / "qkv_rotary.fatbin").write_bytes(b"too new")
    a_gpu.setattr(_cuda, "PACKAGE", tmp_path)
    a_gpu.setattr(_cuda, "stale", lambda source: False)
    driver = Driver(0)
    loaded = []

    def load(code, *_):
        loaded.append(bytes(code))
        return (222, None) if code == b"too new" else (0, "library")

    driver.cuLibraryLoadData = load
    a_gpu.setattr(_cuda, "_driver", lambda: driver)
    assert _cuda._library("qkv_rotary", (9, 0)) == "library"
    assert [code[:4] for code in loaded] == [b"too ", b"\x7fELF"]
    assert "qkv_rotary.fatbin does not load here (the driver's words); compiling it" in capsys.readouterr().err
    driver.cuLibraryLoadData = lambda *_: (222, None)
    with pytest.raises(RuntimeError, match="qkv_rotary: the driver's words"):
        _cuda._library("qkv_rotary", (9, 0))


def test_without_nvrtc(cache, monkeypatch):
    monkeypatch.setitem(sys.modules, "cuda.bindings.nvrtc", None)
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    with pytest.raises(RuntimeError, match="log_mel: NVRTC is missing"):
        _cuda.compiled("log_mel", (9, 0))


def test_auto_leaves_alone_what_nobody_timed():
    pcm = torch.zeros(1, 320)
    with cuda.emulated():
        row = next(row for row in ak.explain("log_mel", pcm).rows if row.impl == "cuda")
    assert (row.status, row.reason) == ("avoided", "not yet timed on a GPU")
    before, _cuda.emulator = _cuda.emulator, None
    try:
        if not torch.cuda.is_available():
            with pytest.raises(ValueError, match="impl='cuda' cannot run this call: no CUDA GPU is here"):
                ak.log_mel(pcm, impl="cuda")
    finally:
        _cuda.emulator = before


def test_the_bytes_of_the_parameters_are_the_kernels():
    kernel = _cuda.Kernel("log_mel", "log_mel_float32_float32", "PPPPPqqi", 320)
    with cuda.emulated(), pytest.raises(AssertionError, match="bytes of parameters"):
        kernel.launch((1, 1), 1024, torch.device("cpu"), *[0] * 8)


def test_shared_memory_is_as_large_as_the_launch_asked_for(monkeypatch):
    if not cuda.compiler():
        pytest.skip("no C++ compiler")
    monkeypatch.setattr(log_mel, "SHARED", log_mel.SHARED - 64)
    with cuda.emulated(), pytest.raises(cuda.MemoryFault, match=f"beyond the {log_mel.SHARED} bytes of shared memory"):
        ak.log_mel(torch.randn(2, 9600), impl="cuda")


# All kernels under the address sanitiser and that of undefined behaviour; then what each of the two has to see.
SANITISED = """
import os, sys, torch
import afn_kernels as ak
from afn_kernels.qkv_rotary import cuda as rotary
from tests import cuda
def calls():
    ak.log_mel(torch.randn(2, 9600), impl="cuda")
    ak.log_mel(torch.ones(1, 9601, dtype=torch.int16)[:, 1:], impl="cuda", out_dtype=torch.bfloat16)
    q, cache = torch.randn(2, 1, 14, 128).half(), torch.randn(2, 2, 150, 2, 128).half()
    ak.decode_attention(q, *cache, torch.tensor([150, 33]), impl="cuda")
    inv_freq, qkv = torch.rand(64), torch.randn(3, 18 * 128).half()
    slots, positions = torch.tensor([0, 299, 7]), torch.arange(3.0)
    ak.qkv_rotary(qkv, positions, inv_freq, *cache, slots, bias=torch.randn(18 * 128 + 1).half()[1:], impl="cuda")
    q, k, v = torch.randn(3, 14, 128).half(), *torch.randn(2, 3, 2, 128).half()
    ak.attention(q, k, v, causal=True, impl="cuda")
    bounds = torch.tensor([0, 2, 3], dtype=torch.int32)
    carry = torch.randn(3, 4, 64), torch.randn(3, 4)
    wide, narrow = torch.randn(3, 4, 64).bfloat16(), torch.randn(2, 3, 2, 64).bfloat16()
    ak.attention(wide, *narrow, cu_seqlens_q=bounds, carry=carry, impl="cuda")
    pages = torch.tensor([[1, 0], [1, -1]], dtype=torch.int32)
    ak.paged_attention(q, *torch.randn(2, 2, 16, 2, 128).half(), pages, bounds, torch.tensor([30, 7]), impl="cuda")
    heads = ((0, 5, 0, 1), (5, 14, 0, 2))
    flat = ak.pack_heads(q, k, v, heads, positions=positions, inv_freq=inv_freq, impl="cuda")
    ak.unpack_heads(flat[: 3 * 14 * 128], heads, 128, impl="cuda")
def rotate(first, count):
    x = torch.zeros(count + first).half()[first:]
    options = [torch.zeros(1), torch.ones(64), torch.zeros(1, dtype=torch.int64), None, None]
    rotary.aligned = lambda bias: bias
    rotary.write(torch.zeros(1, 4 * 128).half(), x, *options, *torch.zeros(2, 4, 1, 128).half())
with cuda.emulated():
    for what, call in {"calls": calls, "beyond": lambda: rotate(0, 500), "odd": lambda: rotate(1, 512)}.items():
        print(what, file=sys.stderr, flush=True)
        if not os.fork():
            call()
            os._exit(0)
        print(what, os.waitstatus_to_exitcode(os.wait()[1]), flush=True)
"""


@pytest.mark.slow
def test_kernels_under_sanitisers():
    """No access beyond a buffer, and none that a GPU would refuse as not aligned."""
    if not cuda.compiler():
        pytest.skip("no C++ compiler")
    done, missing = cuda.sanitised(SANITISED)
    if done is None:
        pytest.skip(missing)
    codes = dict(line.split() for line in done.stdout.splitlines())
    calls, beyond, odd = (re.split(r"^(?:calls|beyond|odd)$", done.stderr, flags=re.MULTILINE) + [""] * 3)[1:4]
    assert codes.get("calls") == "0", calls[-3000:]
    assert codes.get("beyond") not in ("0", None)
    assert "heap-buffer-overflow" in beyond, beyond[-3000:]
    assert codes.get("odd") not in ("0", None)
    assert "misaligned address" in odd, odd[-3000:]
