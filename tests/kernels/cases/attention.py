import itertools
from collections.abc import Sequence

import torch

from tests.kernels.harness import ALL, BF16, HALF, LOW, Case

FULL = (torch.float32,)


def cu(lengths: Sequence[int]) -> torch.Tensor:
    return torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32)


def qkv(g: torch.Generator, tq: int, tk: int, heads: tuple[int, int], dim: int) -> dict[str, torch.Tensor]:
    shapes = {"q": (tq, heads[0], dim), "k": (tk, heads[1], dim), "v": (tk, heads[1], dim)}
    return {name: torch.randn(shape, generator=g, dtype=torch.float64) for name, shape in shapes.items()}


def one(heads: tuple[int, int], dim: int, keys: int = 0):
    """One sequence of ``size`` queries and ``keys`` more keys."""
    return lambda g, size: qkv(g, size, size + keys, heads, dim)


def packed(heads: tuple[int, int], dim: int, queries: Sequence[int], keys: Sequence[int] | None = None):
    """Sequences of the given lengths and, where queries have their own lengths only, a last one of ``size``."""

    def inputs(g: torch.Generator, size: int):
        lengths_q = [*queries, size] if keys is None else queries
        lengths_k = lengths_q if keys is None else keys
        made = qkv(g, sum(lengths_q), sum(lengths_k), heads, dim)
        return made | {"cu_seqlens_q": cu(lengths_q), "cu_seqlens_k": cu(lengths_k)}

    return inputs


def carried(heads: tuple[int, int], dim: int, keys: int):
    def inputs(g: torch.Generator, size: int):
        carry = {
            "out_c": torch.randn(size, heads[0], dim, generator=g, dtype=torch.float64),
            "lse_c": torch.randn(size, heads[0], generator=g, dtype=torch.float64) + 2,
        }
        made = {"cu_seqlens_q": cu([3, size - 3]), "cu_seqlens_k": cu([keys, 5])}
        return qkv(g, size, keys + 5, heads, dim) | carry | made

    return inputs


class AttentionCase(Case):
    """Puts a carry together."""

    def call(self, inputs, impl):
        if "out_c" in inputs:
            carry = inputs["out_c"], inputs["lse_c"]
            inputs = {name: x for name, x in inputs.items() if not name.endswith("_c")} | {"carry": carry}
        return super().call(inputs, impl)


def case(name: str, inputs, size: int = 63, wrt=("q", "k", "v"), dtypes=LOW, **rest) -> Case:
    options = {"causal": rest.pop("causal", False), "return_lse": rest.pop("return_lse", False)}
    options |= {name: rest.pop(name) for name in ("window", "softcap") if name in rest}
    # PyTorch's fused attention takes delta from the output, as the kernels do: where a query sees few keys, its
    # gradient is a difference of near equals. It returns no log-sum-exp.
    orders = ("reference",) if options["return_lse"] or "softcap" in options else ("reference", "sdpa")
    return AttentionCase("attention", name, inputs, wrt, options, size, dtypes, orders=orders, **rest)


def cuda(name: str, inputs, size: int, **rest) -> Case:
    """For csrc/cuda/attention.cu, whose tiles have 128 queries of heads of 128 or 192 of 64, and blocks 128 keys."""
    return case(f"cuda, {name}", inputs, size, impls=("cuda",), dtypes=(HALF, BF16), **rest)


CASES = [
    case("causal packed", packed((4, 1), 16, [1, 37, 0]), 35, causal=True, dtypes=ALL, far=("q", "k", "v")),
    case("full packed", packed((4, 1), 64, [5, 0])),
    case("7:1 heads, hd128", one((7, 1), 128), 37, causal=True),
    case("hd64, not a power of two", one((3, 1), 48), 33),
    # The only key has all of the weight: gradients of q and k are zero but for rounding.
    case("one query", one((2, 2), 64), 1, wrt=("v",), causal=True),
    case("one query, many keys", one((2, 1), 64, 40), 1, causal=True, dtypes=(torch.float32, HALF)),
    case("fewer queries than keys", one((2, 1), 32, 70), 40, causal=True),
    case("more queries than keys", packed((2, 1), 16, [40, 3], [9, 70]), causal=True),
    case("no keys", packed((2, 1), 16, [4, 30], [0, 20])),
    case("no sequences", packed((2, 1), 16, [], []), causal=True),
    case("window", packed((1, 1), 16, [66, 0]), 5, causal=True, window=(20, 0), dtypes=FULL),
    case("window on both sides", packed((1, 1), 16, [40, 3], [66, 1]), window=(9, 17), dtypes=FULL),
    case("softcap", packed((2, 1), 16, [3]), 34, causal=True, softcap=1.5, dtypes=(BF16,)),
    case("window and softcap, fewer queries", one((2, 1), 16, 60), 20, window=(21, 0), softcap=0.9, dtypes=FULL),
    case("no gradient", packed((4, 2), 24, [1, 37, 0], [9, 20, 3]), 35, wrt=(), impls=("cpu",), dtypes=LOW),
    case("log-sum-exp", one((4, 2), 16, 20), 40, causal=True, return_lse=True, dtypes=FULL),
    cuda("causal packed", packed((2, 1), 64, [1, 0]), 35, causal=True, far=("q", "k", "v")),
    cuda("log-sum-exp", one((2, 1), 128, 20), 24, causal=True, return_lse=True),
    cuda("three tiles of a sequence", packed((2, 1), 128, [140, 0, 3]), 260, wrt=(), causal=True),
    cuda("full packed, heads of 64", packed((1, 1), 64, [5, 0]), 200, wrt=()),
    cuda("7:1 heads", one((7, 1), 128), 37, wrt=(), causal=True),
    cuda("one query, many keys", one((2, 1), 128, 300), 1, wrt=(), causal=True),
    cuda("more queries than keys", packed((2, 1), 64, [40, 203], [9, 70]), 0, wrt=(), causal=True),
    cuda("no keys", packed((1, 1), 128, [4, 30], [0, 20]), 0, wrt=()),
    # In half precision the float32 output is not within float32's budget: test_attention.py has its own.
    case(
        "carry",
        carried((4, 2), 16, 40),
        40,
        ("q", "k", "v", "out_c", "lse_c"),
        FULL,
        causal=True,
        return_lse=True,
        keep=("out_c", "lse_c"),
    ),
]
