"""Implementations with a fault each, as rows of an op's table; also a process that has them (``python -m``)."""

import os
import signal
import sys
import time
from contextlib import contextmanager

import torch

import afn_kernels as ak
from afn_kernels._library import BOUNDARIES, Boundary
from afn_kernels._registry import OPS, Impl
from afn_kernels.rms_norm.reference import rms_norm as right

HERE = "tests.kernels.verify.planted"
calls = {"n": 0}


def good(x, weight, **options):
    calls["n"] += 1
    return right(x, weight, **options)


def raising(x, weight, **options):
    calls["n"] += 1
    return launch("out_of_resource")(x)


def launched(x, weight, **options):
    """Its launch and its gradient are right for weights of one and rows of any size: what goes in comes out."""
    return launch("copied")(x)


def copied(x):
    return x.clone()


def out_of_resource(x):
    raise RuntimeError("out of resource: shared memory\nand more")


def _saved(ctx, grad):
    (x,) = ctx.saved_tensors
    return grad.view_as(x).clone()


def launch(name: str) -> Boundary:
    """A boundary in front of a function that is here."""
    return BOUNDARIES.get(f"test_{name}") or Boundary(
        f"test_{name}(Tensor x) -> Tensor", f"{HERE}:{name}", torch.empty_like, backward=_saved
    )


def a_bit_off(x, weight, **options):
    """By four roundings of the largest value, in one place."""
    y = right(x, weight, **options)
    off = torch.zeros_like(y)
    off.view(-1)[3] = 4 * torch.finfo(y.dtype).eps * y.detach().abs().max()
    return y + off


def not_a_number(x, weight, **options):
    y = right(x, weight, **options).clone()
    return torch.where(torch.arange(y.numel()).view(y.shape) == y.numel() - 1, float("nan"), y)


def unwritten(x, weight, **options):
    """Right where memory happens to hold what it should."""
    y, out = right(x, weight, **options), torch.empty(x.shape)
    return torch.where(torch.arange(y.numel()).view(y.shape) == 5, out, y)


def other_bits(x, weight, **options):
    """Within every budget, and another value each time."""
    calls["n"] += 1
    y = right(x, weight, **options)
    return y * (1 + torch.finfo(y.dtype).eps * (calls["n"] % 2))


class WrongGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad * (1 + 1e-5)


def wrong_gradient(x, weight, **options):
    return right(WrongGradient.apply(x), weight, **options)


class OtherGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        calls["n"] += 1
        return grad * (1 + torch.finfo(grad.dtype).eps * (calls["n"] % 2))


def other_gradient(x, weight, **options):
    return right(OtherGradient.apply(x), weight, **options)


def raising_backward(x, weight, **options):
    return right(Raising.apply(x), weight, **options)


class Raising(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        raise RuntimeError("invalid argument")


def without_gradient_wrong(x, weight, **options):
    """As a kernel of its own for calls without gradients may be."""
    y = right(x, weight, **options)
    return y if torch.is_grad_enabled() else y + 1e-4


def dying(x, weight, **options):
    os.kill(os.getpid(), signal.SIGKILL)


FAULTS = {
    "raising": r"RuntimeError: out of resource: shared memory$",
    "a_bit_off": "out0 is off by",
    "not_a_number": "out0 is not finite",
    "unwritten": "out0 is not finite",
    "other_bits": "out0 has other bits when it is computed again",
    "wrong_gradient": "dx is off by",
    "other_gradient": "dx has other bits when it is computed again, in deterministic mode",
    "raising_backward": "RuntimeError: invalid argument",
    "without_gradient_wrong": "out0 is off by",
}


@contextmanager
def planted(*names: str):
    """rms_norm's table with these before the reference."""
    op = OPS["rms_norm"]
    before = op.impls, op._by_name
    op.impls = (*(Impl(name, f"{HERE}:{name}") for name in names), before[0][-1])
    op._by_name = {row.name: row for row in op.impls}
    try:
        yield ak
    finally:
        op.impls, op._by_name = before


if __name__ == "__main__":
    from afn_kernels.verify.__main__ import main

    if "--hang" in sys.argv:
        time.sleep(1000)
    with planted("dying", "good"):
        sys.exit(main())
