"""A tiled product with a ring of stages (gemm.cu) on the emulated Hopper, and everything that orders it left out."""

import re
from functools import partial
from pathlib import Path

import pytest
import torch

from afn_kernels import _cuda
from tests.cuda import compiler, emulated, gemm, mutants, sanitised

pytestmark = pytest.mark.skipif(not compiler(), reason="no C++ compiler")

# Two of each: more stages than the ring has and ragged everywhere; a single stage of a part of a tile.
SHAPES = {
    "bf16": ((136, 144, 264), (8, 16, 8)),
    "bf16_turned": ((72, 72, 200), (8, 64, 16)),
    "f16_narrow": ((72, 72, 200), (64, 8, 40)),
    "f16_registers": ((72, 264, 104), (64, 256, 32)),
    "bf16_threads": ((72, 72, 56), (5, 16, 8)),
    "e4m3": ((130, 144, 528), (7, 16, 16)),
    "bf16_three": ((200, 72, 264), (5, 8, 8)),
    "f16_parts": ((72, 72, 400), (8, 64, 136)),
}


@pytest.fixture(scope="module")
def csrc(tmp_path_factory) -> Path:
    return gemm.folder(tmp_path_factory.mktemp("csrc"))


@pytest.mark.parametrize("one", gemm.GEMMS, ids=lambda one: one.name)
def test_products(one, csrc):
    with emulated(csrc=csrc):
        for shape in SHAPES[one.name]:
            a, b = gemm.operands(one, *shape)
            for blocks in (1, 7):
                assert torch.equal(one(a, b, blocks), gemm.product(one, a, b)), (shape, blocks)


@pytest.mark.slow
def test_each_mutant_is_noticed(csrc, tmp_path):
    places = mutants.mutate(tmp_path, csrc)
    small = {"bf16": (128, 128, 320), "bf16_threads": (64, 64, 64), "f16_registers": (64, 256, 128)}
    small |= {"f16_narrow": (64, 64, 192), "bf16_three": (192, 256, 320), "f16_parts": (64, 64, 256)}
    named = {one.name: one for one in gemm.GEMMS}
    cases = [partial(named[name], *gemm.operands(named[name], *shape)) for name, shape in small.items()]
    with emulated(csrc=tmp_path):
        expected = [case() for case in cases]
    verdicts = {}
    for number, place in enumerate(places, 1):
        if place.file == "gemm.cu":
            verdicts[place] = mutants.said("gemm", tmp_path, number, cases, expected)
    print("\n".join(" | ".join(place.row(said)) for place, said in verdicts.items()))
    assert [place for place, said in verdicts.items() if not said] == []
    assert len(verdicts) == 45


def test_code_for_hopper(csrc, tmp_path, monkeypatch):
    """NVRTC makes products of warpgroups, tensor copies and barriers of it."""
    pytest.importorskip("cuda.bindings.nvrtc", reason="torch without CUDA's bindings")
    from bench.sm90 import machine

    monkeypatch.setenv("AFN_CACHE", str(tmp_path))
    monkeypatch.setattr(_cuda, "sources", lambda: csrc)
    code = machine.dumped(_cuda.compiled("gemm", (9, 0)), "-sass")
    functions = dict(re.findall(r"Function : gemm_(\w+)\n(.*?)(?=Function : |\Z)", code, re.DOTALL))
    assert set(functions) == {one.name for one in gemm.GEMMS}
    for one in gemm.GEMMS:
        text = functions[one.name]
        product = "QGMMA" if one.dtype == torch.float8_e4m3fn else "HGMMA"
        assert re.search(rf"{product}\.64x{one.n}x", text), one
        for instruction in ("UTMALDG.2D", "SYNCS.PHASECHK", "SYNCS.ARRIVE", "WARPGROUP.DEPBAR"):
            assert instruction in text, (one, instruction)
        assert ("USETMAXREG" in text) == (one.m >= 128)
        assert ("UTMASTG.2D" in text, "UTMAREDG.2D.ADD" in text) == (one.m == 192, one.parts > 1)


SANITISED = """
import sys, torch
from pathlib import Path
from tests.cuda import emulated, gemm
from tests.cuda.test_gemm import SHAPES
with emulated(csrc=Path(sys.argv[1])):
    for one in gemm.GEMMS:
        a, b = gemm.operands(one, *SHAPES[one.name][1])
        assert torch.equal(one(a, b), gemm.product(one, a, b)), one
"""


@pytest.mark.slow
def test_under_sanitisers(csrc):
    done, missing = sanitised(SANITISED, str(csrc))
    if done is None:
        pytest.skip(missing)
    assert done.returncode == 0, done.stderr[-3000:]
