"""Whether what is timed computes the right thing: outputs and gradients against the reference in float64."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor

from afn_kernels._registry import OPS
from bench.ops import Workload
from tests.budget import assert_within_budget

TIMED = "the timed shape"
LENGTHS = (8192, 1024, 256, 64)  # what a shape is cut to where float64 does not fit
PYTORCH = ("torch", "torch.compile")  # peers that are plain PyTorch
COMPOSED = ("sdpa", "matmul")  # our implementations that are PyTorch's own operators
APART = 0.03  # relative distance at which two bf16 results of the same long sums are not the same


def amplitude(features: Tensor) -> Tensor:
    """What log-mel features stand for: near zero a logarithm's own error has no bound."""
    return (10 ** (2 * features.double() - 2)).to(features.dtype)


COMPARED = {"log_mel": amplitude}  # what of an op's outputs is compared; by default they themselves


@dataclass(frozen=True)
class Accuracy:
    """The errors of every variant, and whether ours may be timed.

    Args:
        error: variant to max|x − oracle| / max|oracle|, the worst of its tensors.
        at: the shape of the comparison: "the timed shape", or the length it was cut to.
        wrong: variant to why it is outside the budget (ours), or cannot run at this shape.
        notes: variant to why there was no comparison.
    """

    error: dict[str, float] = field(default_factory=dict)
    at: str | None = None
    wrong: dict[str, str] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)


def as_tuple(out) -> tuple[Tensor, ...]:
    return tuple(out) if isinstance(out, (tuple, list)) else (out,)


def evaluated(
    fn: Callable,
    inputs: dict[str, Tensor],
    wrt: tuple[str, ...],
    rounded: torch.dtype,
    compared: Callable | None = None,
) -> list[Tensor]:
    """Outputs, then gradients with respect to ``wrt`` along a fixed random direction that ``rounded`` can hold."""
    inputs = {name: x.detach().requires_grad_(name in wrt) for name, x in inputs.items()}
    with torch.set_grad_enabled(bool(wrt)):
        outs = as_tuple(fn(inputs))
    reached = [out for out in outs if out.requires_grad]
    directions = []
    for number, out in enumerate(reached):
        generator = torch.Generator(out.device).manual_seed(number)
        direction = torch.randn(out.shape, generator=generator, device=out.device, dtype=torch.float32)
        directions.append(direction.to(rounded).to(out.dtype))
    grads = torch.autograd.grad(reached, [inputs[name] for name in wrt], directions) if wrt else ()
    outs = [x.detach() for x in outs]
    return [*map(compared, outs), *grads] if compared else [*outs, *grads]


