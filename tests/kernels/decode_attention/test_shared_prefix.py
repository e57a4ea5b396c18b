"""Sequences that begin with the same keys, against the reference that reads each by itself."""

import pytest
import torch

import afn_kernels as ak
from afn_kernels import _triton
from afn_kernels._library import BOUNDARIES
from afn_kernels.decode_attention.boundary import decode_attention
from tests.budget import assert_within_budget, fresh
from tests.kernels.harness import poisoned
from tests.orders import in_orders

FP8 = torch.float8_e4m3fn


def made(device, prefixes=(100, 0), members=3, own=40, page=0, new=1, heads=6, kv_heads=2, width=16):
    """Groups whose first sequence alone has the prefix; the others have NaN there, and pages that are none."""
    g, batch, dtype = fresh(), members * len(prefixes), torch.float16
    capacity = -(-(max(prefixes) + own + new) // max(page, 1)) * max(page, 1)
    prefix = torch.tensor(prefixes)
    lengths = prefix.repeat_interleave(members) + torch.randint(new, own + 1, (batch,), generator=g)
    cache = torch.randn(2, batch, capacity, kv_heads, width, generator=g).to(dtype)
    cache = cache.masked_fill((torch.arange(capacity) >= lengths[:, None])[..., None, None], float("nan"))
    other = torch.arange(batch) % members > 0
    hidden = other[:, None] & (torch.arange(capacity) < prefix.repeat_interleave(members)[:, None])
    cache = cache.masked_fill(hidden[..., None, None], float("nan"))
    q = torch.randn(batch, new, heads, width, generator=g).to(dtype)
    i = {"q": q, "k_cache": cache[0], "v_cache": cache[1], "lengths": lengths, "prefix_lengths": prefix}
    if page:
        pages = capacity // page
        i |= {name: i[name].reshape(batch * pages, page, kv_heads, width) for name in ("k_cache", "v_cache")}
        table = torch.arange(batch * pages).view(batch, pages)
        gone = other[:, None] & (torch.arange(pages) < prefix.repeat_interleave(members)[:, None] // page)
        i["block_table"] = table.masked_fill(gone, -1).int()
    return {name: x.to(device) for name, x in i.items()}


def alone(i):
    """The same without a prefix: every sequence has its keys itself."""
    members = len(i["q"]) // len(i["prefix_lengths"])
    prefix = i["prefix_lengths"].repeat_interleave(members)
    first = torch.arange(len(i["q"]), device=prefix.device) // members * members
    k, v = i["k_cache"], i["v_cache"]
    if "block_table" in i:
        k, v = (x[i["block_table"].long().clamp_min(0)].flatten(1, 2) for x in (k, v))
    shared = (torch.arange(k.shape[1], device=prefix.device) < prefix[:, None])[..., None, None]
    k, v = (torch.where(shared, x[first], x) for x in (k, v))
    rest = {name: x for name, x in i.items() if name not in ("prefix_lengths", "block_table")}
    return rest | {"k_cache": k, "v_cache": v}


def check(i, **options):
    each = alone(i)
    wide = {name: x.double() if name in ("q", "k_cache", "v_cache") else x for name, x in each.items()}
    oracle = ak.decode_attention(**wide, **options, impl="reference")
    same = in_orders(lambda: ak.decode_attention(**each, **options, impl="reference"))
    with poisoned():
        found = ak.decode_attention(**i, **options, impl="triton")
    assert_within_budget(found, same, oracle)
    assert_within_budget(ak.decode_attention(**i, **options, impl="reference"), same, oracle)
    return found


SHAPES = {
    "one group of eight": {"prefixes": (150,), "members": 8, "heads": 7, "kv_heads": 1},
    "pages of 16, a prefix that ends within one": {"page": 16, "new": 2},
    "more rows than a tile": {"prefixes": (70,), "members": 5, "new": 3, "heads": 10, "kv_heads": 2, "width": 24},
    "groups of one": {"prefixes": (20, 30), "members": 1},
}


@pytest.mark.parametrize(
    "shape",
    [pytest.param(x, id=name, marks=[pytest.mark.slow] * name.startswith("more")) for name, x in SHAPES.items()],
)
def test_within_budget(shape, device):
    check(made(device, **shape))


@pytest.mark.slow
def test_capped_scores_of_an_fp8_cache(device):
    i = made(device, new=2)
    i |= {name: i[name].to(FP8) for name in ("k_cache", "v_cache")}
    i |= {name: torch.rand(2, device=device) + 0.5 for name in ("k_scale", "v_scale")}
    i["q"] = i["q"] * torch.tensor([1e-6, 1.0, 10.0] * 2, device=device)[:, None, None, None].half()
    each = alone({name: x.half() if x.dtype == FP8 else x for name, x in i.items()})
    wide = {name: x.double() if name in ("q", "k_cache", "v_cache") else x for name, x in each.items()}
    same = in_orders(lambda: ak.decode_attention(**each, softcap=2.0, impl="reference"))
    oracle = ak.decode_attention(**wide, softcap=2.0, impl="reference")
    assert_within_budget(ak.decode_attention(**i, softcap=2.0, impl="triton"), same, oracle)


@pytest.mark.slow
def test_fixed_splits_give_equal_bits_in_any_batch(device, monkeypatch):
    i = made(device, prefixes=(500, 260), members=2, new=2, heads=3, kv_heads=1)
    found = check(i, split=64)
    for group in range(2):
        rows = slice(2 * group, 2 * group + 2)
        one = {name: x[rows] for name, x in i.items()} | {"prefix_lengths": i["prefix_lengths"][group : group + 1]}
        assert torch.equal(ak.decode_attention(**one, split=64, impl="triton"), found[rows])
    monkeypatch.setattr(_triton, "programs", lambda device: 5)
    assert torch.equal(ak.decode_attention(**i, split=64, impl="triton"), found)


def test_an_empty_sequence_gives_zeros_and_its_group_has_its_prefix(device):
    """The first of a group, and one that is not; a GPU's lengths are not looked at on the way."""
    i = made(device, prefixes=(40, 30), heads=2, kv_heads=1)
    others = {"block_table": None, "k_scale": None, "v_scale": None, "scale": 0.25}
    with poisoned():
        some = decode_attention(**i | {"lengths": i["lengths"] * (torch.arange(6, device=device) % 4 > 0)}, **others)
    assert not some[[0, 4]].any()
    rows = [1, 2, 3, 5]
    each = alone(i)
    wide = {name: x.double() if name in ("q", "k_cache", "v_cache") else x for name, x in each.items()}
    same = in_orders(lambda: ak.decode_attention(**each, impl="reference")[rows])
    assert_within_budget(some[rows], same, ak.decode_attention(**wide, impl="reference")[rows])


def test_the_registered_op(device):
    i = made(device, prefixes=(20,), members=2, heads=2, kv_heads=1)
    args = (*i.values(), None, None, None, 0, 0.0, 0.1)
    for test in ("test_schema", "test_faketensor"):
        torch.library.opcheck(BOUNDARIES["decode_attention_shared_prefix"].op, args, test_utils=test)


def test_what_it_leaves_to_others(device):
    i = made(device, prefixes=(20,), members=2)
    with pytest.raises(ValueError, match="it shares no prefixes under a window"):
        ak.decode_attention(**i, window=(8, 0), impl="triton")
    with pytest.raises(ValueError, match="9 tokens times 8 query heads of a KV head are more than 64"):
        ak.decode_attention(**made(device, new=9, heads=8, kv_heads=1), impl="triton")
    many = {name: i[name][:1].expand(40_000, *i[name].shape[1:]) for name in ("q", "k_cache", "v_cache")}
    ones = torch.ones(40_000, dtype=torch.int32, device=device)
    with pytest.raises(ValueError, match="40000 sequences are more than one launch takes"):
        ak.decode_attention(**many, lengths=ones, prefix_lengths=0 * ones, impl="triton")
    finite = {name: torch.nan_to_num(x) for name, x in alone(i).items()}
    found = ak.decode_attention(**{**i, **finite}, window=(8, 0), impl="reference")
    assert torch.equal(found, ak.decode_attention(**finite, window=(8, 0), impl="reference"))


def test_no_sequences(device):
    i = {name: x[:0] for name, x in made(device).items()}
    assert ak.decode_attention(**i, impl="triton").shape == (0, 1, 6, 16)
    assert ak.decode_attention(**i, impl="reference").shape == (0, 1, 6, 16)
