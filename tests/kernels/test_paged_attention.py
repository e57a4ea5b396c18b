"""What paged_attention promises beyond the questions of test_every_op.py."""

import re

import pytest
import torch

import afn_kernels as ak
from afn_kernels import _cuda, _device, _triton
from tests.budget import assert_same_but_rounding, assert_within_budget
from tests.kernels.cases.paged_attention import inputs
from tests.kernels.test_attention import needs_triton
from tests.orders import in_orders

FP8 = torch.float8_e4m3fn


@pytest.fixture
def _triton_here():
    needs_triton()


def made(new=(3, 20), cached=(40, 0), dtype=torch.float32, **shape):
    found = inputs(torch.Generator().manual_seed(4), list(new), list(cached), **shape)
    return {name: x.to(dtype) if x.is_floating_point() else x for name, x in found.items()}


def contiguous(i, row: int) -> tuple[torch.Tensor, ...]:
    """Queries, keys and values of one sequence."""
    q = i["q"][i["cu_seqlens_q"][row] : i["cu_seqlens_q"][row + 1]]
    pages = i["block_table"][row].long()
    return q, *(i[name][pages].flatten(0, 1)[: i["lengths"][row]] for name in ("k_cache", "v_cache"))


@pytest.mark.parametrize("options", [{}, {"window": (11, 0)}, {"causal": False, "softcap": 2.0}])
def test_it_is_attention_over_the_gathered_pages(options):
    i = made(dtype=torch.float64)
    out = ak.paged_attention(**i, **options, impl="reference")
    options = {"causal": True, "impl": "reference"} | options
    each = in_orders(lambda: torch.cat([ak.attention(*contiguous(i, row), **options) for row in (0, 1)]), 4)
    assert_same_but_rounding(out, each)


@pytest.mark.usefixtures("_triton_here")
def test_chunks_of_a_prompt_are_the_whole_prompt():
    i = made([70], [0])
    whole = ak.paged_attention(**i, impl="triton")
    parts = []
    for begin, end in ((0, 33), (33, 34), (34, 70)):
        some = {
            "q": i["q"][begin:end],
            "lengths": torch.tensor([end]),
            "cu_seqlens_q": torch.tensor([0, end - begin]).int(),
        }
        parts.append(ak.paged_attention(**i | some, impl="triton"))
    assert_same_but_rounding(
        torch.cat(parts), [whole, *in_orders(lambda: ak.paged_attention(**i, impl="reference"), 4)]
    )


@pytest.mark.usefixtures("_triton_here")
def test_an_fp8_cache_with_scales():
    i = made(width=32, dtype=torch.float16)
    eighth = {name: i[name].to(FP8) for name in ("k_cache", "v_cache")}
    scales = {"k_scale": torch.tensor([0.5, 1.5]), "v_scale": torch.tensor(3.0)}
    call = i | eighth | scales
    plain = {"k_cache": eighth["k_cache"].half(), "v_cache": eighth["v_cache"].half()}
    exact = {name: x.double() for name, x in plain.items()} | {"q": i["q"].double()}
    for options in ({}, {"softcap": 1.5}):
        plainly = [one | scales | options | {"impl": "reference"} for one in (i | plain, i | exact)]
        same = in_orders(lambda call=plainly[0]: ak.paged_attention(**call))
        found = ak.paged_attention(**call, **options, impl="triton")
        assert_within_budget(found, same, ak.paged_attention(**plainly[1]), name=f"fp8 {options}")


@pytest.mark.usefixtures("_triton_here")
@pytest.mark.parametrize("factor", [-1.5, 0.0, 1e-45])
def test_key_scales_of_any_sign(factor):
    i = made([5, 3], [10, 0]) | {"k_scale": torch.tensor([factor, 1.0])}
    exact = {name: x.double() if name in ("q", "k_cache", "v_cache") else x for name, x in i.items()}
    same = in_orders(lambda: ak.paged_attention(**i, impl="reference"))
    assert_within_budget(ak.paged_attention(**i, impl="triton"), same, ak.paged_attention(**exact, impl="reference"))


@pytest.mark.usefixtures("_triton_here")
@pytest.mark.parametrize("page", [5, 64])
def test_pages_before_a_window_may_be_any_number(page):
    i = made([6], [190], page=page)
    options = {"window": (9, 0), "impl": "triton"}
    before = ak.paged_attention(**i, **options)
    gone = (190 - 9) // page
    given_away = i["block_table"][0, :gone].long()
    i["k_cache"][given_away] = i["v_cache"][given_away] = float("nan")
    assert torch.isfinite(ak.paged_attention(**i, **options | {"impl": "reference"})).all()
    i["block_table"][0, :gone] = 2**30
    assert torch.equal(ak.paged_attention(**i, **options), before)
    if page < 9:
        i["block_table"][0, gone] = 2**30
        with pytest.raises(ValueError, match=f"page {gone} of sequence 0 is {2**30}, outside"):
            ak.paged_attention(**i, **options)


@pytest.mark.usefixtures("_triton_here")
def test_keys_and_values_may_lie_in_unlike_memory():
    i = made()
    same = ak.paged_attention(**i, impl="triton")
    apart = i["v_cache"].permute(2, 0, 1, 3).contiguous().permute(1, 2, 0, 3)
    assert apart.stride() != i["k_cache"].stride()
    assert torch.equal(ak.paged_attention(**i | {"v_cache": apart}, impl="triton"), same)


