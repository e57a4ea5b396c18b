"""What the compiled attention over a KV cache promises beyond the questions of test_every_op.py."""

import itertools
import os
import signal
import time

import pytest
import torch

import afn_kernels as ak
from afn_kernels import _cache_attention, cpu
from afn_kernels._cache_attention import attend
from afn_kernels.decode_attention.arguments import check_values
from afn_kernels.decode_attention.boundary import decode_attention_cpu
from tests.budget import assert_within_budget, fresh
from tests.kernels.cases import decode_attention, paged_attention
from tests.orders import in_orders

pytestmark = pytest.mark.skipif(bool(cpu.available()), reason=cpu.available() or "built")
LEVELS = [] if cpu.available() else __import__("afn_kernels._cpu")._cpu.simd_levels()
NAN = float("nan")


def prompt(tokens: int, page: int, heads: int, kv_heads: int, width: int) -> dict[str, torch.Tensor]:
    """A sequence in pages: queries, caches and its table."""
    g, pages = fresh(), -(-tokens // page)
    caches = torch.randn(2, pages, page, kv_heads, width, generator=g)
    q, table = torch.randn(tokens, heads, width, generator=g), torch.randperm(pages, generator=g)
    return {"q": q, "k_cache": caches[0], "v_cache": caches[1], "block_table": table[None].int()}


def prefill(given, first: int, last: int, **options) -> torch.Tensor:
    bounds, lengths = torch.tensor([0, last - first]).int(), torch.tensor([last])
    given = given | {"q": given["q"][first:last], "cu_seqlens_q": bounds, "lengths": lengths}
    return ak.paged_attention(**given, impl="cpu", **options)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize(
    ("shape", "options"),
    [((16, 4, 2, 32), {}), ((5, 7, 1, 24), {"softcap": 2.0}), ((64, 5, 1, 48), {"window": (70, 0)})],
    ids=["pages of 16", "pages of 5, cap", "window"],
)
def test_a_token_has_the_same_bits_however_it_is_computed(level, shape, options, monkeypatch):
    """By a prefill, whole or in chunks, and by decoding, alone or in a batch, from pages or from one run."""
    monkeypatch.setenv("AFN_SIMD", level)
    tokens = 200
    given = prompt(tokens, *shape)
    whole = prefill(given, 0, tokens, **options)
    for chunk in (1, 3, 64, 67):
        ends = [*range(0, tokens, chunk), tokens]
        parts = [prefill(given, *ends, **options) for ends in itertools.pairwise(ends)]
        assert torch.equal(torch.cat(parts), whole)
    run = [given[name][given["block_table"][0].long()].flatten(0, 1)[None] for name in ("k_cache", "v_cache")]
    for new in (1, 3):
        lengths = torch.arange(new, tokens + 1, 7)
        expected = torch.stack([whole[n - new : n] for n in lengths])
        q = torch.stack([given["q"][n - new : n] for n in lengths])
        table = given["block_table"].expand(len(q), -1)
        paged = ak.decode_attention(
            q, given["k_cache"], given["v_cache"], lengths, block_table=table, impl="cpu", split=64, **options
        )
        assert torch.equal(paged, expected)
        one = ak.decode_attention(q[-1:], *run, lengths[-1:], impl="cpu", **options)
        assert torch.equal(one, expected[-1:])


def test_threads_change_no_bit():
    given = prompt(1500, 16, 4, 2, 32)  # enough work for two
    tensors = given["q"], given["k_cache"], given["v_cache"], torch.tensor([1500])
    options = {"heads": 4, "table": given["block_table"], "bounds": torch.tensor([0, 1500]).int()}
    one, three = (attend(*tensors, threads=threads, **options) for threads in (1, 3))
    assert torch.equal(one, three)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are not forked here")
def test_a_forked_process_has_threads_of_its_own():
    """PyTorch's pool, whose threads the child has not, would never answer."""
    tensors = torch.randn(200, 1, 64), *torch.randn(2, 1, 200, 1, 64), torch.tensor([200])
    options = {"heads": 1, "fresh": 200, "threads": 2}  # work for two
    expected = attend(*tensors, **options)
    child = os.fork()
    if not child:
        os._exit(0 if torch.equal(attend(*tensors, **options), expected) else 1)
    end = time.monotonic() + 60
    while not (found := os.waitpid(child, os.WNOHANG))[0] and time.monotonic() < end:
        time.sleep(0.01)
    if not found[0]:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert found == (child, 0), "the child has not ended well"


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("options", [{}, {"softcap": 1.5}, {"window": (20, 0)}], ids=["all", "cap", "window"])
def test_every_level_is_within_the_budget(level, options, monkeypatch):
    monkeypatch.setenv("AFN_SIMD", level)
    for shape in ({"new": 3, "page": 7, "width": 24}, {"heads": 4, "width": 64}):
        wide = decode_attention.inputs(fresh(), 150, **shape)
        i = {name: x.float() if x.is_floating_point() else x for name, x in wide.items()}
        found = ak.decode_attention(**i, **options, impl="cpu")
        same = in_orders(lambda i=i: ak.decode_attention(**i, **options, impl="reference"))
        assert_within_budget(found, same, ak.decode_attention(**wide, **options, impl="reference"))


@pytest.mark.parametrize("options", [{"window": (9, 4)}, {"causal": False}, {"window": (-1, 3), "softcap": 2.0}])
def test_a_prefill_sees_what_the_reference_sees(options):
    options = {"causal": False} | options
    wide = paged_attention.inputs(fresh(), [70, 0, 5], [9, 0, 80])
    i = {name: x.float() if x.is_floating_point() else x for name, x in wide.items()}
    found = ak.paged_attention(**i, **options, impl="cpu")
    same = in_orders(lambda: ak.paged_attention(**i, **options, impl="reference"))
    assert_within_budget(found, same, ak.paged_attention(**wide, **options, impl="reference"))


def test_what_a_token_does_not_see_reaches_nothing():
    given = prompt(100, 16, 4, 2, 16)
    whole = prefill(given, 0, 100)
    for name in ("k_cache", "v_cache"):
        pages = given[name] = given[name].clone()
        pages[given["block_table"][0, 50 // 16], 50 % 16] = NAN
    spoilt = prefill(given, 0, 100)
    assert torch.equal(spoilt[:50], whole[:50])
    assert spoilt[50:].isnan().all()


def test_members_of_a_group_read_the_prefix_of_the_first():
    i = {name: x.float() if x.is_floating_point() else x for name, x in shared().items()}
    expected = ak.decode_attention(**i | {"prefix_lengths": None}, impl="cpu")
    i["block_table"] = i["block_table"].clone()
    i["block_table"][[1, 3], :2] = 10**6  # whole pages of the prefix
    assert torch.equal(ak.decode_attention(**i, impl="cpu"), expected)
    with pytest.raises(ValueError, match="page 0 of sequence 1 is 1000000, outside the"):
        ak.decode_attention(**i | {"prefix_lengths": torch.tensor([0, 40])}, impl="cpu")
    i["block_table"][0, 1] = 10**6  # before the window of the first, in that of the second
    with pytest.raises(ValueError, match="a length or a page is not there"):
        ak.decode_attention(**i, window=(30, 0), impl="cpu")


def shared() -> dict[str, torch.Tensor]:
    """Two groups of two sequences, which share 40 keys each, in pages of 16."""
    i = decode_attention.inputs(fresh(), 64, batch=4, page=16)
    i["lengths"] = torch.tensor([64, 50, 41, 60])
    i["block_table"] = torch.arange(16).view(4, 4).int()
    for name in ("k_cache", "v_cache"):
        pages = i[name] = i[name].nan_to_num()
        rows = pages[:16].view(4, 64, *pages.shape[2:])
        rows[1::2, :40] = rows[::2, :40]
    return i | {"prefix_lengths": torch.tensor([40, 40])}


def test_no_keys_give_zeros_and_what_is_not_there_is_never_read():
    i = decode_attention.inputs(fresh(), 32, batch=2, page=16)
    i = {name: x.float().nan_to_num() if x.is_floating_point() else x for name, x in i.items()}
    table, options = i.pop("block_table"), {"k_scale": None, "v_scale": None, "scale": 0.25}
    i["lengths"] = torch.tensor([0, 32])
    found = decode_attention_cpu(**i, block_table=table, **options)
    assert not found[0].any()
    assert found[1].any()
    for lengths, bad in (([0, 33], table), ([-1, 3], table), ([3, 32], torch.full_like(table, len(i["k_cache"])))):
        with pytest.raises(ValueError, match="decode_attention: "):
            decode_attention_cpu(**i | {"lengths": torch.tensor(lengths)}, block_table=bad, **options)
    none = {name: x[:0] for name, x in i.items()} | {"k_cache": i["k_cache"], "v_cache": i["v_cache"]}
    assert ak.decode_attention(**none, block_table=table[:0], impl="cpu").shape == (0, 1, 6, 16)


def test_why_a_call_is_not_taken():
    i = decode_attention.inputs(fresh(), 8)
    for dtype, change, reason in (
        (torch.float16, {}, "float16 is computed by the reference"),
        (torch.float64, {}, "float64 is computed by the reference"),
        (torch.float32, {"k_scale": torch.ones(1)}, "scales of a cache are multiplied by the reference"),
        (torch.float32, {"q": i["q"].float().requires_grad_()}, "it has no gradient"),
    ):
        call = {name: x.to(dtype) if x.is_floating_point() else x for name, x in i.items()} | change
        with pytest.raises(ValueError, match=f"impl='cpu' cannot run this call: {reason}"):
            ak.decode_attention(**call, impl="cpu")
        assert ak.explain("decode_attention", **call).chosen != "cpu"


def test_what_fits_is_what_the_checks_let_pass(monkeypatch):
    """Lengths, pages and prefixes at random, most of them wrong in one way."""
    g, fitting = fresh(), []
    q, cache = torch.zeros(4, 2, 2, 16), torch.zeros(9, 4, 1, 16)
    monkeypatch.setattr(cpu, "usable", lambda: "absent")
    for _ in range(300):
        table = torch.randint(0, 9, (4, 5), generator=g)
        wrong = torch.rand(4, 5, generator=g) < 0.05
        table[wrong] = torch.tensor([-1, 9])[torch.randint(2, (int(wrong.sum()),), generator=g)]
        lengths = torch.randint(2, 21, (4,), generator=g)
        lengths[0] += torch.randint(-2, 3, (1,), generator=g)[0]
        prefixes = torch.randint(0, 3, (2,), generator=g) if torch.rand((), generator=g) < 0.5 else None
        # Of a window and a prefix at once the checks look at the first member's window alone.
        left = int(torch.randint(-1, 9, (), generator=g)) if prefixes is None else -1
        try:
            check_values(q, cache, lengths, table, prefixes, None if left < 0 else (left, 0))
            expected = True
        except ValueError:
            expected = False
        options = {"fresh": 2, "table": table, "prefixes": prefixes, "left": left}
        found = attend(None, cache, cache, lengths, heads=2, **options) is not None
        assert found == expected
        fitting.append(found)
    assert 20 < sum(fitting) < 280
    assert not _cache_attention.fits(cache, lengths, 2, **options)
