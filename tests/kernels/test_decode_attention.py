"""What decode_attention promises beyond the questions of test_every_op.py."""

import pytest
import torch

import afn_kernels as ak
from afn_kernels import _triton
from tests.budget import assert_same_but_rounding, assert_within_budget, fresh
from tests.kernels.cases.decode_attention import inputs
from tests.orders import in_orders

FP8 = torch.float8_e4m3fn


def made(device, capacity=150, dtype=torch.float16, **shape):
    """Inputs of the harness' cases, keys and values 3 at most so that FP8 holds them."""
    found = inputs(fresh(), capacity, **shape)
    return {n: (x.to(dtype) if x.is_floating_point() else x).to(device) for n, x in found.items()}


@pytest.mark.parametrize("scales", ["none", "tensor", "head"])
@pytest.mark.parametrize("page", [0, 16])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_fp8_cache(scales, page, dtype, device):
    i = made(device, dtype=dtype, new=2, page=page)
    i |= {name: i[name].to(FP8) for name in ("k_cache", "v_cache")}
    largest = 1e6 if dtype == torch.bfloat16 else 1e4
    i["q"] = i["q"] * torch.tensor([1e-6, 1.0, largest])[:, None, None, None].to(i["q"])
    if scales != "none":
        shape = (2,) if scales == "head" else ()
        i |= {name: torch.rand(shape, device=device) + 0.5 for name in ("k_scale", "v_scale")}
    wide = {n: x.double() if n in ("q", "k_cache", "v_cache") else x for n, x in i.items()}
    found = ak.decode_attention(**i, impl="triton")
    oracle = ak.decode_attention(**wide, impl="reference")
    same = in_orders(lambda: ak.decode_attention(**i, impl="reference"))
    assert_within_budget(found, same, oracle)


def test_a_scale_multiplies_the_entries(device):
    i = made(device, dtype=torch.float64)
    scales = {name: torch.tensor([0.5, 4.0]) for name in ("k_scale", "v_scale")}
    found = ak.decode_attention(**i, **scales, impl="reference")
    i |= {name: i[name] * scales[name.replace("cache", "scale")][:, None] for name in ("k_cache", "v_cache")}
    assert_same_but_rounding(found, in_orders(lambda: ak.decode_attention(**i, impl="reference")))


def test_scales_may_be_slices_and_expanded(device):
    i = made(device)
    pair = torch.rand(2, 2, device=device) + 0.5
    for scale in (pair[:, 0], pair[0, :1].expand(2)):
        found, expected = (
            ak.decode_attention(**i, k_scale=x, v_scale=x, impl="triton") for x in (scale, scale.contiguous())
        )
        assert torch.equal(found, expected)


def test_many_sequences_of_unequal_lengths_share_the_splits(device, monkeypatch):
    """More sequences than one vector of lengths holds, one of them far longer than the rest."""
    from afn_kernels.decode_attention import triton

    monkeypatch.setattr(triton, "BLOCK_B", 4)
    g = fresh()
    lengths = torch.tensor([1, 1, 1, 700, 1, 2, 3, 1, 300, 1], dtype=torch.int32)
    q, cache = torch.randn(10, 1, 2, 16, generator=g), torch.randn(10, 700, 1, 16, generator=g)
    i = {"q": q, "k_cache": cache, "v_cache": cache, "lengths": lengths}
    i = {name: x.to(device) for name, x in i.items()}
    wide = {name: x.double() if x.is_floating_point() else x for name, x in i.items()}
    found = ak.decode_attention(**i, impl="triton")
    for row in range(10):
        one, exact = ({name: x[row : row + 1] for name, x in given.items()} for given in (i, wide))
        same = in_orders(lambda one=one: ak.decode_attention(**one, impl="reference"))
        assert_within_budget(found[row : row + 1], same, ak.decode_attention(**exact, impl="reference"))


