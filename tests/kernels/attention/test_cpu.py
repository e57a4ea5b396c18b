"""What the compiled attention of packed sequences promises beyond the questions of test_every_op.py."""

import itertools

import pytest
import torch

import afn_kernels as ak
from afn_kernels import cpu
from afn_kernels.attention import OP
from tests.budget import assert_within_budget, fresh
from tests.orders import in_orders

pytestmark = pytest.mark.skipif(bool(cpu.available()), reason=cpu.available() or "built")
LEVELS = [] if cpu.available() else __import__("afn_kernels._cpu")._cpu.simd_levels()
LENGTHS = [1, 63, 0, 64, 65]


def cu(lengths: list[int]) -> torch.Tensor:
    return torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32)


def packed(queries: list[int], keys: list[int], heads: tuple[int, int], width: int) -> dict[str, torch.Tensor]:
    """In float64."""
    g, sizes = fresh(), {"q": (sum(queries), heads[0]), "k": (sum(keys), heads[1]), "v": (sum(keys), heads[1])}
    made = {name: torch.randn(*size, width, generator=g, dtype=torch.float64) for name, size in sizes.items()}
    return made | {"cu_seqlens_q": cu(queries), "cu_seqlens_k": cu(keys)}


def narrow(i: dict[str, torch.Tensor], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    return {name: x.to(dtype) if x.is_floating_point() else x for name, x in i.items()}


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize(
    ("keys", "heads", "width", "dtype", "options"),
    [
        (LENGTHS, (2, 2), 80, torch.float32, {}),
        (LENGTHS, (6, 2), 24, torch.float32, {"causal": True}),
        ([70, 0, 5, 130, 64], (2, 1), 16, torch.bfloat16, {"causal": True}),
        ([9, 70, 3, 64, 80], (1, 1), 256, torch.float32, {"window": (20, 7), "softcap": 1.5}),
    ],
    ids=["all", "causal", "other keys", "window, cap"],
)
def test_every_level_is_within_the_budget(level, keys, heads, width, dtype, options, monkeypatch):
    monkeypatch.setenv("AFN_SIMD", level)
    wide = packed(LENGTHS, keys, heads, width)
    i = narrow(wide, dtype)
    found = ak.attention(**i, **options, impl="cpu")
    same = in_orders(lambda: ak.attention(**i, **options, impl="reference"))
    assert_within_budget(found, same, ak.attention(**wide, **options, impl="reference"))


@pytest.mark.parametrize("causal", [False, True])
def test_a_sequence_has_the_bits_that_it_has_alone(causal, monkeypatch):
    """Beside others, in their strides, and by several threads."""
    lengths = [1, 63, 1500, 64, 65]
    i = narrow(packed(lengths, lengths, (2, 1), 16), torch.float32)
    tensors = {name: i[name] for name in "qkv"}
    together = ak.attention(**i, causal=causal, impl="cpu")
    parts = zip(*(x.split(lengths) for x in tensors.values()), together.split(lengths), strict=True)
    for q, k, v, expected in parts:
        assert torch.equal(ak.attention(q, k, v, causal=causal, impl="cpu"), expected)
    joint = torch.cat([*tensors.values()], dim=1)  # q, k and v as one product leaves them
    views = dict(zip("qkv", joint.split([2, 1, 1], dim=1), strict=True))
    assert torch.equal(ak.attention(**i | views, causal=causal, impl="cpu"), together)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    assert torch.equal(ak.attention(**i, causal=causal, impl="cpu"), together)


def test_what_others_hold_reaches_nobody():
    i = narrow(packed(LENGTHS, LENGTHS, (2, 2), 16), torch.float32)
    whole = ak.attention(**i, impl="cpu")
    for name in "kv":
        i[name][64:128] = float("nan")  # the keys of the fourth sequence
    spoilt = ak.attention(**i, impl="cpu")
    assert spoilt[64:128].isnan().all()
    assert torch.equal(spoilt[:64], whole[:64])
    assert torch.equal(spoilt[128:], whole[128:])


def test_when_it_is_taken(monkeypatch):
    i = narrow(packed([5], [5], (2, 2), 16), torch.float32)

    def chosen(**options):
        return ak.explain("attention", **i | options).chosen

    assert chosen() == "sdpa"  # its bits are those of a pass with a gradient
    with torch.inference_mode():
        for level, causal, expected in (
            ("avx512", False, "cpu"),
            ("avx2", True, "cpu"),
            ("avx2", False, "sdpa"),
            ("portable", True, "sdpa"),
        ):
            monkeypatch.setattr("afn_kernels._cache_attention.level", lambda level=level: level)
            assert chosen(causal=causal) == expected
        monkeypatch.setattr("afn_kernels._cache_attention.level", lambda: "avx512")
        assert chosen(return_lse=True) == "reference"
        assert chosen(**{name: i[name].double() for name in "qkv"}) == "sdpa"
    with pytest.raises(ValueError, match="impl='cpu' cannot run this call: it has no gradient"):
        ak.attention(**i | {"q": i["q"].requires_grad_()}, impl="cpu")
    row = {row.name: row for row in OP.impls}["cpu"]
    assert "gradient" in row.supports(i["q"], i["k"], i["v"], return_lse=False, carry=None)


@pytest.mark.parametrize(
    ("queries", "keys"),
    [
        ([0, 5], [0, 6]),
        ([0, 2, 5], [0, 3, 6]),
        ([0, 5], [-1, 4]),
        ([0, 6], [0, 5]),
        ([-1, 5], [0, 5]),
        ([0, 5], [3, 2]),
        ([0, 2, 5], [0, 5]),
    ],
)
def test_boundaries_that_nobody_looked_at_reach_past_nothing(queries, keys):
    """As those of a graph."""
    q, k, v = (torch.randn(5, 1, 16) for _ in range(3))
    bounds = (torch.tensor(x, dtype=torch.int32) for x in (queries, keys))
    with pytest.raises(ValueError, match="boundaries reach past the 5 queries or 5 keys"):
        torch.ops.afn.attention_cpu(q, k, v, *bounds, False, -1, -1, 0.0, 1.0)
