"""CUDA kernels before they run: compilation at first use, and everything that a machine may lack."""

import ctypes
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

import afn_kernels as ak
from afn_kernels import _cuda
from tests import cuda

nvrtc = pytest.importorskip("cuda.bindings.nvrtc", reason="torch without CUDA's bindings")
ROOT = Path(__file__).parents[2]
SOURCES = sorted(file.stem for file in (ROOT / "csrc" / "cuda").glob("*.cu"))
SOURCES = [name for name in SOURCES if not name[-1].isdigit()]  # head dims: tests/kernels/decode_attention/test_cuda.py
COMPILE = "import sys; from afn_kernels import _cuda; _cuda.compiled(sys.argv[1], (9, 0))"


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("AFN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("capability", [(9, 0), (8, 0)])
def test_nvrtc_compiles_once(source, capability, cache, capsys):
    code = _cuda.compiled(source, capability)
    assert code[:4] == b"\x7fELF"
    target = "sm_90a" if capability == (9, 0) else "sm_80"
    assert capsys.readouterr().err == f"afn_kernels: compiling {source} for {target}, once ...\n"
    assert _cuda.compiled(source, capability) == code
    assert capsys.readouterr().err == ""
    assert [file.suffix for file in cache.iterdir()] == [".cubin"]


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
    assert _cuda.compiled("log_mel", (9, 0))[:4] == b"\x7fELF"
    assert "cannot keep the compiled kernel" in capsys.readouterr().err


def compiling(cache: Path, source: str = "log_mel") -> subprocess.Popen:
    env = {**os.environ, "AFN_CACHE": str(cache)}
    return subprocess.Popen([sys.executable, "-c", COMPILE, source], env=env, stderr=subprocess.PIPE, text=True)


def test_two_processes_at_once(cache):
    both = [compiling(cache) for _ in range(2)]
    assert [process.wait(120) for process in both] == [0, 0]
    assert len(list(cache.iterdir())) == 1


def test_a_compilation_that_was_interrupted(cache):
    process = compiling(cache)
    assert "compiling log_mel" in process.stderr.readline()
    time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.wait()
    cache.mkdir(exist_ok=True)
    (cache / "log_mel-0.123.456").write_bytes(b"half a")  # killed while it wrote
    assert _cuda.compiled("log_mel", (9, 0))[:4] == b"\x7fELF"


def test_a_binary_older_than_its_source_is_not_used(tmp_path):
    fat = tmp_path / "log_mel.fatbin"
    fat.write_bytes(b"")
    assert not _cuda._stale(fat, "log_mel")
    os.utime(fat, (0, 0))
    assert _cuda._stale(fat, "log_mel")


@pytest.fixture
def a_gpu(monkeypatch):
    """As if one were here."""
    monkeypatch.setattr(_cuda, "emulator", None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))
    _cuda._missing.cache_clear()
    yield monkeypatch
    _cuda._missing.cache_clear()


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
    for shared in (85_000, 40_000, 85_000):  # a limit set for the smaller size would refuse the larger one
        kernel.launch((94, 1), shared, torch.device("cuda", 0), *values)
    asked = [call[0] for call in driver.calls]
    once = ["cuLibraryGetKernel", "cuKernelGetFunction", "launch"]
    assert asked == ["cuDevicePrimaryCtxRetain", *once, *once, "launch"]
    assert driver.calls[1][2] == b"log_mel_float32_float32"
    *launch, read = driver.calls[-1]
    assert launch == ["launch", "cuKernelGetFunction's", (94, 1, 1), (320, 1, 1), 85_000, 77]
    assert kernel.layout.unpack(read) == values
    kernel.launch((0, 1), 0, torch.device("cuda", 0), *values)
    assert len(driver.calls) == len(asked), "a launch of no blocks is none"
    driver.code = 1
    with pytest.raises(RuntimeError, match="log_mel_float32_float32: the driver's words"):
        kernel.launch((94, 1), 85_000, torch.device("cuda", 0), *values)


def test_a_driver_that_cannot_read_the_wheels_code(a_gpu, cache, tmp_path, capsys):
    """An old driver, or none of the architectures in it: the sources are compiled for this GPU instead."""
    (tmp_path / "log_mel.fatbin").write_bytes(b"too new")
    a_gpu.setattr(_cuda, "PACKAGE", tmp_path)
    driver = Driver(0)
    loaded = []

    def load(code, *_):
        loaded.append(bytes(code))
        return (222, None) if code == b"too new" else (0, "library")

    driver.cuLibraryLoadData = load
    a_gpu.setattr(_cuda, "_driver", lambda: driver)
    assert _cuda._library("log_mel", (9, 0)) == "library"
    assert [code[:4] for code in loaded] == [b"too ", b"\x7fELF"]
    assert "log_mel.fatbin does not load here (the driver's words); compiling it" in capsys.readouterr().err
    driver.cuLibraryLoadData = lambda *_: (222, None)
    with pytest.raises(RuntimeError, match="log_mel: the driver's words"):
        _cuda._library("log_mel", (9, 0))


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


