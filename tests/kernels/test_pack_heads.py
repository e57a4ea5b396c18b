"""pack_heads and unpack_heads: the CUDA kernels, on a CPU compiled for it, against the reference."""

import itertools
from contextlib import nullcontext

import pytest
import torch

from afn_distributed.plan import split_heads
from afn_kernels import OPS, _cuda
from afn_kernels._library import BOUNDARIES
from afn_kernels.pack_heads import cuda, pack_heads, unpack_heads
from afn_kernels.rotary import rotary
from tests.budget import assert_within, assert_within_budget, fresh
from tests.cuda import emulated
from tests.kernels.harness import assert_same_bits, poisoned, strided
from tests.orders import in_orders

LOW = (torch.float32, torch.bfloat16, torch.float16)
PEERS = (2, 3, 7, 8, 28)


@pytest.fixture(autouse=True)
def kernels(device):
    with emulated() if device.type == "cpu" else nullcontext():
        if _cuda.available():
            pytest.skip(_cuda.available())
        yield


def split(peers: int, heads: int = 28, kv_heads: int = 4):
    return [(p.q.start, p.q.stop, p.kv.start, p.kv.stop) for p in split_heads(heads, kv_heads, peers)]


def inputs(tokens, device, dtype=torch.float64, heads=28, kv_heads=4, dim=64, rotary=False):
    generator = fresh()
    made = {
        name: torch.randn(tokens, n, dim, generator=generator, dtype=torch.float64).to(dtype)
        for name, n in (("q", heads), ("k", kv_heads), ("v", kv_heads))
    }
    if rotary:
        made["positions"] = (torch.rand(tokens, generator=generator, dtype=torch.float64) * 1000).float()
        made["inv_freq"] = (10_000.0 ** (-torch.arange(0, dim, 2, dtype=torch.float64) / dim)).float()
    return {name: x.to(device) for name, x in made.items()}


