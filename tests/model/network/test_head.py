"""The head in float32: logits that are not rounded to 16 bits, and the same numbers for sampler and trainer."""

import pytest
import torch

from afn_model.network.head import LanguageModelHead, float32_logits, sampling_logits, target_logprobs
from tests.budget import assert_same_but_rounding, assert_within
from tests.orders import in_orders

ROWS, WIDTH, CLASSES = 7, 64, 5000


def drawn(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Hidden states and a head whose logits are up to some 30."""
    hidden, weight = torch.randn(ROWS, WIDTH), torch.randn(CLASSES, WIDTH)
    return hidden.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_()


def test_logits_of_16_bits_are_summed_and_kept_in_float32():
    hidden, weight = (x.detach() for x in drawn(torch.bfloat16))
    found = float32_logits(hidden, weight)
    exact = hidden.double() @ weight.double().t()
    assert found.dtype == torch.float32
    # Products of two bfloat16 numbers are exact in float32; WIDTH of them are added with a rounding each.
    bound = WIDTH * torch.finfo(torch.float32).eps * (hidden.abs().double() @ weight.abs().double().t())
    assert_within(found, exact, bound)
    assert float((found.bfloat16() - exact).abs().max()) > 100 * float(bound.max()), "what rounding would cost"
    meta = float32_logits(hidden.to("meta"), weight.to("meta"))
    assert (meta.shape, meta.dtype) == (found.shape, torch.float32)


def test_hooks_of_the_head_see_wide_logits():
    head = LanguageModelHead(WIDTH, CLASSES, bias=False).bfloat16()
    hidden, seen = torch.randn(2, WIDTH).bfloat16(), []
    head.register_forward_hook(lambda module, given, logits: seen.append(logits.dtype))
    assert torch.equal(sampling_logits(head, hidden), float32_logits(hidden, head.weight))
    assert torch.equal(head(hidden), torch.nn.functional.linear(hidden, head.weight))
    assert seen == [torch.float32, torch.bfloat16]
    other = torch.nn.Linear(WIDTH, CLASSES, bias=False).bfloat16()
    assert torch.equal(sampling_logits(other, hidden), other(hidden).float())


def test_gradients_of_float32_logits():
    hidden, weight = drawn(torch.bfloat16)
    wide = [x.detach().float().requires_grad_() for x in (hidden, weight)]
    upstream = torch.randn(ROWS, CLASSES).bfloat16().float()
    found = torch.autograd.grad(float32_logits(hidden, weight), (hidden, weight), upstream)
    exact = torch.autograd.grad(float32_logits(*wide), wide, upstream)
    for one, other in zip(found, exact, strict=True):
        assert one.dtype == torch.bfloat16
        # A product in bfloat16: one rounding of a sum in float32, relative to the sum's own size or its largest terms.
        assert_within(one, other, torch.finfo(torch.bfloat16).eps * float(other.abs().max()))


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logprobs_divide_logits(temperature, monkeypatch):
    monkeypatch.setattr("afn_model.network.head.ROWS", 3)  # 7 rows in three parts
    hidden, weight = drawn(torch.float32)
    targets = torch.randint(CLASSES, (ROWS,))
    slope = torch.randn(ROWS)

    def run(call) -> dict[str, torch.Tensor]:
        logprobs = call(hidden, weight)
        gradients = torch.autograd.grad(logprobs, (hidden, weight), slope)
        return {"logprobs": logprobs.detach(), **dict(zip(("hidden", "weight"), gradients, strict=True))}

    def plain(hidden, weight):
        return ((hidden @ weight.t()) / temperature).log_softmax(-1).gather(1, targets[:, None])[:, 0]

    found = run(lambda hidden, weight: target_logprobs(hidden, weight, targets, temperature))
    assert_same_but_rounding(found, in_orders(lambda: run(plain)))


@pytest.mark.parametrize("master", [torch.bfloat16, torch.float32])
def test_the_gradient_of_many_parts_is_rounded_once(master, monkeypatch):
    """In bfloat16, 64 rows one by one; all have one direction, so that the parts add up."""
    monkeypatch.setattr("afn_model.network.head.ROWS", 1)
    hidden = (torch.randn(1, WIDTH) + 0.1 * torch.randn(64, WIDTH)).bfloat16()
    weight = (0.05 * torch.randn(CLASSES, WIDTH)).to(master).requires_grad_()
    targets = torch.randint(CLASSES, (64,))
    (found,) = torch.autograd.grad(target_logprobs(hidden, weight, targets, 0.7).sum(), weight)
    wide = weight.detach().bfloat16().double().requires_grad_()
    logprobs = (hidden.double() @ wide.t() / 0.7).log_softmax(-1).gather(1, targets[:, None])
    (exact,) = torch.autograd.grad(logprobs.sum(), wide)
    chosen = torch.nn.functional.one_hot(targets, CLASSES)
    slope = (chosen - (hidden.double() @ wide.detach().t() / 0.7).softmax(-1)) / 0.7
    # Each row's slope is rounded to bfloat16, by half its eps, and what is not float32 once more in the end; a
    # hundredth is for the float32 numbers in between.
    terms = slope.abs().t() @ hidden.double().abs()
    once = 0.505 * torch.finfo(torch.bfloat16).eps
    assert found.dtype == master
    assert_within(found, exact, once * (terms + (exact.abs() if master == torch.bfloat16 else 0)))


def test_no_row():
    assert target_logprobs(torch.zeros(0, 8), torch.zeros(5, 8), torch.zeros(0, dtype=torch.int64), 0.5).shape == (0,)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_what_the_sampler_draws_from_is_what_is_trained(temperature):
    """In bfloat16: the log-probabilities of both from the same hidden states."""
    hidden, weight = drawn(torch.bfloat16)
    targets = torch.randint(CLASSES, (ROWS,))
    with torch.no_grad():
        trained = target_logprobs(hidden, weight, targets, temperature)
        sampled = (float32_logits(hidden, weight) / temperature).log_softmax(-1).gather(1, targets[:, None])[:, 0]
        rounded = (hidden @ weight.t()).float().div(temperature).log_softmax(-1).gather(1, targets[:, None])[:, 0]
    # Logits of up to some 50 / 0.7, rounded a few times in float32 each.
    assert_within(trained, sampled, 8 * 100 * torch.finfo(torch.float32).eps)
    assert float((rounded - sampled).abs().max()) > 1e-3
