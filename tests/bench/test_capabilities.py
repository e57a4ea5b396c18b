"""Kernels compiled for other GPUs fit them; the committed sweep is of the rows that are chosen now."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from afn_kernels import _device, _triton
from bench.capabilities import CAPABILITIES, DIMS, FEW, THOROUGHLY, name_of, points, spills_where_it_matters, table

ROOT = Path(__file__).parents[2]
COMMITTED = ROOT / "bench/results/capabilities"


@pytest.fixture(scope="module")
def lines() -> list[dict]:
    return [json.loads(line) for line in (COMMITTED / "sweep.jsonl").open()]


def test_everything_fits_every_device(lines):
    assert {x["capability"] for x in lines} == {name_of(one) for one in CAPABILITIES}
    assert [x for x in lines if not x["fits"]] == []
    for x in lines:
        assert x["shared"] <= _device.of(tuple(map(int, x["capability"].split("."))))


def test_what_matters_does_not_spill(lines):
    assert [x for x in lines if spills_where_it_matters(x)] == []


def test_attention_is_swept_as_it_is_chosen(lines, monkeypatch):
    """After a change of a row: python -m bench.capabilities --out bench/results/capabilities --only attention."""
    from afn_kernels.attention.config import choose

    monkeypatch.setattr(_triton, "interpreted", lambda: False)
    kernels = {"forward_kernel": "forward", "dq_kernel": "dq", "dkv_kernel": "dkv"}
    swept = set()
    for x in lines:
        if x["op"] == "attention" and x["kernel"] in kernels:
            kernel = "carry" if "carry" in x["flags"] else kernels[x["kernel"]]
            with _device.assumed(tuple(map(int, x["capability"].split(".")))):
                row = choose(kernel, x["dim"], x["dtype"] == "float32", "window" in x["flags"])
            tile = f"BLOCK_M={row.queries} BLOCK_N={row.keys} STAGES={row.stages} num_warps={row.warps}"
            assert x["tile"] == tile, x
            swept.add((x["capability"], x["dtype"], x["dim"], kernel))
    for capability in map(name_of, CAPABILITIES):
        for dim in DIMS if capability in map(name_of, THOROUGHLY) else FEW:
            assert {(capability, "bfloat16", dim, kernel) for kernel in ("forward", "carry", "dq", "dkv")} <= swept


def test_what_spills_where_it_matters(lines):
    one = next(x for x in lines if x["op"] == "attention" and x["dtype"] == "bfloat16" and x["dim"] == 128)
    assert spills_where_it_matters(one | {"spilled": 64})
    assert not spills_where_it_matters(one | {"spilled": 64, "dtype": "float32"})
    assert not spills_where_it_matters(one | {"spilled": 64, "dim": 192})


def test_the_table_is_of_the_lines(lines):
    assert (COMMITTED / "sweep.md").read_text() == table(lines)


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_points_are_distinct(capability):
    names = [(x.op, x.dtype, x.dim, x.flags) for x in points(capability)]
    assert len(names) == len(set(names))
    assert {x.dtype for x in points(capability)} == {torch.float32, torch.float16, torch.bfloat16}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_sample_compiled_anew_fits(tmp_path, request):
    """In a process of its own: kernels imported for the interpreter cannot be compiled."""
    pytest.importorskip("triton")
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "bench.capabilities", "--sample", "3", "--seed", str(request.config.option.seed)]
    subprocess.run([*command, "--out", tmp_path], cwd=ROOT, env=env, check=True, capture_output=True)
    found = [json.loads(line) for line in (tmp_path / "sweep.jsonl").open()]
    assert len(found) >= 3
    for x in found:
        assert x["fits"], x
        assert not spills_where_it_matters(x), x
