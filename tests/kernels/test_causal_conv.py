"""causal_conv against torch's convolution, in chunks, and against what its docstring promises."""

import pytest
import torch
import torch.nn.functional as F

import afn_kernels as ak
from tests.budget import assert_within

IMPLS = ["triton", "reference"]


@pytest.mark.parametrize("impl", IMPLS)
def test_it_is_torchs_grouped_convolution_of_what_came_before(impl, device):
    x, weight, bias = (
        torch.randn(2, 33, 20, device=device),
        torch.randn(20, 7, device=device),
        torch.randn(20).to(device),
    )
    expected = F.conv1d(F.pad(x.double().mT, (6, 0)), weight.double()[:, None], bias.double(), groups=20).mT
    size = F.conv1d(F.pad(x.abs().mT, (6, 0)), weight.abs()[:, None], bias.abs(), groups=20).mT
    assert_within(ak.causal_conv(x, weight, bias, impl=impl), expected, 9 * 2.0**-24 * size)  # nine roundings


@pytest.mark.parametrize("impl", IMPLS)
def test_chunks_give_the_bits_of_the_whole(impl, device):
    x, weight, bias = (
        torch.randn(1, 40, 33, device=device),
        torch.randn(33, 4, device=device),
        torch.randn(33).to(device),
    )
    state, found = torch.zeros(1, 3, 33, device=device), []
    for chunk in x.split((1, 0, 2, 37), 1):
        found.append(ak.causal_conv(chunk, weight, bias, state, impl=impl))
        state = torch.cat((state, chunk), 1)[:, -3:]
    assert torch.equal(torch.cat(found, 1), ak.causal_conv(x, weight, bias, impl=impl))


@pytest.mark.parametrize("impl", IMPLS)
def test_nan_reaches_the_outputs_that_read_it(impl, device):
    x = torch.randn(1, 12, 3, device=device)
    x[0, 4, 1], x[0, 5, 2] = float("nan"), float("inf")
    found = ak.causal_conv(x, torch.ones(3, 3, device=device), impl=impl).isfinite()
    expected = torch.ones_like(found)
    expected[0, 4:7, 1] = expected[0, 5:8, 2] = False
    assert torch.equal(found, expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.ones(2, 3), torch.ones(3, 2)), r"x \(2, 3\), weight \(3, 2\) do not fit \[B, T, C\]"),
        ((torch.ones(1, 2, 3), torch.ones(4, 2)), r"weight \(4, 2\) do not fit"),
        ((torch.ones(1, 2, 3), torch.ones(3, 0)), r"weight \(3, 0\) do not fit"),
        ((torch.ones(1, 2, 3), torch.ones(3, 2), torch.ones(2)), r"bias has shape \(2,\), expected \(3,\)"),
        ((torch.ones(1, 2, 3), torch.ones(3, 2), None, torch.ones(1, 2, 3)), r"state \(1, 2, 3\) do not fit"),
        ((torch.ones(1, 2, 3), torch.ones(3, 2), None, torch.ones(1, 1, 3).half()), "state is torch.float16"),
        ((torch.ones(1, 2, 3), torch.ones(3, 2).half()), "weight is torch.float16"),
    ],
)
def test_bad_input(arguments, message):
    with pytest.raises(ValueError, match=message):
        ak.causal_conv(*arguments)


def test_more_taps_than_a_kernel_unrolls():
    x, weight = torch.randn(1, 50, 2), torch.randn(2, 33)
    assert ak.causal_conv(x, weight).shape == x.shape
    with pytest.raises(ValueError, match="33 taps, and it unrolls at most 32"):
        ak.causal_conv(x, weight, impl="triton")