def test_a_split_longer_than_the_cache_is_the_whole_of_it(device):
    i = made(device, capacity=40, batch=2)
    for options in ({}, {"window": (5, 0)}):
        found, whole = (ak.decode_attention(**i, **options, split=n, impl="triton") for n in (2**31 - 16, 48))
        assert torch.equal(found, whole)


def test_the_counters_are_left_at_zero(device):
    from afn_kernels._counters import counters

    i = made(device, capacity=1000, batch=2)
    once = ak.decode_attention(**i, impl="triton")
    assert not counters(4, once.device).any()
    assert torch.equal(once, ak.decode_attention(**i, impl="triton"))


def test_an_empty_sequence_gives_zeros_and_a_length_past_the_capacity_reads_nothing_there(device):
    from afn_kernels.decode_attention.boundary import decode_attention

    i = made(device, batch=3)
    i["lengths"] = torch.tensor([0, 1, 10**6], device=device)  # a GPU's lengths are not looked at on the way
    options = {"block_table": None, "k_scale": None, "v_scale": None, "scale": 0.25}
    i["k_cache"], i["v_cache"] = (torch.nan_to_num(i[name]) for name in ("k_cache", "v_cache"))
    found = decode_attention(i["q"], i["k_cache"], i["v_cache"], i["lengths"], **options)
    assert not found[0].any()
    assert torch.isfinite(found).all()


def test_a_graph_serves_every_length(device):
    if device.type != "cuda":
        pytest.skip("CUDA graphs need a GPU")
    i = made(device, capacity=2000, page=16)
    for name in ("k_cache", "v_cache"):
        i[name] = torch.nan_to_num(i[name])
    i["block_table"] = torch.arange(i["block_table"].numel(), device=device).view(3, -1).int()
    ak.decode_attention(**i, impl="triton")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = ak.decode_attention(**i, impl="triton")
    for lengths in ([1, 1, 1], [2000, 7, 130], [16, 1999, 2000]):
        i["lengths"].copy_(torch.tensor(lengths))
        expected = ak.decode_attention(**i, impl="triton")
        for _ in range(2):
            graph.replay()
            assert torch.equal(found, expected)


@pytest.mark.parametrize("new", [1, 3])
def test_a_window_and_a_cap_are_those_of_attention(new):
    i = made(torch.device("cpu"), capacity=40, dtype=torch.float64, new=new)
    options = {"window": (5, 0), "softcap": 1.5}
    found = ak.decode_attention(**i, **options)
    for row, length in enumerate(i["lengths"].tolist()):
        one = (i["q"][row], i["k_cache"][row, :length], i["v_cache"][row, :length])
        bounds = {name: torch.tensor([0, n]).int() for name, n in (("cu_seqlens_q", new), ("cu_seqlens_k", length))}
        expected = in_orders(lambda one=one, bounds=bounds: ak.attention(*one, **bounds, causal=True, **options))
        assert_same_but_rounding(found[row], expected)


@pytest.mark.parametrize("impl", ["reference", "triton"])
def test_pages_before_a_window_may_be_gone(impl, device):
    i = made(device, batch=2, capacity=64, page=16, dtype=torch.float32)
    i["lengths"] = torch.tensor([64, 64], device=device)
    for name in ("k_cache", "v_cache"):
        i[name] = torch.nan_to_num(i[name])
    options = {"window": (20, 0), "impl": impl}
    before = ak.decode_attention(**i, **options)
    i["block_table"][:, :2] = -1
    assert torch.equal(ak.decode_attention(**i, **options), before)
    with pytest.raises(ValueError, match="page 1 of sequence 0 is -1, outside the"):
        ak.decode_attention(**i, window=(32, 0))


