"""Tensor maps: what the driver is asked for, and what is refused before."""

import ctypes
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from afn_kernels import _cuda, _tensor_map
from afn_kernels._tensor_map import encode
from tests import cuda

bindings = pytest.importorskip("cuda.bindings.driver", reason="torch without CUDA's bindings")

ROOT = Path(__file__).parents[2]


class MapDriver:
    """Stands in for CUDA's: notes how a map is asked for, and writes a number into it."""

    def __init__(self, monkeypatch, code: int = 0):
        self.code, self.asked = code, []
        monkeypatch.setattr(_cuda, "_driver", lambda: self)
        monkeypatch.setattr(_tensor_map, "emulator", None)
        _tensor_map._encoded.cache_clear()

    def __getattr__(self, name):
        return getattr(bindings, name)

    def cuTensorMapEncodeTiled(self, *args):
        self.asked.append([[int(n) for n in x] if isinstance(x, list) else x for x in args])
        words = (ctypes.c_uint64 * 16)(*[len(self.asked)] * 16)
        return self.code, SimpleNamespace(getPtr=lambda: ctypes.addressof(words), words=words)

    def cuGetErrorString(self, code):
        return 0, b"the driver's words"


@pytest.fixture
def driver(monkeypatch):
    yield MapDriver(monkeypatch)
    _tensor_map._encoded.cache_clear()


def test_what_the_driver_is_asked_for(driver):
    kind, swizzle = bindings.CUtensorMapDataType, bindings.CUtensorMapSwizzle
    x = torch.zeros(5, 3, 2 * 64).bfloat16()[..., :64]
    assert encode(x, (8, 1, 64), 128) == (1).to_bytes(8, "little") * 16
    codes = torch.zeros(1, 96).to(torch.float8_e4m3fn)
    encode(codes.as_strided((1, 96), (7, 1)), (16, 32), 32)  # the stride of a single row means nothing
    encode(torch.zeros(40), (20,), 0)
    bfloat16, e4m3, float32 = driver.asked
    assert bfloat16[:7] == [kind.CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 3, x.data_ptr(), [64, 3, 5], [256, 768], [64, 1, 8],
                            [1, 1, 1]]  # fmt: skip
    assert bfloat16[8] == swizzle.CU_TENSOR_MAP_SWIZZLE_128B
    assert bfloat16[10] == bindings.CUtensorMapFloatOOBfill.CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE
    assert (e4m3[0], e4m3[3:6]) == (kind.CU_TENSOR_MAP_DATA_TYPE_UINT8, [[96, 1], [16], [32, 16]])
    assert e4m3[8] == swizzle.CU_TENSOR_MAP_SWIZZLE_32B
    assert (float32[0], float32[3:6]) == (kind.CU_TENSOR_MAP_DATA_TYPE_FLOAT32, [[40], [], [20]])


# Through CUDA's own bindings to a driver that makes maps of the emulation (tests/cuda/libcuda.c).
THROUGH_THE_DRIVER = """
import torch
from afn_kernels import _cuda, _tensor_map
from bench.first.harness import GPU
from tests.cuda.tensor_map import encode, unpacked
gpu = GPU.__new__(GPU)  # what runs kept launches again
gpu.driver = _cuda._driver()
assert _cuda._done(_cuda._driver().cuDriverGetVersion(), "version") == 13000
x = torch.zeros(4, 5, 6, 7, 128).bfloat16()
codes, sums = torch.zeros(70, 96).to(torch.float8_e4m3fn), torch.zeros(1000)
for one in ((x, (1, 2, 3, 4, 64), 128), (x[0, 1:, :, 0], (1, 8, 32), 64), (codes, (64, 32), 32), (sums, (256,), 0)):
    assert _tensor_map.encode(*one) == gpu.tensor_map(*unpacked(encode(*one))) == encode(*one), one[1:]
try:
    _tensor_map.TYPES[torch.uint8] = "INT64"  # which the stub refuses
    _tensor_map.encode(torch.zeros(16, dtype=torch.uint8), (16,), 0)
except RuntimeError as error:
    print(error)
"""


@pytest.mark.slow
def test_the_bindings_give_the_driver_what_it_wants(tmp_path):
    if not cuda.compiler():
        pytest.skip("no C++ compiler")
    done = subprocess.run(
        [sys.executable, "-c", THROUGH_THE_DRIVER], cwd=ROOT, env=cuda.stub_driver(tmp_path),
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout == "tensor map of torch.uint8 (16,), strides (), box (16,), swizzle 0: the stub's words\n"


def test_a_map_is_kept_until_something_of_it_is_another(driver):
    x = torch.zeros(64, 128).half()
    first = encode(x, (64, 64), 128)
    assert encode(x.view(64, 128), (64, 64), 128) == first
    others = [encode(x, (32, 64), 128), encode(x, (64, 64), 0), encode(x[8:], (64, 64), 128)]
    others += [encode(x.view(torch.bfloat16), (64, 64), 128), encode(x[:, :64], (64, 64), 128)]
    assert len({first, *others}) == 1 + len(others) == len(driver.asked)


def test_what_the_driver_refuses_is_one_line(monkeypatch):
    MapDriver(monkeypatch, code=1)
    with pytest.raises(RuntimeError, match=r"^tensor map of torch.float16 \(8, 64\), .*: the driver's words$"):
        encode(torch.zeros(8, 64).half(), (8, 64), 128)


def test_a_tensor_without_memory_has_an_empty_map():
    assert encode(torch.empty(8, 64, dtype=torch.half, device="meta"), (8, 64), 128) == bytes(128)


@pytest.mark.parametrize("emulated", [False, True])
def test_tensor_maps_that_no_driver_makes(emulated, driver, monkeypatch):
    monkeypatch.setattr(_tensor_map, "emulator", cuda.tensor_map.encode if emulated else None)
    x = torch.zeros(8, 72).bfloat16()
    for bad, box, swizzle, said in (
        (x.double(), (8, 8), 0, "a tensor map of torch.float64"),
        (x, (8,), 0, "a box of 1 dimensions of a tensor of 2"),
        (x[:0], (8, 64), 0, r"sizes of 1 to 2³² - 1, not \(0, 72\)"),
        (x[:, 1:], (8, 64), 0, "dense rows and multiples of 16 bytes"),
        (x.T, (8, 8), 0, "dense rows"),
        (torch.zeros(8, 70).bfloat16(), (8, 64), 0, "dense rows and multiples of 16"),
        (x, (257, 64), 128, "1 to 256 elements"),
        (x, (8, 12), 0, "1 to 256 elements in each dimension and rows of multiples of 16 bytes"),
        (x, (8, 32), 128, "rows of 64 bytes cannot be swizzled by 128"),
        (x, (8, 64), 16, "cannot be swizzled by 16"),
    ):
        with pytest.raises(ValueError, match=said):
            encode(bad, box, swizzle)
    assert not driver.asked
    assert len(encode(x, (8, 64), 128)) == 128
    assert len(driver.asked) == 1 - emulated
