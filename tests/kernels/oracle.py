"""The error budget every implementation is held to, derived from what the same low precision costs PyTorch."""

import torch
from torch import Tensor


def gradients(out: Tensor, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    """Gradients of ``out`` along a fixed random direction in [−1, 1]; zeros where there is nothing to reach."""
    generator = torch.Generator().manual_seed(7)
    direction = torch.rand(out.shape, generator=generator, dtype=torch.float64).mul(2).sub(1).to(out)
    grads = torch.autograd.grad(out, inputs, direction, allow_unused=not out.numel())
    return [torch.zeros_like(x) if g is None else g for g, x in zip(grads, inputs, strict=True)]


def assert_within_budget(
    found: Tensor, same_precision: list[Tensor], oracle: Tensor, *, summed: int = 0, rms: float = 0.0, ulps: int = 1
) -> None:
    """|found − oracle| ≤ 2 · max|same_precision − oracle| + ulps · eps · max|oracle| + 0.6 · eps₃₂ · summed · rms.

    Everything is finite.

    The last term is for gradients that add up many rows in float32, one after the other. Partial sums of independent
    terms grow with the square root of their number k, and each addition rounds by up to eps₃₂ / 2 of that: a standard
    deviation of eps₃₂ · summed · rms / (2 √6), of which three are allowed.

    Args:
        found: what the implementation computed.
        same_precision: plain PyTorch in the dtype of ``found``, once for each order of summation that is tried:
            the order is nobody's promise, and one order's luck must not become the budget.
        oracle: the reference in float64.
        summed: rows added up in float32.
        rms: root mean square of what is added.
        ulps: 1; 2 where results are truncated instead of rounded to nearest.
    """
    assert torch.isfinite(found).all()
    assert found.shape == oracle.shape
    if not oracle.numel():
        return
    floor = max((other.double() - oracle).abs().max() for other in same_precision)
    walk = torch.finfo(torch.float32).eps * 0.6 * summed * rms
    budget = 2 * floor + ulps * torch.finfo(found.dtype).eps * oracle.abs().max() + walk
    error = (found.double() - oracle).abs()
    worst = error.argmax()
    assert error.max() <= budget, f"{error.max():.3e} at flat index {int(worst)} exceeds the budget {budget:.3e}"