def evaluate(given, heads, impl, seed=3):
    """The parts, and gradients along a fixed direction of q, k, v."""
    given = {name: x.detach().requires_grad_(name in "qkv") for name, x in given.items()}
    out = pack_heads(**given, heads=heads, impl=impl)
    direction = torch.randn(out.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(out)
    grads = torch.autograd.grad(out, [given[name] for name in "qkv"], direction)
    return {"out": out.detach(), **{f"d{name}": grad for name, grad in zip("qkv", grads, strict=True)}}


def wide(given):
    return {name: x.double() for name, x in given.items()}


def check(found, given, heads):
    same = in_orders(lambda: evaluate(given, heads, "reference"))
    oracle = evaluate(wide(given), heads, "reference")
    for name, value in found.items():
        assert_within_budget(value, [one[name] for one in same], oracle[name], name=name)


@pytest.mark.parametrize("dtype", LOW, ids=str)
@pytest.mark.parametrize("peers", PEERS)
def test_parts_are_those_of_the_reference_and_come_back(peers, dtype, device, monkeypatch):
    monkeypatch.setattr(cuda, "BLOCKS", 1 if peers % 2 else 512)  # several rows in a block, or one
    heads = split(peers)
    for tokens, dim in ((1, 128), (5, 64)):
        given = inputs(tokens, device, dtype, dim=dim)
        with poisoned():
            flat = pack_heads(**given, heads=heads, impl="cuda")
        assert torch.equal(flat, pack_heads(**given, heads=heads, impl="reference"))
        assert flat.numel() == tokens * dim * sum(b - a + 2 * (d - c) for a, b, c, d in heads)
        back = torch.cat([given["q"][:, a:b].reshape(-1) for a, b, _, _ in heads])
        with poisoned():
            assert torch.equal(unpack_heads(back, heads, dim, impl="cuda"), given["q"])
        assert torch.equal(unpack_heads(back, heads, dim, impl="reference"), given["q"])


@pytest.mark.parametrize("dtype", LOW, ids=str)
@pytest.mark.parametrize("turned", [False, True], ids=["plain", "rotary"])
@pytest.mark.parametrize(("peers", "dim", "blocks"), [(3, 64, 512), (8, 128, 1)])
def test_within_budget_with_gradients(peers, dim, blocks, turned, dtype, device, monkeypatch):
    """Gradients of a KV head that several peers have are added in float32, and turned back."""
    monkeypatch.setattr(cuda, "BLOCKS", blocks)
    heads, given = split(peers), inputs(3, device, dtype, dim=dim, rotary=turned)
    with poisoned():
        found = evaluate(given, heads, "cuda")
    check(found, given, heads)
    if not turned:
        assert torch.equal(found["dq"], evaluate(given, heads, "reference")["dq"])


def test_no_copy_two_copies_and_no_rows(device):
    heads = [(0, 2, 0, 1), (2, 2, 0, 1), (2, 3, 2, 2)]  # KV head 1 goes nowhere, peer 2 has no KV head
    for turned in (False, True):
        given = inputs(2, device, torch.float32, heads=3, kv_heads=2, dim=16, rotary=turned)
        with poisoned():
            found = evaluate(given, heads, "cuda")
        check(found, given, heads)
        assert not found["dk"][:, 1].any()
        empty = evaluate({name: x if name == "inv_freq" else x[:0] for name, x in given.items()}, heads, "cuda")
        assert [tuple(x.shape) for x in empty.values()] == [(0,), (0, 3, 16), (0, 2, 16), (0, 2, 16)]
    assert unpack_heads(given["q"].new_empty(0), heads, 16, impl="cuda").shape == (0, 3, 16)


@pytest.mark.parametrize("turned", [False, True], ids=["plain", "rotary"])
def test_views_and_the_order_of_blocks_change_no_bit(turned, device):
    heads, given = split(3, 6, 2), inputs(4, device, torch.bfloat16, heads=6, kv_heads=2, dim=32, rotary=turned)
    qkv = torch.cat([given[name] for name in "qkv"], 1)
    whole = torch.full((4, 11, 32), float("nan"), dtype=torch.bfloat16, device=device)
    slices = {**given, **dict(zip("qkv", whole[:, :10].copy_(qkv).split((6, 2, 2), 1), strict=True))}
    gaps = {name: strided(x) for name, x in given.items()}
    unaligned = {**given, "q": torch.cat((given["q"].new_zeros(1), given["q"].reshape(-1)))[1:].view(4, 6, 32)}
    found = evaluate(given, heads, "cuda")
    for other in (given, slices, gaps, unaligned):
        assert_same_bits(found, evaluate(other, heads, "cuda"))
    if device.type == "cpu":
        with emulated(backwards=True):
            assert_same_bits(found, evaluate(given, heads, "cuda"))


def test_slices_of_a_projection_are_read_where_they_are(device):
    q, k, v = torch.randn(4, 10, 32, device=device).split((6, 2, 2), 1)
    assert all(cuda.aligned(x) is x for x in (q, k, v))
    assert cuda.aligned(torch.randn(4, 6, 64, device=device)[..., ::2]).is_contiguous()


@pytest.mark.parametrize("dim", [8, 24, 80, 1024])
def test_other_widths(dim, device, monkeypatch):
    heads = split(4, 8, 2)
    for blocks, dtype, turned in itertools.product((1, 512), (torch.float32, torch.bfloat16), (False, True)):
        monkeypatch.setattr(cuda, "BLOCKS", blocks)
        given = inputs(7, device, dtype, heads=8, kv_heads=2, dim=dim, rotary=turned)
        if turned and dim * dtype.itemsize % 32:
            with pytest.raises(ValueError, match=f"head_dim {dim}: halves of heads"):
                evaluate(given, heads, "cuda")
            continue
        check(evaluate(given, heads, "cuda"), given, heads)
    with pytest.raises(ValueError, match="head_dim 1032: heads must be multiples of 16 bytes, of at most 1024"):
        evaluate(inputs(1, device, torch.float32, dim=1032), split(2), "cuda")


def test_rotary_is_that_of_the_op(device):
    """To a million radians; float64 and gradients of positions are the reference's."""
    given = inputs(6, device, torch.float32, heads=2, kv_heads=1, dim=64, rotary=True)
    given["positions"] *= 1000
    q, k = rotary(*(x.double() for name, x in given.items() if name != "v"), impl="reference")
    wanted = torch.cat((q, k, given["v"].double()), 1).reshape(-1)
    # A sine and a cosine within 2e-7, and three roundings of at most eps / 2.
    a, b = torch.cat([given[name] for name in "qkv"], 1).double().abs().chunk(2, -1)
    size = (a + b).repeat(1, 1, 2).reshape(-1)
    bound = (2e-7 + 1.5 * torch.finfo(torch.float32).eps) * size
    assert_within(pack_heads(**given, heads=[(0, 2, 0, 1)], impl="cuda"), wanted, bound)
    narrow = {**wide(given), "positions": given["positions"], "inv_freq": given["inv_freq"]}
    turned = rotary(*(x for name, x in narrow.items() if name != "v"), impl="reference")
    flat = pack_heads(**narrow, heads=[(0, 2, 0, 1)])
    assert torch.equal(flat, torch.cat((*turned, narrow["v"]), 1).reshape(-1))


def test_gradients_of_the_reference():
    given = inputs(3, "cpu", heads=4, kv_heads=2, dim=4, rotary=True)
    given = {name: x.double().requires_grad_() for name, x in given.items()}
    for heads in ([(0, 3, 0, 2), (3, 4, 1, 2)], [(0, 4, 0, 2)]):
        pack = lambda q, k, v, p, f, heads=heads: pack_heads(q, k, v, heads, positions=p, inv_freq=f)  # noqa: E731
        assert torch.autograd.gradcheck(pack, tuple(given.values()))
        assert torch.autograd.gradcheck(
            lambda x, heads=heads: unpack_heads(x, heads, 4), given["q"].detach().reshape(-1).requires_grad_()
        )


def test_the_gradient_of_unpacking(device):
    heads = split(8)
    flat = torch.randn(5 * 28 * 64, device=device, dtype=torch.float64).bfloat16().requires_grad_()
    direction = torch.randn(5, 28, 64, device=device).bfloat16()
    grads = [
        torch.autograd.grad(unpack_heads(flat, heads, 64, impl=i), flat, direction)[0] for i in ("cuda", "reference")
    ]
    assert torch.equal(*grads)


def test_a_gradient_nobody_asked_for_is_not_computed(device, monkeypatch):
    heads, given = split(2, 4, 2), inputs(2, device, torch.float32, heads=4, kv_heads=2, dim=16)
    everything, launched = evaluate(given, heads, "cuda"), []
    launch = cuda.launch
    monkeypatch.setattr(
        cuda, "launch", lambda name, tensors, *args: launched.append(tensors) or launch(name, tensors, *args)
    )
    some = {name: x.clone().requires_grad_(name == "k") for name, x in given.items()}
    out = pack_heads(**some, heads=heads, impl="cuda")
    direction = torch.randn(out.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64).to(out)
    assert torch.equal(torch.autograd.grad(out, some["k"], direction)[0], everything["dk"])
    assert [x is None for x in launched[-1]] == [True, False, True]
    assert not pack_heads(**given, heads=heads, impl="cuda").requires_grad


def test_registered_ops_and_compile(device, monkeypatch):
    heads, given = split(3, 6, 2), inputs(4, device, torch.float32, heads=6, kv_heads=2, dim=16, rotary=True)
    numbers = [n for peer in heads for n in peer]
    q, k, v = (given[name].clone().requires_grad_() for name in "qkv")
    angles = given["positions"], given["inv_freq"]
    flat = pack_heads(q, k, v, heads, impl="cuda").detach()
    for name, args in (
        ("pack_heads", (q, k, v, numbers, *angles)),
        ("pack_heads", (given["q"], None, None, numbers, None, None)),
        ("unpack_heads", (flat[: 4 * 6 * 16].clone().requires_grad_(), numbers, 16)),
        ("pack_heads_backward", (flat, numbers, 4, 6, 2, 16, [True, False, True], *angles)),
    ):
        torch.library.opcheck(BOUNDARIES[name].op, args)

    def both(q, k, v, positions, inv_freq):
        flat = pack_heads(q, k, v, heads, positions=positions, inv_freq=inv_freq, impl="cuda")
        return flat, unpack_heads(flat[: q.numel()], heads, 16, impl="cuda")

    torch._dynamo.reset()
    graphs = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(both, fullgraph=True, dynamic=True, backend=graphs)
    for tokens in (4, 9, 17):
        some = inputs(tokens, device, torch.float32, heads=6, kv_heads=2, dim=16, rotary=True)
        some = {name: x.requires_grad_(name in "qkv") for name, x in some.items()}
        found, wanted = compiled(**some), both(**some)
        for outs in (found, wanted):
            outs += torch.autograd.grad(sum((x * x.detach()).sum() for x in outs), [some[name] for name in "qkv"])
        assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
        assert graphs.frame_count == 1


def test_dispatch(device):
    given, heads = inputs(2, device, torch.float32, heads=4, kv_heads=2, dim=16), split(2, 4, 2)
    options = {"positions": None, "inv_freq": None}
    found = OPS["pack_heads"].explain(*given.values(), heads, **options)
    assert found.chosen == ("reference" if device.type == "cpu" else "cuda")
    found = OPS["pack_heads"].explain(*wide(given).values(), heads, **options)
    assert found.chosen == "reference"
    assert "float64" in found.rows[0].reason
    for p, f in ((torch.float64, torch.float32), (torch.float32, torch.float16)):
        turned = {
            "positions": torch.zeros(2, device=device, dtype=p),
            "inv_freq": torch.ones(8, device=device, dtype=f),
        }
        refused = OPS["pack_heads"].explain(*given.values(), heads, **turned).rows[0]
        assert refused.reason == f"float{'64' if p == torch.float64 else '16'} is computed by the reference"
    turned = {"positions": torch.zeros(2, device=device), "inv_freq": torch.ones(8, device=device).requires_grad_()}
    assert "gradients of positions" in OPS["pack_heads"].explain(*given.values(), heads, **turned).rows[0].reason


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"heads": [(0, 2, 0, 1), (1, 4, 0, 2)]}, "query heads 1 to 4 of peer 1, those of the one before end at 2"),
        ({"heads": [(0, 2, 0, 1)]}, "the peers have 2 query heads, q has 4"),
        ({"heads": [(0, 4, 1, 3)]}, "KV heads 1 to 3 of peer 0, there are 2"),
        ({"heads": []}, "no peer has a head"),
        ({"positions": torch.zeros(3)}, "one of them is missing"),
        ({"positions": torch.zeros(2), "inv_freq": torch.ones(8)}, r"float32 \(2,\) for 3 tokens"),
        ({"positions": torch.zeros(3), "inv_freq": torch.ones(4)}, r"inv_freq has shape \(4,\)"),
        ({"k": torch.zeros(3, 2, 8)}, r"q \(3, 4, 16\), k \(3, 2, 8\), v \(3, 2, 16\)"),
        ({"v": torch.zeros(3, 2, 16, dtype=torch.float64)}, "v is torch.float64"),
    ],
)
def test_what_does_not_fit_is_said(change, message):
    given = inputs(3, "cpu", torch.float32, heads=4, kv_heads=2, dim=16)
    with pytest.raises(ValueError, match=f"pack_heads: .*{message}"):
        pack_heads(**{**given, "heads": split(2, 4, 2), **change})


def test_parts_that_are_no_rows_are_refused():
    with pytest.raises(ValueError, match=r"unpack_heads: flat is \[100\], not rows of 4 heads of 16"):
        unpack_heads(torch.zeros(100), split(2, 4, 2), 16)
