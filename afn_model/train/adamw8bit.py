"""AdamW whose moments take a byte each: codes of equal ratio in blocks of 256 with a scale of their own."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

BLOCK = 256  # elements of a row that share a scale
SMALL = 4096  # elements; moments of parameters below it, and of vectors, stay in float32
ROWS = 2**22  # elements updated at a time, which bounds what a step takes beside the states
# Levels per octave and of the largest value. The first moment has a sign and reaches 15.75 octaves down, the second,
# whose smallest values decide the largest steps, 25.4; a positive one never becomes zero.
FIRST, SECOND = (8, 127), (10, 255)
GOLDEN, PLASTIC, STEP = 0.6180339887498949, 0.7548776662466927, 0.5698402909980532


class AdamW8bit(torch.optim.Optimizer):
    """m ← β₁ m + (1 − β₁) g, v ← β₂ v + (1 − β₂) g², p ← (1 − lr·wd) p − lr m̂ / (√v̂ + ε), with m and v in 8 bits.

    A moment x of a block whose largest is s is sign(x) s 2^((c − C) / L), with C the largest code and L levels per
    octave, at most 4.5 % (m) and 3.5 % (v) from x. Rounding is up or down by a dither that is a function of element and
    step: a moment that decays by less than a level in a step is not stuck, and a run that resumes is the same.

    Weights of 4,096 elements or more in two or more dimensions have such moments, all others float32 ones. Sharded
    weights (DTensor, cut along the first dimension) have sharded moments.

    Args:
        params: parameters, or groups of them.
        lr, betas, eps, weight_decay: of AdamW.

    Source: block-wise states, Dettmers et al., 2022, arXiv:2110.02861; the code is geometric instead of dynamic.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ):
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self.update(parameter, group)
        return loss

    def update(self, parameter: nn.Parameter, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state.update(new_state(parameter))
        state["step"] += 1
        step = int(state["step"])
        names = ("exp_avg", "exp_avg_sq", "exp_avg_scale", "exp_avg_sq_scale")
        m, v, *scales = (local(state[name]) for name in names if name in state)
        p, g = local(parameter), local(parameter.grad)
        if not scales:
            m.lerp_(g, 1 - group["betas"][0])
            v.mul_(group["betas"][1]).addcmul_(g, g, value=1 - group["betas"][1])
            apply(p, m, v, step, group)
            return
        rows = max(ROWS // max(p[:1].numel(), 1), 1)
        for start in range(0, len(p), rows):
            some = slice(start, start + rows)
            m_code, v_code, m_scale, v_scale = (x[some] for x in (m, v, *scales))
            gradient = g[some].reshape(len(m_code), -1).float()
            first = decode(m_code, m_scale, *FIRST).lerp_(gradient, 1 - group["betas"][0])
            second = decode(v_code, v_scale, *SECOND).mul_(group["betas"][1])
            second.addcmul_(gradient, gradient, value=1 - group["betas"][1])
            apply(p[some], first.view_as(p[some]), second.view_as(p[some]), step, group)
            up = dither(*first.shape, start, step, first.device)
            encode(first, m_code, m_scale, *FIRST, up)
            encode(second, v_code, v_scale, *SECOND, 1 - up)


def local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def new_state(parameter: nn.Parameter) -> dict[str, Tensor]:
    """Zero moments: [rows, columns] codes and [rows, blocks] scales, sharded as the parameter is, or float32 ones."""
    state = {"step": torch.zeros(())}
    if parameter.dim() < 2 or parameter.numel() < SMALL:
        return state | {name: torch.zeros_like(parameter) for name in ("exp_avg", "exp_avg_sq")}
    rows, columns = parameter.shape[0], math.prod(parameter.shape[1:])
    blocks = -(-columns // BLOCK)
    own = local(parameter)

    def zeros(width: int, dtype: torch.dtype) -> Tensor:
        tensor = torch.zeros(len(own), width, dtype=dtype, device=own.device)
        if not isinstance(parameter, DTensor):
            return tensor
        where = {"run_check": False, "shape": torch.Size((rows, width)), "stride": (width, 1)}
        return DTensor.from_local(tensor, parameter.device_mesh, parameter.placements, **where)

    state |= {"exp_avg": zeros(columns, torch.int8), "exp_avg_sq": zeros(columns, torch.uint8)}
    return state | {f"{name}_scale": zeros(blocks, torch.float32) for name in ("exp_avg", "exp_avg_sq")}


def apply(p: Tensor, m: Tensor, v: Tensor, step: int, group: dict[str, Any]) -> None:
    """AdamW's step with moments that are not yet corrected for their beginning at zero."""
    (beta1, beta2), lr = group["betas"], group["lr"]
    root = (v.sqrt() / math.sqrt(1 - beta2**step)).add_(group["eps"])
    p.mul_(1 - lr * group["weight_decay"]).addcdiv_(m, root, value=-lr / (1 - beta1**step))


def spread(scale: Tensor, columns: int) -> Tensor:
    """[rows, blocks] scales to the [rows, columns] elements that share them."""
    return scale.repeat_interleave(min(BLOCK, columns), 1)[:, :columns]


def decode(code: Tensor, scale: Tensor, levels: int, most: int) -> Tensor:
    """Moments [rows, columns] float32 of codes and scales."""
    size = ((code.abs() if code.dtype == torch.int8 else code).float() - most).div_(levels).exp2_()
    return size.mul_(code.sign()).mul_(spread(scale, code.shape[1]))


def encode(x: Tensor, code: Tensor, scale: Tensor, levels: int, most: int, up: Tensor) -> None:
    """Writes codes and scales of moments; ``up`` in 0..1 is what decides of a value between two levels."""
    size = x.abs()
    whole = F.pad(size, (0, scale.shape[1] * min(BLOCK, x.shape[1]) - x.shape[1]))
    torch.amax(whole.view(*scale.shape, -1), 2, out=scale)
    level = (size / spread(scale, x.shape[1]).clamp_min(1e-38)).log2_().mul_(levels).add_(most).add_(up).floor_()
    if code.dtype == torch.int8:
        code.copy_(level.clamp_(0, most).mul_(x.sign()))
    else:
        code.copy_(level.clamp_(1, most).mul_(x.sign()))


def dither(rows: int, columns: int, first: int, step: int, device: torch.device) -> Tensor:
    """[rows, columns] in 0..1, spread evenly over elements and, for each element, over steps."""
    down = torch.arange(first, first + rows, dtype=torch.float64, device=device) * PLASTIC + step * STEP
    across = torch.arange(columns, dtype=torch.float64, device=device) * GOLDEN
    return (down.frac().float()[:, None] + across.frac().float()).frac_()
