"""Linear layers in FP8: their products and gradients are those of the rounded factors, and nothing is kept in vain."""

import pytest
import torch
from torch import nn

import afn_kernels as ak
from afn_model.network.fp8_linear import LINE, SQUARE, FP8TrainingLinear
from afn_model.network.linear import linears, product
from tests.budget import assert_same_but_rounding
from tests.orders import in_orders

WIDE = (192, 144)  # out, in: a block and a part of one
ROWS = 300


def layer(out: int = WIDE[0], *, bias: bool = True, seed: int = 0, dtype=torch.float32) -> FP8TrainingLinear:
    torch.manual_seed(seed)
    return FP8TrainingLinear.of(nn.Linear(WIDE[1], out, bias=bias, dtype=dtype))


def given(rows: int = ROWS, dtype=torch.float32) -> torch.Tensor:
    torch.manual_seed(7)
    return torch.randn(rows, WIDE[1], dtype=dtype).requires_grad_()


def rounded(x: torch.Tensor, block, transpose: bool = False) -> torch.Tensor:
    """What its codes stand for, float64; of the transpose, turned back."""
    codes, scale = ak.quantize_fp8(x.detach(), block=block, transpose=transpose)
    tall, wide = block
    scale = scale.double().repeat_interleave(tall, 0)[: codes.shape[0]].repeat_interleave(wide, 1)[:, : codes.shape[1]]
    found = codes.double() * scale
    return found.t() if transpose else found


@pytest.mark.parametrize("rows", [ROWS, 1])
def test_products_and_gradients_are_those_of_the_rounded_factors(rows):
    one, x = layer(), given(rows)
    dy = torch.randn(rows, WIDE[0])
    y = one(x)
    y.backward(dy)
    found = {"y": y.detach(), "dx": x.grad, "dw": one.weight.grad, "db": one.bias.grad}
    w = one.weight

    def wanted():
        return {
            "y": (rounded(x, LINE) @ rounded(w, SQUARE).t() + one.bias.detach()).float(),
            "dx": (rounded(dy, LINE) @ rounded(w, SQUARE)).float(),
            "dw": (rounded(dy, LINE, True).t() @ rounded(x, LINE, True)).float(),
            "db": dy.sum(0),
        }

    assert_same_but_rounding(found, in_orders(wanted))
    assert found["dw"].dtype == torch.float32
    if rows > 1:
        assert not torch.allclose(found["y"], nn.functional.linear(x, w, one.bias), rtol=1e-3, atol=1e-3), "not in FP8"


def test_layers_of_one_input_are_those_alone_and_gradients_add_up():
    layers = [layer(64, seed=n, bias=n > 0, dtype=torch.bfloat16) for n in range(3)]
    x, dys = given(dtype=torch.bfloat16), [torch.randn(ROWS, 64, dtype=torch.bfloat16) for _ in range(3)]
    ys = linears(layers, x)
    torch.autograd.backward(ys, dys)
    together, x.grad = x.grad, None
    first = [one.weight.grad for one in layers]
    for one, y, dy, gradient in zip(layers, ys, dys, first, strict=True):
        one.weight.grad = None
        alone = one(x)
        alone.backward(dy)
        assert torch.equal(alone, y)
        assert torch.equal(one.weight.grad, gradient)
        assert gradient.dtype == y.dtype == torch.bfloat16
    # Alone each is rounded before they are added.
    assert (together.float() - x.grad.float()).abs().max() <= 3 * 2**-8 * x.grad.abs().max()
    torch.autograd.backward(linears(layers, x), dys)
    assert torch.equal(layers[1].weight.grad, 2 * first[1]), "a second micro-batch"


def kept(work) -> list[torch.Tensor]:
    found = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: found.append(x) or x, lambda x: x):
        work()
    return found


def test_what_is_not_wanted_is_neither_computed_nor_kept():
    one, x = layer(), given()
    one.weight.requires_grad_(False)
    assert [saved.data_ptr() for saved in kept(lambda: one(x))] == [one.weight.data_ptr()]
    one(x).sum().backward()
    assert one.weight.grad is None
    assert x.grad is not None
    one.weight.requires_grad_(True)
    still = x.detach()
    assert [saved.data_ptr() for saved in kept(lambda: one(still))] == [still.data_ptr()]
    one(still).sum().backward()
    assert one.weight.grad is not None
    assert not kept(lambda: torch.no_grad()(one)(x))


def test_no_tokens_and_no_bias():
    one, x = layer(), given(0)
    one(x).sum().backward()
    assert one(x).shape == (0, WIDE[0])
    assert not one.weight.grad.any()
    assert x.grad.shape == x.shape
    some = given(3)
    assert torch.equal(product(one, some) + one.bias, one(some))