@pytest.mark.parametrize(
    "options", [pytest.param({}, id="all"), pytest.param({"window": (400, 0)}, id="window", marks=pytest.mark.slow)]
)
def test_fixed_splits_give_equal_bits_in_any_batch(options, device, monkeypatch):
    """Alone, among others, beside longer ones in a larger cache, and on another number of multiprocessors."""
    i = made(device, 500, batch=3, heads=3, kv_heads=1, new=2)
    i["lengths"] = torch.tensor([2, 300, 500], device=device)
    i |= {name: torch.nan_to_num(i[name]) for name in ("k_cache", "v_cache")}
    options = {"split": 64, **options}
    wide = {n: x.double() if x.is_floating_point() else x for n, x in i.items()}
    found = ak.decode_attention(**i, **options, impl="triton")
    same = in_orders(lambda: ak.decode_attention(**i, **options, impl="reference"))
    assert_within_budget(found, same, ak.decode_attention(**wide, **options, impl="reference"))
    for row in range(3):
        one = {name: x[row : row + 1] for name, x in i.items()}
        assert torch.equal(ak.decode_attention(**one, **options, impl="triton")[0], found[row])
    monkeypatch.setattr(_triton, "programs", lambda device: 5)
    longer = {name: torch.cat([x, torch.randn_like(x)], 1) for name, x in i.items() if "cache" in name}
    i["lengths"][2] = 900
    assert torch.equal(ak.decode_attention(**(i | longer), **options, impl="triton")[:2], found[:2])


@pytest.mark.parametrize("split", [0, 8, 24, -16, 32.0, True])
def test_splits_that_are_none(split):
    with pytest.raises(ValueError, match=f"split={split}, expected a multiple of 16 keys, or None"):
        ak.decode_attention(**made(torch.device("cpu")), split=split)


def test_arguments_that_are_no_tensors():
    i = made(torch.device("cpu"), dtype=torch.float32)
    for name, kind in (("q", "list"), ("k_cache", "ndarray"), ("lengths", "NoneType"), ("block_table", "list")):
        wrong = {"list": [1.0], "ndarray": i["k_cache"].numpy(), "NoneType": None}[kind]
        with pytest.raises(ValueError, match=f"decode_attention: {name} is a {kind}, expected a tensor"):
            ak.decode_attention(**i | {name: wrong})
    with pytest.raises(ValueError, match="expected a floating dtype of 16 bits"):
        ak.decode_attention(**{name: x.to(FP8) if x.is_floating_point() else x for name, x in i.items()})
    with pytest.raises(ValueError, match=r"lengths \(\) do not fit \[B\]"):
        ak.decode_attention(**i | {"lengths": i["lengths"][0]})


def test_lengths_and_pages_that_do_not_fit():
    i = made(torch.device("cpu"), dtype=torch.float32, batch=2, capacity=40, page=16)
    with pytest.raises(ValueError, match=r"lengths is torch\.float32, expected integers"):
        ak.decode_attention(**{**i, "lengths": i["lengths"].float()})
    i["lengths"] = torch.tensor([40, 20])
    i["block_table"][1, 2] = 99  # nobody reads it: 20 entries are two pages
    ak.decode_attention(**i)
    i["block_table"][1, 1] = 99
    with pytest.raises(ValueError, match="page 1 of sequence 1 is 99, outside the"):
        ak.decode_attention(**i)


def test_what_wants_a_gradient_goes_to_the_reference(device):
    i = made(device, dtype=torch.float32)
    i["q"].requires_grad_()
    with pytest.raises(ValueError, match="it has no gradient; the reference has"):
        ak.decode_attention(**i, impl="triton")
    with torch.no_grad():
        ak.decode_attention(**i, impl="triton")
    i |= {name: torch.nan_to_num(i[name]) for name in ("k_cache", "v_cache")}
    assert ak.decode_attention(**i).requires_grad


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k_scale": torch.ones(3)}, r"k_scale is torch.float32 \(3,\), expected float32 of 1 or 2"),
        ({"v_scale": torch.ones(2).double()}, r"v_scale is torch.float64 \(2,\)"),
        ({"k_cache": torch.zeros(3, 150, 2, 16).to(FP8)}, r"v_cache is torch.float16 on cpu, k_cache is torch.float8"),
    ],
)
def test_bad_input(change, message):
    with pytest.raises(ValueError, match=message):
        ak.decode_attention(**(made(torch.device("cpu")) | change))
