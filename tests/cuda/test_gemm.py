"""A tiled product with a ring of stages (gemm.cu) on the emulated Hopper, and everything that orders it left out."""

import re
from functools import partial
from pathlib import Path

import pytest
import torch

from afn_kernels import _cuda
from tests import cuda
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


@pytest.mark.parametrize("seed", [1, 2])
def test_products_in_another_order(seed, csrc):
    with emulated(csrc=csrc, schedule=seed):
        for one in gemm.GEMMS:
            a, b = gemm.operands(one, *SHAPES[one.name][0])
            assert torch.equal(one(a, b), gemm.product(one, a, b)), one


@pytest.mark.parametrize(("exponent", "kept"), [(-5, True), (-6, False)])
def test_sums_of_e4m3_keep_14_bits(exponent, kept, csrc):
    """256 and then 256 times the last bit of it, or half of that; and their negatives, which are cut off towards 0."""
    a, b = torch.zeros(2, 288), torch.zeros(16, 288)
    a[0, 0], a[0, 32:] = 16, 2.0 ** (exponent + 1)
    a[1] = -a[0]
    b[:, 0], b[:, 32:] = 16, 0.5
    one = next(one for one in gemm.GEMMS if one.name == "e4m3")
    a, b = a.to(one.dtype), b.to(one.dtype)
    exact = 256 * (1 + 2.0**exponent)
    for short in (False, True):
        with emulated(csrc=csrc, short_sums=short):
            assert one(a, b)[:, 0].tolist() == ([exact, -exact] if kept or not short else [256, -256])


def test_short_sums_are_near(csrc):
    one = next(one for one in gemm.GEMMS if one.name == "e4m3")
    g = torch.Generator().manual_seed(0)
    a, b = (torch.randn(rows, 512, generator=g).to(one.dtype) for rows in (64, 32))
    with emulated(csrc=csrc, short_sums=True):
        c = one(a, b)
    exact, most = a.double() @ b.double().T, (a.abs().double() @ b.abs().double().T)
    error = ((c - exact).abs() / most).max()
    assert 2**-16 < error < 16 * 2**-13  # 16 products deep, 33 terms of each cut off


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


def test_code_for_hopper(csrc, monkeypatch):
    """NVRTC makes products of warpgroups, tensor copies and barriers of it, and waits for no product of its own."""
    pytest.importorskip("cuda.bindings.nvrtc", reason="torch without CUDA's bindings")
    from bench.sm90 import machine

    monkeypatch.setattr(_cuda, "sources", lambda: csrc)
    cubin, remarks = _cuda.compile_now("gemm", (9, 0))
    assert not re.search(cuda.SERIALISED, remarks), remarks
    code = machine.dumped(cubin, "-sass")
    use = dict(re.findall(r"Function gemm_(\w+):\s*\n.*?REG:(\d+)", machine.dumped(cubin, "--dump-resource-usage")))
    functions = dict(re.findall(r"Function : gemm_(\w+)\n(.*?)(?=Function : |\Z)", code, re.DOTALL))
    assert set(functions) == {one.name for one in gemm.GEMMS}
    for one in gemm.GEMMS:
        text = functions[one.name]
        product = "QGMMA" if one.dtype == torch.float8_e4m3fn else "HGMMA"
        assert re.search(rf"{product}\.64x{one.n}x", text), one
        for instruction in ("UTMALDG.2D", "SYNCS.PHASECHK", "SYNCS.ARRIVE", "WARPGROUP.DEPBAR"):
            assert instruction in text, (one, instruction)
        assert ("USETMAXREG" in text) == (one.m >= 128)
        if one.m >= 128:  # what threads begin with is all that there is to share
            assert int(use[one.name]) == 65536 // (128 + 2 * one.m) // 8 * 8
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
