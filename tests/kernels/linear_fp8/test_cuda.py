"""csrc/cuda/linear_fp8.cu: emulated on a CPU, with --device cuda on Hopper, within bounds of each sum's roundings."""

import re
from contextlib import nullcontext

import pytest
import torch

import afn_kernels as ak
from afn_kernels import _cuda, _tensor_map, _triton
from afn_kernels._library import BOUNDARIES
from afn_kernels.linear_fp8 import config, cuda
from tests.budget import assert_within
from tests.cuda import SERIALISED, compiler, emulated
from tests.kernels.harness import poisoned
from tests.kernels.test_linear_fp8 import FP8, PAIRS, made, whole

pytestmark = pytest.mark.skipif(not compiler(), reason="no C++ compiler")
TILES = {f"{tile.rows}x{tile.columns}": tile for tile in (config.LARGE, config.MEDIUM, config.SMALL)}


def run(i, device, dtype=torch.float32, **options):
    with emulated(**options) if device.type == "cpu" else nullcontext(), poisoned():
        return ak.linear_fp8(**i, out_dtype=dtype, impl="cuda")


def lost_by_units(x, w):
    """What Hopper's sums of e4m3 products lose at most, of values that the scales are in.

    An instruction adds 32 products and what came before them, each cut off 13 bits below the first bit of the largest,
    and so is what they come to.
    """
    found = torch.zeros(len(x), len(w), dtype=torch.float64, device=x.device)
    for block in range(0, x.shape[1], 128):
        before = torch.zeros_like(found)
        for start in range(block, min(block + 128, x.shape[1]), 32):
            part = x[:, None, start : start + 32] * w[None, :, start : start + 32]
            found += 33 * 2.0**-13 * torch.maximum(part.abs().amax(2), before.abs())
            before += part.sum(2)
            found += 2.0**-13 * before.abs()
    return found * (1 + 2.0**-6)  # what came before has such an error itself


def room(i, kind, dtype, units):
    """A result in float64 and the bound of its error, with sums as matrix units have them or of float32."""
    exact = ak.linear_fp8(**i, out_dtype=torch.float64)
    x, w = whole(i, kind)
    size = x.abs() @ w.abs().T + sum(i[name].abs().double() for name in ("bias", "residual") if name in i)
    bound = (x.shape[1] + 5) * 2.0**-24 * size + torch.finfo(dtype).eps * exact.abs()
    return exact, bound + (lost_by_units(x, w) if units else 0)


