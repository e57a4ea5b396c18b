"""Whether what is timed computes the right thing: outputs and gradients against the reference in float64."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Container, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor

from afn_kernels._registry import OPS
from afn_kernels.verify.products import rounded
from bench.ops import Absent, Workload
from tests.budget import assert_within_budget, lost

TIMED = "the timed shape"
LENGTHS = (8192, 1024, 256, 64)  # what a shape is cut to where float64 does not fit
PYTORCH = ("torch", "torch.compile")  # peers that are plain PyTorch
COMPOSED = ("sdpa", "matmul")  # our implementations that are PyTorch's own operators
FEW, DRAWS = 64, 3  # numbers of an output (a loss) whose error is one throw of dice, and how many more are thrown
APART = 0.03  # relative distance at which two bf16 results of the same long sums are not the same


def amplitude(features: Tensor) -> Tensor:
    """What log-mel features stand for: near zero a logarithm's own error has no bound."""
    return (10 ** (2 * features.double() - 2)).to(features.dtype)


def numbers(x: Tensor) -> Tensor:
    """Codes as numbers that are compared like any other."""
    return x if x.is_floating_point() else x.double()


COMPARED = {
    "linear_fp8": rounded,
    "log_mel": amplitude,
    "residual_quantize": numbers,
}  # what of an op's outputs is compared; by default they themselves


@dataclass(frozen=True)
class Accuracy:
    """The errors of every variant, and whether it may be timed.

    Args:
        error: variant to max|x − oracle| / max|oracle|, the worst of its tensors.
        at: the shape of the comparison: "the timed shape", or the length it was cut to.
        wrong: variant to why it is outside the budget, or cannot run at this shape.
        notes: variant to why there was no comparison, or why a peer may differ.
        written: inputs that the reference writes (caches), and so every implementation may.
    """

    error: dict[str, float] = field(default_factory=dict)
    at: str | None = None
    wrong: dict[str, str] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    written: frozenset[str] = frozenset()


def as_tuple(out) -> tuple[Tensor, ...]:
    return tuple(out) if isinstance(out, (tuple, list)) else (out,)