@pytest.mark.usefixtures("_triton_here")
def test_tiles_with_most_keys_come_first():
    from afn_kernels.paged_attention.triton import tiles_of

    table = tiles_of(torch.tensor([0, 5, 5, 45]).int(), torch.tensor([300, 7, 45]), 45, 320, 32, True)
    assert table.tolist()[:3] == [[0, 5, 0, 300, 0], [5, 40, 2, 45, 1], [5, 40, 2, 45, 0]]
    assert not table[3:, 1].any()


@pytest.mark.usefixtures("_triton_here")
def test_lengths_that_a_gpu_cannot_check_stay_within_the_pages():
    """Nobody reads them there first: too long is taken as full, and too short leaves zeros."""
    from afn_kernels.paged_attention.boundary import paged_attention

    i = made([4, 3], [12, 13])
    options = {"k_scale": None, "v_scale": None, "causal": True, "window": None, "softcap": 0.0, "scale": 1.0}
    found = paged_attention(**i | {"lengths": torch.tensor([99, 1])}, **options)
    full = paged_attention(**i | {"lengths": torch.tensor([16, 1])}, **options)
    assert torch.equal(found, full)
    assert not found[4:6].any()
    assert found[6].any()


@pytest.mark.parametrize("window", [None, (5, 0)])
def test_values_are_looked_at_where_they_are(window):
    """On a GPU, as on this CPU where it is not the default device."""
    i = made()
    i["block_table"][0, 2] = 99
    with torch.device("meta"), pytest.raises(ValueError, match="page 2 of sequence 0 is 99, outside the 7 pages"):
        ak.paged_attention(**i, window=window)


def test_devices_before_fp8_leave_its_cache_to_the_reference():
    i = made(dtype=torch.float16)
    i |= {name: i[name].to(FP8) for name in ("k_cache", "v_cache")}
    options = {"k_scale": None, "v_scale": None}
    with _device.assumed((8, 6)):
        rows = {row.impl: row for row in ak.explain("paged_attention", **i, **options).rows}
    row = rows["triton"]
    assert "FP8 begins with sm_89" in row.reason


def test_wide_heads_fit_every_device(monkeypatch):
    monkeypatch.setattr(_triton, "interpreted", lambda: False)
    from afn_kernels.paged_attention.config import choose

    with _device.assumed((8, 9)):
        small = choose(256, False)
    assert small.queries * small.keys < choose(256, False).queries * choose(256, False).keys


def test_what_it_refuses():
    i = made()
    for change, message in (
        ({"lengths": torch.tensor([2, 20])}, "length 2 is below the 3 new tokens"),
        ({"lengths": torch.tensor([49, 20])}, "length 49 is past the 3 pages of 16"),
        ({"block_table": torch.full((2, 3), 99)}, "page 0 of sequence 0 is 99, outside the 7 pages"),
        ({"block_table": i["block_table"][:1]}, r"\[N, pages\], \[N\], \[N\+1\]"),
        ({"lengths": i["lengths"].float()}, "expected integers"),
        ({"q": i["q"][..., :8]}, r"\[T, Hq, D\]"),
        ({"q": i["q"][:, :3]}, "3 query heads over 2 KV heads"),
        ({"k_cache": i["k_cache"].half()}, "cast or move"),
        ({"k_scale": 2.0}, "k_scale is a float, expected a tensor"),
        ({"v_scale": torch.ones(1, device="meta")}, "v_scale is on meta, expected cpu"),
        ({"k_scale": torch.ones(3)}, "expected float32 of 1 or 2"),
        ({"q": i["q"].clone().requires_grad_()}, "it has no backward; use torch.no_grad"),
    ):
        with pytest.raises(ValueError, match=message if "\\" in message else re.escape(message)):
            ak.paged_attention(**i | change)
    with torch.no_grad():
        ak.paged_attention(**i | {"q": i["q"].clone().requires_grad_()})
    with pytest.raises(TypeError, match=r"ak\.paged_attention"):
        ak.attention(i["q"], i["q"], i["q"], block_table=i["block_table"])


@pytest.mark.parametrize(
    ("shape", "options", "reason"),
    [
        ({"page": 5}, {}, "pages of 5 do not divide blocks of 128 keys"),
        ({"page": 48}, {}, "pages of 48 do not divide"),
        ({"width": 48}, {}, "a head of 48 is not 64 or 128"),
        ({}, {"window": (9, 0)}, "it takes no window"),
        ({}, {"k_scale": torch.ones(1)}, "it takes no scales"),
    ],
)
def test_what_the_kernel_of_hopper_does_not_take(shape, options, reason, device):
    if missing := _cuda.hopper():
        pytest.skip(missing)
    i = of_halves(device, **{"width": 64, "page": 16} | shape)
    options = {name: x.to(device) if isinstance(x, torch.Tensor) else x for name, x in options.items()}
    with pytest.raises(ValueError, match=reason):
        ak.paged_attention(**i, **options, impl="cuda")


def test_the_kernel_of_hopper_reads_any_table(device):
    """Of 64 bits, and a part of a wider one; tiles of one block or of many have the same bits."""
    if missing := _cuda.hopper():
        pytest.skip(missing)
    i = of_halves(device, width=64, page=128)
    expected = ak.paged_attention(**i, impl="cuda")
    wide = torch.full((len(i["block_table"]), 9), -1, dtype=torch.int32, device=device)
    wide[:, : i["block_table"].shape[1]] = i["block_table"]
    for table in (i["block_table"].long(), wide[:, : i["block_table"].shape[1]]):
        assert torch.equal(ak.paged_attention(**i | {"block_table": table}, impl="cuda"), expected)


def of_halves(device, **shape):
    i = inputs(torch.Generator().manual_seed(0), [3, 5], [140, 0], heads=(2, 1), **shape)
    return {name: (x.half() if x.is_floating_point() else x).to(device) for name, x in i.items()}
