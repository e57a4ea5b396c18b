import re

import pytest

from afn_kernels import _cuda
from bench.sm90 import bundle, machine

pytest.importorskip("cuda.bindings.nvrtc", reason="torch without CUDA's bindings")
pytest.importorskip("triton", reason="it brings cuobjdump")

TWO = """
extern "C" __global__ void one(float* x, int n) { for (int i = 0; i < n; i++) x[i] += threadIdx.x; }
extern "C" __global__ void two(float* x) { x[threadIdx.x] *= 2; }
"""
SAME_NAME = 'extern "C" __global__ void one(double* x) { if (threadIdx.x < 9) x[threadIdx.x] = 1 / x[0]; }'


def by_function(listing: str) -> dict[str, list]:
    parts = re.split(r"Function : (\S+)\n", listing)[1:]
    return {name: machine.sass.parse(code) for name, code in zip(parts[::2], parts[1::2], strict=True)}


@pytest.mark.slow
def test_together_they_read_as_each_alone(tmp_path, monkeypatch):
    """Two functions of a file, two of one name, and another architecture."""
    monkeypatch.setenv("AFN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(_cuda, "sources", lambda: tmp_path)
    (tmp_path / "cuda").mkdir()
    (tmp_path / "include" / "afn").mkdir(parents=True)
    for name, text in {"two": TWO, "same": SAME_NAME}.items():
        (tmp_path / "cuda" / f"{name}.cu").write_text(text)
    cubins = [_cuda.compiled("two", (9, 0)), _cuda.compiled("same", (9, 0)), _cuda.compiled("same", (8, 0))]
    alone = [by_function(machine.dumped(cubin, "-sass")) for cubin in cubins]
    assert [sorted(functions) for functions in alone] == [["one", "two"], ["one"], ["one"]]
    assert alone[0]["one"] != alone[1]["one"] != alone[2]["one"]
    assert any(one.target for one in alone[0]["one"]), "a branch, whose target counts from the function's start"
    monkeypatch.setattr(machine, "_LISTINGS", {})
    machine.list_at_once([*cubins, cubins[0]])
    monkeypatch.setattr(machine, "dumped", None)
    assert [by_function(machine.listed(cubin)) for cubin in cubins] == alone
    assert len({bundle.architecture(cubin) for cubin in cubins}) == 2