def checked(
    work: Workload, variants: dict[str, Callable], ours: set[str], wrt: tuple[str, ...], device: str
) -> Accuracy:
    """Compares every variant with the reference in float64, on fresh values, at the largest shape that allows it.

    Ours is held to the error budget of the tests. The reference and the PyTorch peers are its "PyTorch in the same
    precision", because one order of summation's luck must not be the budget.
    """
    dtype = work.dtype
    for at, cut in shapes(work, device):
        try:
            torch.seed()
            inputs = cut.make(device, dtype)
            oracle = in_float64(cut, inputs, wrt)
            same = evaluated(lambda i, cut=cut: cut.call(i, "reference"), inputs, wrt, dtype, COMPARED.get(work.op))
            break
        except torch.OutOfMemoryError:
            inputs = oracle = None
            torch.cuda.empty_cache()
        except (RuntimeError, ValueError) as error:
            reason = f"no float64 reference at {at}: {str(error).strip().partition(chr(10))[0]}"
            return Accuracy(notes=dict.fromkeys(variants, reason))
    else:
        return Accuracy(notes=dict.fromkeys(variants, "no float64 reference: out of memory at every length"))
    same, errors, wrong, notes, results = [same, *composed(cut, inputs, wrt)], {}, {}, {}, {}
    for name, fn in variants.items():
        try:
            found = evaluated(fn, inputs, wrt, dtype, COMPARED.get(work.op))
        except (ValueError, torch.OutOfMemoryError) as error:  # options that fit no shorter shape; the oracle's memory
            notes[name] = f"not compared at {at}: {str(error).partition(chr(10))[0]}"
            continue
        except Exception as error:
            wrong[name] = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
            continue
        pairs = [(a, b) for a, b in zip(found, oracle, strict=False) if a.shape == b.shape and b.numel()]
        if pairs:
            errors[name] = max(float((a.double() - b.double()).abs().max() / b.double().abs().max()) for a, b in pairs)
        if name in ours:
            results[name] = found
        if name in PYTORCH and [x.shape for x in found] == [x.shape for x in oracle]:
            same.append(found)
    for name in results:
        try:
            for found, true, *others in zip(results[name], oracle, *same, strict=True):
                step = torch.finfo(found.dtype).eps
                if found.dtype.itemsize == 1:  # FP8 has no arithmetic of its own, and its eps in float32's
                    found, true, others = found.float(), true.float(), [other.float() for other in others]
                assert_within_budget(found, others, true, ulps=max(1, int(step / torch.finfo(found.dtype).eps)))
        except (AssertionError, ValueError) as error:
            wrong[name] = str(error).partition("\n")[0] or "not finite"
        except RuntimeError as error:  # a dtype that PyTorch cannot compare
            notes[name] = str(error).partition("\n")[0]
    return Accuracy(errors, at, wrong, notes)


def composed(work: Workload, inputs: dict[str, Tensor], wrt: tuple[str, ...]) -> list[list[Tensor]]:
    """What PyTorch's operators give in other orders of summation, where the op's table has them for this call."""
    found = []
    for impl in COMPOSED if work.op in OPS else ():
        with suppress(ValueError, torch.OutOfMemoryError):
            call = partial(work.call, impl=impl)
            found.append(evaluated(call, inputs, wrt, work.dtype, COMPARED.get(work.op)))
    return found


def in_float64(work: Workload, inputs: dict[str, Tensor], wrt: tuple[str, ...]) -> list[Tensor]:
    """The reference in float64; where it wants other inputs (the scales of FP8, say) in their own dtype, with those."""
    if "out_dtype" in work.options:
        work = replace(work, options=work.options | {"out_dtype": torch.float64})

    def wide(x: Tensor) -> Tensor:
        if x.dtype == torch.int16:  # audio, which counts 1/32768
            return x.double() / 32768
        return x.double() if x.is_floating_point() else x

    compared = COMPARED.get(work.op)
    everything = {name: wide(x) for name, x in inputs.items()}
    own = {name: x.double() if x.dtype == work.dtype else x for name, x in inputs.items()}
    try:
        return evaluated(lambda i: work.call(i, "reference"), everything, wrt, work.dtype, compared)
    except ValueError:
        return evaluated(lambda i: work.call(i, "reference"), own, wrt, work.dtype, compared)


def shapes(work: Workload, device: str) -> Iterator[tuple[str, Workload]]:
    """The timed shape, in words and as a workload; on a GPU, where float64 may not fit, shorter ones after it."""
    yield TIMED, work
    if work.at is None or device == "cpu":
        return
    full = elements(work)
    for length in LENGTHS:
        cut = replace(work, make=work.at(length))
        if elements(cut) < full:
            yield f"length {length}", cut


def elements(work: Workload) -> int:
    return sum(x.numel() for x in work.make("meta", work.dtype).values())


def apart(found: object, other: object) -> float | None:
    """‖found − other‖ / ‖other‖, the worst of the tensors with equal shapes; None where there are none."""
    distances = []
    for a, b in zip(as_tuple(found), as_tuple(other), strict=False):
        if a.shape == b.shape and a.is_floating_point() and b.is_floating_point() and a.numel():
            a, b = a.detach().float(), b.detach().float()
            distance = torch.linalg.vector_norm(a - b) / torch.linalg.vector_norm(b)
            distances.append(float(distance) if torch.isfinite(distance) else float("inf"))
    return max(distances, default=None)
