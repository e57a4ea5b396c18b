"""csrc/cuda/decode_attention.cu: on a CPU its blocks run as threads, with --device cuda on the GPU."""

import math
import re
import subprocess
from contextlib import nullcontext

import pytest
import torch

import afn_kernels as ak
from afn_kernels import _cuda, _triton
from afn_kernels._counters import counters
from afn_kernels._library import BOUNDARIES
from afn_kernels.decode_attention import CUDA_CAP, CUDA_SHARED, cuda
from afn_kernels.decode_attention.boundary import decode_attention_cuda
from afn_kernels.decode_attention.config import HEAD_DIMS
from afn_kernels.decode_attention.cuda import KERNELS, sizes
from tests.budget import assert_within, assert_within_budget, fresh
from tests.cuda import emulated
from tests.kernels.cases.decode_attention import inputs
from tests.kernels.harness import poisoned
from tests.orders import in_orders

FP8 = torch.float8_e4m3fn
HALVES = (torch.bfloat16, torch.float16)


def zeros(*shape):
    return torch.zeros(shape, dtype=torch.float16)


def made(device, capacity=150, dtype=torch.bfloat16, fp8=False, seed=None, width=128, **shape):
    """Lengths from the new tokens to the capacity, both included; NaN behind them and in a page that is nobody's."""
    g = fresh() if seed is None else torch.Generator().manual_seed(seed)
    found = inputs(g, capacity, width=width, **shape)
    found = {name: (x.to(dtype) if x.is_floating_point() else x).to(device) for name, x in found.items()}
    return found | {name: found[name].to(FP8) for name in ("k_cache", "v_cache") if fp8}


def run(i, *, backwards=False, **options):
    with emulated(backwards=backwards) if i["q"].device.type == "cpu" else nullcontext(), poisoned():
        return ak.decode_attention(**i, **options, impl="cuda")


def check(i, found=None, **options):
    wide = {name: x.double() if name in ("q", "k_cache", "v_cache") else x for name, x in i.items()}
    oracle = ak.decode_attention(**wide, **options, impl="reference")
    found = run(i, **options) if found is None else found
    assert_within_budget(found, in_orders(lambda: ak.decode_attention(**i, **options, impl="reference"), 4), oracle)


SHAPES = {
    "28:4 heads": {"capacity": 137, "batch": 2, "heads": 28, "kv_heads": 4},
    "4 tokens x 7 heads, pages of 5": {"capacity": 150, "batch": 2, "new": 4, "heads": 14, "page": 5},
    "2 tokens, pages of 64": {"capacity": 200, "new": 2, "heads": 3, "kv_heads": 1, "page": 64},
    "64 rows": {"capacity": 270, "batch": 1, "new": 8, "heads": 8, "kv_heads": 1},
    "a single key": {"capacity": 1, "batch": 1, "heads": 2},
}


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_within_budget(shape, dtype, device):
    check(made(device, dtype=dtype, **shape))


@pytest.mark.parametrize("fp8", [False, True])
@pytest.mark.parametrize("width", sorted({*HEAD_DIMS} - {128}))
def test_other_head_dims(width, fp8, device):
    """Several tiles of keys, the last of them short, and two tiles of rows."""
    capacity = sizes(width, fp8)[0] + 70
    check(made(device, capacity, fp8=fp8, width=width, batch=2, new=3, heads=6, kv_heads=1, page=5))


@pytest.mark.slow
@pytest.mark.parametrize("width", sorted({*HEAD_DIMS} - {128}))
def test_no_head_dim_spills(width, tmp_path, monkeypatch):
    """Heads of 128 are what bench.sm90 compiles."""
    pytest.importorskip("cuda.bindings.nvrtc", reason="torch without CUDA's bindings")
    tools = pytest.importorskip("triton.knobs").nvidia
    monkeypatch.setenv("AFN_CACHE", str(tmp_path))
    _cuda.compiled(KERNELS["bfloat16", False, width].source, _cuda.HOPPER)
    (cubin,) = tmp_path.iterdir()
    command = [tools.cuobjdump.path, "--dump-resource-usage", str(cubin)]
    used = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    stacks = dict(re.findall(r"Function (\w+):\s*\n.*?STACK:(\d+)", used))
    assert stacks == {KERNELS[key].name: "0" for key in KERNELS if key[2] == width}


