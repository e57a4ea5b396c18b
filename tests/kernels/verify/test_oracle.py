"""The blockwise oracle is the reference in float64, and makes nothing that grows with both queries and keys."""

import itertools

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import afn_kernels as ak
from afn_kernels.verify import oracle
from afn_kernels.verify.oracle import (
    blockwise_attention,
    blockwise_linear_cross_entropy,
    blockwise_linear_logprob,
)
from tests.budget import assert_same_but_rounding, gradients
from tests.orders import in_orders


def cu(*lengths: int) -> torch.Tensor:
    return torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32)


def qkv(queries: int, keys: int, heads=(4, 2), dim=8) -> list[torch.Tensor]:
    shapes = ((queries, heads[0], dim), (keys, heads[1], dim), (keys, heads[1], dim))
    return [torch.randn(shape, dtype=torch.float64) for shape in shapes]


def with_gradients(call, inputs, **options) -> dict[str, torch.Tensor]:
    inputs = [x.detach().requires_grad_(x.is_floating_point()) for x in inputs]
    outs = call(*inputs, **options)
    outs = outs if isinstance(outs, tuple) else (outs,)
    wanted = tuple(x for x in inputs if x.requires_grad)
    finite = [out.masked_fill(out == -torch.inf, 0.0).reshape(-1) for out in outs]
    found = {f"out{i}": out.detach() for i, out in enumerate(finite)}
    return found | {f"d{i}": x for i, x in enumerate(gradients(torch.cat(finite), wanted))}


LENGTHS = {"cu_seqlens_q": cu(1, 40, 0, 9), "cu_seqlens_k": cu(3, 40, 5, 2)}
CALLS = {
    "one sequence": (qkv, (50, 50), {}),
    "causal, fewer queries": (qkv, (20, 50), {"causal": True}),
    "causal, more queries than keys": (qkv, (50, 50), {"causal": True, **LENGTHS}),
    "window": (qkv, (50, 50), {"window": (6, 3), **LENGTHS}),
    "causal window and softcap": (qkv, (50, 50), {"causal": True, "window": (6, 0), "softcap": 0.8}),
}


@pytest.mark.parametrize("seed", [None, 1])
@pytest.mark.parametrize("name", CALLS)
def test_attention_is_the_references(name, seed, monkeypatch):
    monkeypatch.setattr(oracle, "SCORES", 2**9)  # several blocks of queries
    make, sizes, options = CALLS[name]
    inputs = make(*sizes)
    reference = with_gradients(blockwise_attention, inputs, seed=seed, **options)
    expected = in_orders(lambda: with_gradients(ak.attention, inputs, return_lse=True, impl="reference", **options))
    assert_same_but_rounding(reference, expected)


def test_attention_carries_on():
    inputs = qkv(50, 50)
    carry = torch.randn(50, 4, 8, dtype=torch.float64), torch.randn(50, 4, dtype=torch.float64)
    found = with_gradients(blockwise_attention, inputs, causal=True, carry=carry)
    expected = in_orders(lambda: with_gradients(ak.attention, inputs, causal=True, carry=carry, impl="reference"))
    assert_same_but_rounding(found, expected)


OPTIONS = {"label_smoothing": 0.1, "softcap": 3.0, "z_loss": 1e-2}


@pytest.mark.parametrize("options", [{}, {"reduction": "sum", **OPTIONS}, {"reduction": "none", **OPTIONS}], ids=str)
@pytest.mark.parametrize("biased", [False, True])
def test_losses_are_the_references(options, biased, monkeypatch):
    monkeypatch.setattr(oracle, "LOGITS", 1)  # blocks of 256 classes
    hidden, weight = torch.randn(9, 12, dtype=torch.float64), torch.randn(700, 12, dtype=torch.float64)
    bias = [torch.randn(700, dtype=torch.float64)] if biased else []
    labels = torch.randint(0, 700, (9,))
    labels[2] = 699
    labels[::4] = -100

    def losses(call, **more):
        return lambda hidden, weight, *bias: call(
            hidden, weight, labels, bias=bias[0] if bias else None, **options, **more
        )

    inputs = [hidden, weight, *bias]
    found = with_gradients(losses(blockwise_linear_cross_entropy), inputs)
    expected = in_orders(lambda: with_gradients(losses(ak.linear_cross_entropy, impl="reference"), inputs))
    assert_same_but_rounding(found, expected)


def test_log_probabilities_are_the_references(monkeypatch):
    monkeypatch.setattr(oracle, "LOGITS", 1)
    inputs = [torch.randn(9, 12, dtype=torch.float64), torch.randn(700, 12, dtype=torch.float64)]
    targets = torch.randint(0, 700, (9,))
    found = with_gradients(lambda h, w: blockwise_linear_logprob(h, w, targets, softcap=4.0), inputs)
    expected = in_orders(
        lambda: with_gradients(lambda h, w: ak.linear_logprob(h, w, targets, softcap=4.0, impl="reference"), inputs)
    )
    assert_same_but_rounding(found, expected)


class LargestTensor(TorchDispatchMode):
    """The most elements that anything had."""

    def __init__(self):
        super().__init__()
        self.most = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        for x in found if isinstance(found, tuple | list) else (found,):
            self.most = max(self.most, x.numel() if isinstance(x, torch.Tensor) else 0)
        return found


def test_nothing_is_as_large_as_queries_by_keys_or_rows_by_classes(monkeypatch):
    monkeypatch.setattr(oracle, "SCORES", 2**12)
    monkeypatch.setattr(oracle, "LOGITS", 1)
    with LargestTensor() as attention:
        with_gradients(blockwise_attention, qkv(300, 300, dim=4), causal=True)
    assert attention.most <= 300 * 4 * 4 * 3 < 300 * 300
    hidden, weight = torch.randn(50, 4, dtype=torch.float64), torch.randn(3000, 4, dtype=torch.float64)
    with LargestTensor() as losses:
        with_gradients(lambda h, w: blockwise_linear_logprob(h, w, torch.arange(50)), [hidden, weight])
    assert losses.most <= 50 * 256 < 50 * 3000