@pytest.mark.parametrize("kind", PAIRS)
@pytest.mark.parametrize("tile", TILES)
def test_tiles_and_scales(tile, kind, device, monkeypatch):
    """Several tiles a block, more blocks of K than the ring has stages, and a last one of each that is short."""
    chosen = TILES[tile]
    monkeypatch.setattr(cuda, "choose", lambda *_: chosen)
    monkeypatch.setattr(_triton, "programs", lambda device: 1)
    inner = 128 * (chosen.stages // 2) + 48
    i = made(device, chosen.rows + 9, chosen.columns + 6, inner, kind, added=kind in ("row", "tiles"))
    assert_within(run(i, device), *room(i, kind, torch.float32, device.type == "cuda"))


@pytest.mark.parametrize("kind", PAIRS)
def test_what_matrix_units_lose(kind, device):
    """They keep 14 bits of a sum: emulated, within its bound however long K is, for which sums start anew every 128."""
    i = made(device, 5, 20, 3072, kind)
    for name in ("x", "w"):
        i[name] = i[name].view(torch.uint8).bitwise_and(127).view(FP8)  # no sign, so that sums grow
    exact, bound = room(i, kind, torch.float32, True)
    found = run(i, device, **({"short_sums": True} if device.type == "cpu" else {}))
    assert_within(found, exact, bound)
    lost = (found - exact).abs().max() / exact.abs().max()
    assert 2.0**-16 < lost < 2.0**-8


@pytest.mark.parametrize(
    ("dtype", "bias", "residual", "columns"),
    [
        (torch.float32, torch.bfloat16, torch.float16, 72),
        (torch.bfloat16, torch.float16, torch.float32, 68),
        (torch.float16, torch.float32, torch.bfloat16, 72),
        (torch.bfloat16, None, torch.bfloat16, 71),
        (torch.float16, torch.float16, None, 1),
        (torch.float32, torch.float32, torch.float32, 70),
    ],
)
def test_what_is_added_and_returned(dtype, bias, residual, columns, device):
    """Four columns at once where they can be moved so, else one by one; a residual with gaps, or transposed."""
    for kind in ("row", "blocks"):
        i = made(device, 9, columns, 48, kind, added=True)
        i["scale_x"] = i["scale_x"] * 2.0**-8  # within float16
        more = i.pop("residual")
        i["bias"] = i["bias"].to(bias) if bias else torch.zeros_like(i["bias"])
        exact, bound = room(i, kind, dtype, device.type == "cuda")
        if not bias:
            del i["bias"]
        if not residual:
            assert_within(run(i, device, dtype), exact, bound)
            continue
        more = more.to(residual)
        for x in (more, torch.cat((more,) * 3, 1)[:, columns : 2 * columns], more.T.contiguous().T):
            found = run(i | {"residual": x}, device, dtype)
            assert found.dtype == dtype
            assert_within(found, exact + more, bound + torch.finfo(dtype).eps * more.abs().double())


@pytest.mark.parametrize("tile", TILES)
def test_bits_of_sums_that_are_exact(tile, device, monkeypatch):
    """Small whole numbers and powers of two: every order, every tile and the reference give the same."""
    monkeypatch.setattr(cuda, "choose", lambda *_: TILES[tile])
    g = torch.Generator().manual_seed(0)
    x, w = (torch.randint(-4, 5, (n, 400), generator=g).to(FP8) for n in (70, 130))
    scale_x, scale_w = (torch.randint(-2, 3, shape, generator=g).float().exp2() for shape in ((4, 70), (2, 4)))
    i = {"x": x, "w": w, "scale_x": scale_x.T, "scale_w": scale_w}
    i = {name: one.to(device) for name, one in i.items()}
    expected = ak.linear_fp8(**i, out_dtype=torch.float32, impl="reference")
    assert torch.equal(run(i, device), expected)
    for other in ({"backwards": True}, {"schedule": 1}, {"schedule": 2}) if device.type == "cpu" else ({},):
        assert torch.equal(run(i, device, **other), expected)


def test_operands_that_begin_anywhere(device):
    """Rows with gaps, transposed, from an odd byte on; scales with gaps: all as if they were in one piece."""
    i = made(device, 6, 20, 144, "tiles")
    expected = run(i, device)

    def odd(x):
        return torch.cat((x.view(torch.uint8).flatten()[:1], x.view(torch.uint8).flatten()))[1:].view(FP8).view(x.shape)

    def gaps(x):
        return torch.cat((x.view(torch.uint8),) * 2, 1).view(FP8)[:, : x.shape[1]]

    alike = i["x"][:1].expand(6, 144)  # which no map describes
    assert torch.equal(run(i | {"x": alike}, device), run(i | {"x": alike.contiguous()}, device))
    assert _tensor_map.mappable(alike).stride() == (144, 1)
    for change in (odd, gaps, lambda x: x.T.contiguous().T):
        assert torch.equal(run(i | {name: change(i[name]) for name in ("x", "w")}, device), expected)
    apart = {name: i[name].repeat_interleave(3, 1)[:, ::3] for name in ("scale_x", "scale_w")}
    assert torch.equal(run(i | apart, device), expected)


def test_rows_far_apart(device):
    """Offsets beyond 2³¹: of codes, of what is added. Memory is touched only where used."""
    i = made(device, 3, 16, 64, "row", added=True)
    step = 2**30 + 2048
    for name in ("x", "residual"):
        x = i[name]
        far = torch.empty(2 * step + x.shape[1], dtype=x.dtype, device=device).as_strided(x.shape, (step, 1))
        assert torch.equal(run(i | {name: far.copy_(x)}, device), run(i, device))


@pytest.mark.parametrize("kind", PAIRS)
def test_what_is_not_finite(kind, device):
    """NaN, infinite and zero scales and codes, where the reference has them."""
    i = made(device, 9, 130, 160, kind, seed=1)
    i["x"][0] = 0
    i["x"][4, 159] = i["w"][5, 0] = float("nan")
    if kind != "tensor":
        i["scale_x"][1], i["scale_x"][2, -1], i["scale_x"][3, 0] = 0, float("inf"), float("nan")
        i["scale_w"][-1] = float("-inf")
    found, expected = run(i, device), ak.linear_fp8(**i, out_dtype=torch.float32, impl="reference")
    for what in (torch.isnan, torch.isposinf, torch.isneginf):
        assert torch.equal(what(found), what(expected))
    assert found.isfinite().any()
    assert found.isnan().any()


def test_why_the_kernel_is_not_taken(device):
    calls = [
        (made(device, 3, 16, 40, "row"), {}, "K = 40; tensor maps take multiples of 16"),
        (made(device, 3, 16, 48, "row"), {"out_dtype": torch.float64}, "float64 is computed by the reference"),
        (made(device, 0, 16, 48, "row"), {}, "there is nothing to multiply"),
        (made(device, 3, 16, 0, "row"), {}, "there is nothing to multiply"),
        (made(device, 3, 16, 48, "row") | {"bias": torch.zeros(16, dtype=torch.float64, device=device)}, {}, "float64"),
    ]
    with emulated() if device.type == "cpu" else nullcontext():
        for i, options, said in calls:
            with pytest.raises(ValueError, match=f"impl='cuda' cannot run this call: {said}"):
                ak.linear_fp8(**i, **options, impl="cuda")
            ak.linear_fp8(**i, **options)
        row = ak.explain("linear_fp8", **made(device, 3, 16, 48, "row")).rows[0]
    assert (row.impl, row.status, row.reason) == ("cuda", "avoided", "not yet timed on a GPU")


def test_the_registered_op(device):
    i = made(device, 5, 20, 144, "tiles", added=True)
    with emulated() if device.type == "cpu" else nullcontext():
        codes = (i[name].view(torch.uint8) for name in ("x", "w"))
        args = *codes, *(i[name] for name in ("scale_x", "scale_w", "bias", "residual")), torch.bfloat16
        for question in ("test_schema", "test_faketensor"):
            torch.library.opcheck(BOUNDARIES["linear_fp8"].op, args, test_utils=question)


@pytest.mark.parametrize(
    ("rows", "columns", "tile"),
    [
        (1, 3584, "64x64"),
        (64, 37888, "64x64"),
        (128, 3584, "64x64"),
        (512, 3584, "128x128"),
        (8192, 512, "256x128"),
        (8192, 3584, "256x128"),
        (45000, 18944, "256x128"),
        (18944, 3584, "256x128"),
    ],
)
def test_the_tile_of_a_shape(rows, columns, tile):
    assert config.choose(rows, columns, 132) is TILES[tile]


def test_shared_memory_is_what_a_block_may_have():
    for tile in TILES.values():
        assert tile.shared(True) <= 227 << 10


@pytest.mark.slow
def test_code_for_hopper(monkeypatch):
    """NVRTC makes products of warpgroups and tensor copies of it, which wait for nothing, and keeps sums in registers.

    Threads that fetch give registers up, so that those that multiply have 232: as many as a launch of 384 x 168 leaves.
    """
    pytest.importorskip("cuda.bindings.nvrtc", reason="torch without CUDA's bindings")
    from bench.sm90 import machine, sass

    cubin, remarks = _cuda.compile_now("linear_fp8", _cuda.HOPPER)
    assert not re.search(SERIALISED, remarks), remarks
    monkeypatch.setattr(machine, "compiled_cuda", lambda source: cubin)
    for (tile, scaled), kernel in cuda.KERNELS.items():
        found, code = machine.cuda_binary(kernel, tile.shared(scaled != "at_end"))
        assert (found.spills, found.blocks) == (0, 1)
        waves = tile.rows // 64 // tile.consumers
        loop = [one.op for one in sass.main_loop(code)]
        assert sum(f"QGMMA.64x{tile.columns}x32" in op for op in loop) == found.hgmma == 4 * waves
        assert any(one.op.startswith("UTMALDG.2D") for one in code)
        assert any("USETMAXREG" in one.op for one in code) == (waves == 2)
        assert waves == 1 or (found.registers, 384 * 168) == (168, 128 * 40 + 256 * 232)
        per_element = (len(loop) - loop.count("NOP")) / (waves * tile.columns / 2)
        assert per_element < {"at_end": 4, "by_tile": 4, "by_row": 5.2}[scaled]


def test_verify_takes_what_matrix_units_keep(tmp_path, monkeypatch):
    """Its budgets hold with sums of 14 bits, emulated, as they must where it measures the kernel on Hopper."""
    monkeypatch.setenv("AFN_CACHE", str(tmp_path))
    with emulated(short_sums=True):
        report = ak.verify(["linear_fp8"], impls=["cuda"], device="cpu", keep_file=False, time=False)
    assert [row["status"] for row in report.rows if row["impl"] == "cuda"] == ["ok"] * 5
