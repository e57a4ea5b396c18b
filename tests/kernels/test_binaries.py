"""Every Triton and CUDA kernel compiled for sm_90a, with no GPU: budgets on what comes out (bench/sm90)."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from bench.ops import workloads
from bench.sm90 import lint, sass
from bench.sm90.hazards import hazards
from bench.sm90.launches import has
from bench.sm90.ptx import PtxInstruction, PtxKernel, parse
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
    yield from (file.read_bytes() for file in sorted((ROOT / "bench/sm90").glob("*.py")))


def compile_all(out: Path) -> None:
    """In a process of its own: kernels imported for the interpreter cannot be compiled."""
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "bench.sm90", "--out", out, "--lengths", "--texts"]
    subprocess.run(command, cwd=ROOT, env=env, check=True)


@pytest.fixture(scope="session")
def folder() -> Path:
    return built("sm90", made_of(), compile_all)


@pytest.fixture(scope="session")
def lines(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "kernels.jsonl").open()]


@pytest.mark.parametrize("op", OPS)
def test_no_kernel_spills(op, lines):
    for line in lines:
        if line["op"] == op and "kernel" in line:
            assert line["spills"] == 0, line
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


def test_rules_are_kept(folder):
    """bench/sm90/lint.py has the rules, and what is meant to break one with the reason."""
    found = [json.loads(line) for line in (folder / "findings.jsonl").open()]
    assert [x for x in found if not x["reason"]] == []
    for one in lint.EXCEPTIONS:
        assert any(one.covers(x["rule"], x["kernel"], x["workload"]) for x in found), f"nothing needs {one} any more"


def without(kernel: PtxKernel, kind: str, span: range) -> PtxKernel:
    code = [
        PtxInstruction("nop", ()) if i in span and one.op.startswith(kind) else one for i, one in enumerate(kernel.code)
    ]
    return PtxKernel(kernel.name, code, kernel.labels)


PIPELINED = ("attention.forward_kernel", "attention.dq_kernel", "attention.dkv_kernel")


@pytest.mark.parametrize("name", [*PIPELINED, "linear_cross_entropy.logsumexp_kernel"])
def test_what_a_loop_synchronises_with_is_missed(name, folder):
    """Its waits, its barriers and its fences, each kind taken out of a loop that multiplies matrices."""
    kernel, tried = parse((folder / "texts" / f"{name}.ptx").read_text()), 0
    assert not hazards(kernel)
    for span in kernel.loops:
        part = [kernel.code[i].op for i in span]
        for kind in ("wgmma.wait", "cp.async.wait", "bar.sync", "fence.proxy"):
            if any(op.startswith("wgmma.mma") for op in part) and any(op.startswith(kind) for op in part):
                tried += 1
                assert hazards(without(kernel, kind, span), range(0, 2)), (kind, span)
    assert tried >= 2


@pytest.mark.parametrize(
    "name",
    ["decode_attention.decode_kernel", "decode_attention.decode_attention_bfloat16_128", "log_mel.log_mel_kernel"],
)
def test_what_a_last_block_synchronises_with_is_missed(name, folder):
    """In the machine code: fences and barriers before the arrival, loads past L1 after it."""
    text = (folder / "texts" / f"{name}.sass").read_text()
    assert not sass.broken_arrivals(sass.parse(text))
    for pattern in (r"MEMBAR\.\w+\.GPU", r"BAR\.SYNC[.\w]*", r"STRONG\.GPU(?= R)|BYPASS"):
        broken = re.sub(pattern, "NOP", text)
        assert broken != text, pattern
        assert sass.broken_arrivals(sass.parse(broken)), pattern


def test_samples_of_log_mel_are_loaded_one_by_one(folder):
    text = (folder / "texts" / "log_mel.log_mel_kernel.ptx").read_text()
    names = {"log_mel_kernel_param_0": "pcm"}
    assert lint.widest_loads(parse(text))["log_mel_kernel_param_0"] == 4
    wide = text.replace("ld.global.b32 {", "ld.global.v2.b32 {")
    assert lint.vector_widths(parse(wide), names, {"pcm": 4})


@pytest.mark.parametrize("name", ["istft.forward_kernel", "residual_quantize.forward_kernel"])
def test_products_that_shall_be_float32_are(name, folder):
    """What their docstrings promise: no matrix instruction, so nothing is rounded to TF32."""
    kernel = parse((folder / "texts" / f"{name}.ptx").read_text())
    assert any(one.op.startswith("fma.rn.f32") for one in kernel.code)
    assert not any(one.op.startswith(("mma.", "wgmma.")) or "tf32" in one.op for one in kernel.code)


def test_the_document_holds_the_committed_table():
    """python -m bench.sm90 --out bench/results/sm90 writes both."""
    table, _, _ = (ROOT / "bench/results/sm90/kernels.md").read_text().partition("\n## What changed")
    assert table in (ROOT / "bench/RESULTS.md").read_text()