def sanitised(kind: str, *command: str) -> subprocess.CompletedProcess:
    """Runs Python with kernels compiled under a sanitiser: address, or thread, which sees a barrier that is missing."""
    if not cuda.compiler():
        pytest.skip("no C++ compiler")
    found = [
        subprocess.run(["g++", f"-print-file-name={name}"], capture_output=True, text=True, check=True).stdout.strip()
        for name in ({"address": "libasan.so", "thread": "libtsan.so"}[kind], "libstdc++.so")
    ]
    if not all(Path(file).is_absolute() for file in found):
        pytest.skip(f"no library of the {kind} sanitiser")
    env = {**os.environ, "AFN_SANITISE": kind, "LD_PRELOAD": " ".join(found), "OMP_NUM_THREADS": "1"}
    env |= {"ASAN_OPTIONS": "detect_leaks=0", "PYTHONPATH": str(ROOT)}
    env["TSAN_OPTIONS"] = "ignore_noninstrumented_modules=1 halt_on_error=1"
    done = subprocess.run([sys.executable, *command], cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    if "unexpected memory mapping" in done.stderr or "Shadow memory range" in done.stderr:
        pytest.skip(f"this system lays out memory as the {kind} sanitiser cannot have it (vm.mmap_rnd_bits)")
    return done


CALLS = """
import sys, torch
from pathlib import Path
import afn_kernels as ak
from afn_kernels import _cuda
from tests import cuda
if len(sys.argv) > 1:
    _cuda.sources = lambda: Path(sys.argv[1])
with cuda.emulated():
    ak.log_mel(torch.randn(2, 9600), impl="cuda")
    if len(sys.argv) > 1:
        sys.exit()
    ak.log_mel(torch.ones(1, 9600, dtype=torch.int16)[:, :9600], impl="cuda", out_dtype=torch.bfloat16)
    q, cache = torch.randn(2, 1, 14, 128).half(), torch.randn(2, 2, 150, 2, 128).half()
    ak.decode_attention(q, *cache, torch.tensor([150, 33]), impl="cuda")
    inv_freq, qkv = torch.rand(64), torch.randn(3, 18 * 128).half()
    slots, positions = torch.tensor([0, 299, 7]), torch.arange(3.0)
    q = ak.qkv_rotary(qkv, positions, inv_freq, *cache, slots, impl="cuda")
    k, v = torch.randn(2, 3, 2, 128).half()
    heads = ((0, 5, 0, 1), (5, 14, 0, 2))
    flat = ak.pack_heads(q, k, v, heads, positions=positions, inv_freq=inv_freq, impl="cuda")
    ak.unpack_heads(flat[: 3 * 14 * 128], heads, 128, impl="cuda")
print("done")
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["address", "thread"])
def test_kernels_under_a_sanitiser(kind):
    """No access beyond a buffer, and no two threads of a block at one place without a barrier between."""
    done = sanitised(kind, "-c", CALLS)
    assert done.stdout.endswith("done\n"), done.stdout[-3000:] + done.stderr[-3000:]


@pytest.mark.slow
def test_a_missing_barrier_is_seen(tmp_path):
    """Between the warps' maxima and the thread that reads them: a run without sanitiser is right by luck."""
    folder = tmp_path / "csrc"
    shutil.copytree(_cuda.sources(), folder)
    text = (folder / "cuda" / "log_mel.cu").read_text()
    barrier = "        sync_block();\n        // One thread waits"
    assert barrier in text
    (folder / "cuda" / "log_mel.cu").write_text(text.replace(barrier, "        // One thread waits"))
    done = sanitised("thread", "-c", CALLS, str(folder))
    assert done.returncode != 0
    assert "data race" in done.stderr


@pytest.mark.slow
def test_the_sanitiser_sees_what_lies_beyond():
    """Shared memory is exactly as large as the launch asked for."""
    done = sanitised(
        "address",
        "-c",
        CALLS.replace("with cuda", "from afn_kernels.log_mel import cuda as own\nown.SHARED -= 64\nwith cuda", 1),
    )
    assert done.returncode != 0
    assert "heap-buffer-overflow" in done.stderr