def test_wide_heads_of_as_many_rows_as_there_may_be(device):
    """Two warps share the columns of each tile of rows, and none its keys."""
    check(made(device, 90, torch.float16, width=256, batch=2, new=4, heads=16, kv_heads=1))


def test_shared_memory_is_what_hopper_has():
    assert max(sizes(width, fp8)[1] for width in HEAD_DIMS for fp8 in (False, True)) <= CUDA_SHARED <= 227 << 10


OPTIONS = {
    "window": {"window": (40, 0)},
    "window of most of the keys": {"window": (130, -1)},
    "window of its own key": {"window": (0, 0)},
    "softcap": {"softcap": 1.5},
    "the largest softcap": {"softcap": CUDA_CAP},
    "splits of 32": {"split": 32},
    "all three": {"window": (100, 0), "softcap": 3.0, "split": 48},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_options(options, device):
    check(made(device, 150, torch.float16, width=64, batch=2, new=3, heads=4, page=5), **options)


def test_pages_before_a_window_may_be_gone(device):
    i = made(device, 64, width=64, batch=1, heads=1, kv_heads=1, page=5)
    before = run(i, window=(20, 0))
    i["block_table"][:, : (64 - 21) // 5] = -1
    assert torch.equal(run(i, window=(20, 0)), before)


def test_fixed_splits_give_equal_bits_in_any_batch(device, monkeypatch):
    """Alone, among others, beside longer ones in a larger cache, and on another number of multiprocessors."""
    i = made(device, 300, torch.float16, width=64, batch=3, heads=3, kv_heads=1, new=2)
    i["lengths"] = torch.tensor([290, 97, 2], device=device)  # more parts of the first than a block that goes on merges
    i |= {name: torch.nan_to_num(i[name]) for name in ("k_cache", "v_cache")}
    found = run(i, split=16)
    for row in range(3):
        assert torch.equal(run({name: x[row : row + 1] for name, x in i.items()}, split=16)[0], found[row])
    monkeypatch.setattr(_triton, "programs", lambda device: 7)
    longer = {name: torch.cat([x, torch.randn_like(x)], 1) for name, x in i.items() if "cache" in name}
    i["lengths"][2] = 500
    assert torch.equal(run(i | longer, split=16)[:2], found[:2])
    assert not counters(3, found.device).any()


def test_a_split_longer_than_the_cache_is_the_whole_of_it(device):
    i = made(device, 20, width=64, batch=9, heads=2)
    found = run(i, split=2**31 - 16)
    assert torch.equal(found, run(i, split=48))


@pytest.mark.parametrize(("scales", "new", "page"), [("none", 1, 0), ("tensor", 1, 16), ("head", 3, 5)])
@pytest.mark.parametrize("dtype", HALVES)
def test_fp8_cache(scales, new, page, dtype, device):
    """Queries of every size: float16 holds the values of the cache, but not 10⁶ or 10⁻⁶."""
    i = made(device, 270, dtype, fp8=True, new=new, page=page, heads=14)
    largest = 1e6 if dtype == torch.bfloat16 else 1e4
    i["q"] = i["q"] * torch.tensor([1e-6, 1.0, largest])[:, None, None, None].to(i["q"])
    if scales != "none":
        shape = (2,) if scales == "head" else ()
        i |= {name: torch.rand(shape, device=device) + 0.5 for name in ("k_scale", "v_scale")}
    check(i)


@pytest.mark.parametrize("fp8", [False, True])
def test_small_weights_add_up(fp8, device):
    """A key that outweighs each of 255 others by 2²⁶: as float16 their weights would be 0."""
    q, k, v = (torch.zeros(1, n, 1, 128, dtype=torch.float16, device=device) for n in (1, 256, 256))
    q[..., 0], k[0, 77, 0, 0], v[0, :77], v[0, 78:] = 26.0, 1.0, 256.0, 256.0
    k, v = (x.to(FP8) if fp8 else x for x in (k, v))
    lengths = torch.tensor([256], device=device)
    found = run({"q": q, "k_cache": k, "v_cache": v, "lengths": lengths, "scale": math.log(2)})
    exact = torch.full(found.shape, 256 * 255 / (2**26 + 255), dtype=torch.float64, device=device)
    # One rounding to float16, and one for what 255 weights lose in float32.
    assert_within(found, exact, 2 * torch.finfo(torch.float16).eps * exact)


def test_lengths_of_zero_and_one_and_past_the_capacity(device):
    i = made(device, 60, batch=4, heads=7, kv_heads=1, page=16)
    i["block_table"] = torch.arange(16, device=device).view(4, 4)
    for name in ("k_cache", "v_cache"):
        i[name] = torch.randn_like(i[name])
    i["k_cache"][-1, 12:], i["v_cache"][0, 1:] = float("nan"), float("nan")
    i["lengths"] = torch.tensor([1, 0, 10**6, 60], device=device)  # a GPU's lengths are not looked at on the way
    options = {"block_table": i["block_table"], "k_scale": None, "v_scale": None, "scale": 0.25}
    with emulated() if device.type == "cpu" else nullcontext(), poisoned():
        found = decode_attention_cuda(i["q"], i["k_cache"], i["v_cache"], i["lengths"], **options)
    assert not found[1].any()
    i["lengths"] = torch.tensor([1, 1, 64, 60], device=device)
    rows = [0, 2, 3]
    check(i | {name: i[name][rows] for name in ("q", "lengths", "block_table")} | {"scale": 0.25}, found[rows])


def test_many_sequences_of_unequal_lengths(device, monkeypatch):
    """More sequences than a warp has lanes; ranges begin and end within them."""
    monkeypatch.setattr(cuda, "least_tiles", lambda rows: 0)
    lengths = torch.ones(70, dtype=torch.int32, device=device)
    lengths[[3, 31, 32, 66]] = torch.tensor([200, 40, 17, 100], dtype=torch.int32, device=device)
    cache = torch.randn(2, 70, 200, 1, 128, device=device).half()
    cache[:, torch.arange(200, device=device) >= lengths[:, None]] = float("nan")
    q = torch.randn(70, 1, 2, 128, device=device).half()
    check({"q": q, "k_cache": cache[0], "v_cache": cache[1], "lengths": lengths})


@pytest.mark.parametrize(("programs", "capacity", "batch"), [(19, 560, 2), (50, 800, 1)])
def test_many_parts_of_one_head(programs, capacity, batch, device, monkeypatch):
    """More parts than are merged at once, by a block that has more to do and by one that has not."""
    monkeypatch.setattr(cuda, "least_tiles", lambda rows: 0)
    monkeypatch.setattr(_triton, "programs", lambda device: programs)
    i = made(device, capacity, torch.float16, batch=batch, heads=1, kv_heads=1)
    if batch == 2:
        i["lengths"][0] = 20
        i = {name: torch.nan_to_num(x).flip(0) for name, x in i.items()}
    i["k_cache"] *= torch.linspace(0.1, 2.0, capacity, device=device)[:, None, None].half()  # maxima rise to the end
    check(i, run(i))
    assert not counters(batch, i["q"].device).any()


@pytest.mark.parametrize("fp8", [False, True])
def test_equal_inputs_give_equal_bits_whichever_block_is_last(fp8, device):
    i = made(device, 150, fp8=fp8, batch=2, heads=4, new=2)
    found = run(i)
    assert not counters(4, found.device).any()
    assert torch.equal(found, run(i, backwards=True))
    assert not counters(4, found.device).any()
    i["lengths"] = i["lengths"].int()
    assert torch.equal(found, run(i))


def test_pages_change_no_bit(device):
    i = made(device, 80, batch=2, heads=7, kv_heads=1, page=16)
    whole = {name: i[name][i["block_table"].long()].flatten(1, 2) for name in ("k_cache", "v_cache")}
    found = run(i)
    i["block_table"] = i["block_table"].long()
    assert torch.equal(found, run(i))
    del i["block_table"]
    assert torch.equal(found, run(i | whole))


def test_strided_inputs(device):
    i = made(device, 40, batch=2, heads=4)
    expected = run(i)
    wide = torch.full((2, 1, 4, 3, 131), float("nan")).to(i["q"])
    i["q"] = wide[:, :, :, 1, 1:129].copy_(i["q"])
    i |= {
        "k_cache": torch.stack([i["k_cache"]] * 3, 2)[:, :, 1],
        "v_cache": torch.cat([i["v_cache"]] * 2, 3)[..., :128],
    }
    assert torch.equal(expected, run(i))


def test_a_graph_serves_every_length(device):
    if device.type != "cuda":
        pytest.skip("CUDA graphs need a GPU")
    i = made(device, 5000, page=16, heads=28, kv_heads=4)
    for name in ("k_cache", "v_cache"):
        i[name] = torch.nan_to_num(i[name])
    i["block_table"] = torch.arange(i["block_table"].numel(), device=device).view(3, -1).int()
    run(i)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = ak.decode_attention(**i, impl="cuda")
    for lengths in ([1, 1, 1], [5000, 7, 130], [16, 4999, 5000]):
        i["lengths"].copy_(torch.tensor(lengths))
        expected = run(i)
        for _ in range(2):
            graph.replay()
            assert torch.equal(found, expected)


def test_the_registered_op(device):
    i = made(device, 20, batch=1, heads=2, kv_heads=1)
    with emulated() if device.type == "cpu" else nullcontext():
        args = (*i.values(), None, None, None, 0, -1, 0.0, 0.1)
        torch.library.opcheck(BOUNDARIES["decode_attention_cuda"].op, args, test_utils="test_schema")
        torch.library.opcheck(BOUNDARIES["decode_attention_cuda"].op, args, test_utils="test_faketensor")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"q": zeros(1, 1, 2, 72), "k_cache": zeros(1, 9, 1, 72)},
            "heads of 72 elements; it has kernels for 64, 80, 96",
        ),
        ({"q": zeros(1, 9, 8, 128)}, "9 tokens times 8 query heads of a KV head are more than 64"),
        ({"k_cache": zeros(1, 9, 1, 132)[..., :128]}, "its rows do not begin at multiples of 16 bytes"),
        ({"softcap": 257.0}, "softcap=257.0 is above 256, where its hyperbolic"),
        ({"q": zeros(1, 1, 2, 128).requires_grad_()}, "it has no gradient; the reference has"),
    ],
)
def test_what_it_leaves_to_others(change, message):
    i = {"q": zeros(1, 1, 2, 128), "k_cache": zeros(1, 9, 1, 128), "lengths": torch.tensor([9])} | change
    with emulated(), pytest.raises(ValueError, match=message):
        ak.decode_attention(**i, v_cache=torch.zeros_like(i["k_cache"]), impl="cuda")


def test_it_is_not_chosen_unasked():
    tensors = zeros(1, 1, 2, 128), zeros(1, 9, 1, 128), zeros(1, 9, 1, 128), torch.tensor([9])
    options = {"block_table": None, "k_scale": None, "v_scale": None, "scale": 1.0}
    with emulated():
        rows = {row.impl: row for row in ak.explain("decode_attention", *tensors, **options).rows}
    assert (rows["cuda"].status, rows["cuda"].reason) == ("avoided", "not yet timed on a GPU")
