"""Every Triton and CUDA kernel compiled for sm_90a, with no GPU: budgets on what comes out (bench/sm90.py)."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from bench.ops import workloads
from bench.sm90 import has
from tests.built import built

triton = pytest.importorskip("triton")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]  # a cold cache compiles every kernel
ROOT = Path(__file__).parents[2]
OPS = sorted({work.op for work in workloads()})


def made_of() -> Iterator[bytes]:
    """All that decides what bench.sm90 finds: compilers, kernels and the shapes they are called with."""
    yield f"{torch.__version__} {triton.__version__}".encode()
    with suppress(ImportError):
        from cuda.bindings import nvrtc

        yield repr(nvrtc.nvrtcVersion()).encode()
    for folder in ("afn_kernels", "csrc", "bench/ops"):
        files = (file for kind in ("*.py", "*.cu", "*.cuh") for file in (ROOT / folder).rglob(kind))
        yield from (
            part for file in sorted(files) for part in (str(file.relative_to(ROOT)).encode(), file.read_bytes())
        )
    yield (ROOT / "bench/sm90.py").read_bytes()


def compile_all(out: Path) -> None:
    """In a process of its own: kernels imported for the interpreter cannot be compiled."""
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    subprocess.run([sys.executable, "-m", "bench.sm90", "--out", out, "--lengths"], cwd=ROOT, env=env, check=True)


@pytest.fixture(scope="session")
def folder() -> Path:
    return built("sm90", made_of(), compile_all)


@pytest.fixture(scope="session")
def lines(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "kernels.jsonl").open()]


# Two words a thread, before and behind the loop over keys that all see: what it costs to have a second program beside
# it on a multiprocessor, of which one multiplies while the other exponentiates.
FEW = {("attention", "forward_kernel"): 8}


@pytest.mark.parametrize("op", OPS)
def test_no_kernel_spills(op, lines):
    for line in lines:
        if line["op"] == op and "kernel" in line:
            assert line["spills"] <= FEW.get((op, line["kernel"]), 0), line
            assert line["blocks"] > 0, line


@pytest.mark.parametrize("op", OPS)
def test_traffic_is_near_the_least(op, lines):
    for line in lines:
        if line["op"] == op and line.get("traffic") is not None:
            assert line["traffic"] <= 1.6, line


@pytest.mark.parametrize("op", OPS)
def test_matrix_kernels_use_matrix_instructions(op, lines):
    for work in workloads():
        found = {
            x["kernel"]: x["hgmma"] for x in lines if x["op"] == op and "kernel" in x and x["workload"] == work.name
        }
        for kernel in work.matrix if work.op == op else ():
            assert found[kernel] > 0, (work.name, found)


@pytest.mark.parametrize("op", [op for op in OPS if has(op, "triton")])
def test_twenty_lengths_compile_once(op, folder):
    """Lengths are run-time values: kernels are the same for 20 of them, odd, even, 1 and multiples of 16."""
    counts = json.loads((folder / "lengths.json").read_text())[op]
    assert counts, "nothing was launched"
    assert all(count == 1 for count in counts.values()), counts


def test_the_document_holds_the_committed_table():
    """python -m bench.sm90 --out bench/results/sm90 writes both."""
    assert (ROOT / "bench/results/sm90/kernels.md").read_text() in (ROOT / "bench/RESULTS.md").read_text()