def copied(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Inputs of the same values and strides in memory of their own; views of one tensor stay views of one."""
    return copy.deepcopy({name: x.detach() for name, x in inputs.items()})


def changed(inputs: dict[str, Tensor], before: dict[str, Tensor]) -> set[str]:
    """The names of the inputs whose bits are not what they were."""
    bits = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}

    def same(x: Tensor, y: Tensor) -> bool:
        return torch.equal(*(z.detach().view(bits[z.dtype.itemsize]) for z in (x, y)))

    return {name for name, x in inputs.items() if not same(x, before[name])}


def evaluated(
    fn: Callable,
    inputs: dict[str, Tensor],
    wrt: tuple[str, ...],
    rounded: torch.dtype,
    compared: Callable | None = None,
) -> list[Tensor]:
    """Outputs, then gradients with respect to ``wrt`` along a fixed random direction that ``rounded`` can hold. What
    ``fn`` writes to inputs, their owner finds there."""
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
    work: Workload,
    variants: Callable[[Workload], dict[str, Callable]],
    peers: Container[str],
    wrt: tuple[str, ...],
    device: str,
) -> Accuracy:
    """Compares every variant with the reference in float64, on fresh values, at the largest shape that allows it.

    All are held to the error budget of the tests. Its "PyTorch in the same precision" is the reference, PyTorch's own
    operators where the op's table has them and, for what is not a peer, the PyTorch peers: one order of summation's
    luck must not be the budget. Peers come first and without each other, for two may share a mistake.

    Args:
        work: as it is timed.
        variants: a workload to its functions of the inputs, by name.
        peers: which of them are peers. Of those only the outputs that have the oracle's shape are compared.
        wrt: inputs with gradients.
        device: cpu or cuda.
    """
    dtype = work.dtype
    for at, cut in shapes(work, device):
        try:
            torch.seed()
            inputs = cut.make(device, dtype)
            oracle = in_float64(cut, inputs, wrt)
            given = copied(inputs)
            same = evaluated(lambda i, cut=cut: cut.call(i, "reference"), given, wrt, dtype, COMPARED.get(work.op))
            written = frozenset(changed(given, inputs))
            break
        except torch.OutOfMemoryError:
            inputs = given = oracle = None
            torch.cuda.empty_cache()
        except (RuntimeError, ValueError) as error:
            reason = f"no float64 reference at {at}: {str(error).strip().partition(chr(10))[0]}"
            return Accuracy(notes=dict.fromkeys(variants(work), reason))
    else:
        return Accuracy(notes=dict.fromkeys(variants(work), "no float64 reference: out of memory at every length"))
    same, errors, wrong, notes, results = [same, *composed(cut, inputs, wrt)], {}, {}, {}, {}
    for name, fn in variants(cut).items():
        try:
            results[name] = evaluated(fn, copied(inputs), wrt, dtype, COMPARED.get(work.op))
        except (
            Absent,
            ValueError,
            torch.OutOfMemoryError,
        ) as error:  # options that fit no shorter shape; memory
            notes[name] = f"not compared at {at}: {str(error).partition(chr(10))[0]}"
        except Exception as error:
            wrong[name] = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
    fitting, other_draws = list(same), elsewhere(cut, wrt, device, oracle)
    for name in sorted(results, key=lambda name: name not in peers):
        pairs = paired(results[name], oracle, len(wrt), name in peers)
        if pairs:
            errors[name] = max(distance(results[name][a], oracle[b]) for a, b in pairs)
        basis = same if name in peers else fitting
        complaint = outside(results[name], oracle, basis, pairs, name in peers, other_draws)
        most, reason = work.differs.get(name, (0.0, ""))
        if complaint and name in peers and errors.get(name, math.inf) <= most:
            notes[name] = f"outside the error budget, as it may be to {most:.1e}: {reason}"
        elif complaint:
            wrong[name] = complaint
        if name in PYTORCH and name not in wrong and [x.shape for x in results[name]] == [x.shape for x in oracle]:
            fitting.append(results[name])
    return Accuracy(errors, at, wrong, notes, written)


def paired(found: list[Tensor], oracle: list[Tensor], grads: int, peer: bool) -> list[tuple[int, int]]:
    """Numbers of the tensors that are compared: outputs from the first on, gradients from the last; a peer may return
    fewer outputs, or others."""
    if not peer:
        return [(i, i) for i in range(min(len(found), len(oracle))) if found[i].shape == oracle[i].shape]
    outs = [(i, i) for i in range(min(len(found), len(oracle)) - grads)]
    every = outs + [(len(found) - i, len(oracle) - i) for i in range(grads, 0, -1)]
    return [(a, b) for a, b in every if found[a].shape == oracle[b].shape and oracle[b].numel()]


def distance(found: Tensor, oracle: Tensor) -> float:
    """max|found − oracle| / max|oracle|."""
    if not oracle.numel():
        return 0.0
    return float((found.double() - oracle.double()).abs().max() / oracle.double().abs().max())


def elsewhere(work: Workload, wrt: tuple[str, ...], device: str, oracle: list[Tensor]) -> dict[int, list[float]]:
    """What the reference loses in other draws of the inputs, in those results that are few numbers."""
    losses: dict[int, list[float]] = {n: [] for n, x in enumerate(oracle) if 0 < x.numel() <= FEW}
    for _ in range(DRAWS if losses else 0):
        with suppress(RuntimeError):
            inputs = work.make(device, work.dtype)
            true = in_float64(work, inputs, wrt)
            same = evaluated(lambda i: work.call(i, "reference"), inputs, wrt, work.dtype, COMPARED.get(work.op))
            for n in losses:
                losses[n] += lost([same[n]], true[n])
    return losses


def outside(
    found: list[Tensor],
    oracle: list[Tensor],
    basis: list[list[Tensor]],
    pairs: list[tuple[int, int]],
    peer: bool,
    other_draws: dict[int, list[float]],
) -> str:
    """Why it is outside the error budget, else ""."""
    shapes = [[tuple(x.shape) for x in some] for some in (found, oracle)]
    if not pairs or (not peer and shapes[0] != shapes[1]):
        return f"it returns {shapes[0]}, the op {shapes[1]} (outputs, then gradients)"
    for number, (one, same) in enumerate(zip(found, basis[0], strict=True) if not peer else ()):
        if one.dtype != same.dtype:
            return f"it returns {one.dtype}, the op {same.dtype} (number {number} of outputs, then gradients)"
    for a, b in pairs:
        one, true, others = found[a], oracle[b], [other[b] for other in basis]
        step = torch.finfo(one.dtype).eps
        if one.dtype.itemsize == 1:  # FP8 has no arithmetic of its own, and its eps in float32's
            one, true, others = one.float(), true.float(), [other.float() for other in others]
        try:
            ulps = max(1, int(step / torch.finfo(one.dtype).eps))
            assert_within_budget(one, others, true, ulps=ulps, elsewhere=other_draws.get(b, ()))
        except AssertionError as error:
            return str(error).partition("\n")[0].strip() or "not finite"
    return ""


def composed(work: Workload, inputs: dict[str, Tensor], wrt: tuple[str, ...]) -> list[list[Tensor]]:
    """What PyTorch's operators give in other orders of summation, where the op's table has them for this call."""
    found = []
    for impl in COMPOSED if work.op in OPS else ():
        with suppress(ValueError, torch.OutOfMemoryError):
            call = partial(work.call, impl=impl)
            found.append(evaluated(call, copied(inputs), wrt, work.dtype, COMPARED.get(work.op)))
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
        return evaluated(lambda i: work.call(i, "reference"), copied(everything), wrt, work.dtype, compared)
    except ValueError:
        return evaluated(lambda i: work.call(i, "reference"), copied(own), wrt, work.dtype, compared)


def shapes(work: Workload, device: str) -> Iterator[tuple[str, Workload]]:
    """The timed shape, in words and as a workload; on a GPU, where float64 may not fit, shorter ones after it."""
    yield TIMED, work
    if work.at is None or device == "cpu":
        return
    full = elements(work)
    for length in LENGTHS:
        cut = work.cut(length)
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
