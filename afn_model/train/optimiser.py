"""AdamW, its learning-rate schedule, and a check that loss and gradient norm are finite."""

from __future__ import annotations

import importlib.util
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from afn_model.train.adamw8bit import AdamW8bit
from afn_model.train.curriculum import SCHEDULES

MOMENTS = {"adamw": 8.0, "adamw8bit": 2.04}  # bytes of a trained parameter; scales of blocks included
# Of a part with blocks: a block's parameter, or one of what comes before the first.
LAYERED = re.compile(r"(\w+)\.(?:layers\.(\d+)|conv\d|embed_\w+)\.")


def make_optimiser(
    named_parameters: Iterable[tuple[str, nn.Parameter]],
    lr: float,
    betas: tuple[float, float] = (0.9, 0.95),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    *,
    rates: Mapping[str, float] | None = None,
    layer_decay: float = 1.0,
    kind: str = "adamw",
    apex: bool = True,
) -> torch.optim.Optimizer:
    """Fused AdamW; matrices decay, vectors do not.

    apex's FusedAdam where it is installed and unsharded weights are on a GPU, and else PyTorch's fused AdamW; or AdamW
    with moments in 8 bits (``afn_model.train.adamw8bit``).

    Args:
        named_parameters: what trains; parameters without ``requires_grad`` are passed over.
        lr: set anew before every step: ``learning_rate`` times the group's ``factor``.
        betas, eps, weight_decay: of AdamW.
        rates: of parts by their name or the beginning of it; the factor of such a part is its rate / lr. The head
            goes with the language model.
        layer_decay: each block's factor over that of the block after it; see ``blocks_above``.
        kind: "adamw" or "adamw8bit".
        apex: whether apex may be taken.

    Raises:
        ValueError: nothing to train.
    """
    named = list(named_parameters)
    above = blocks_above(name for name, _ in named)
    trained = [(name, parameter) for name, parameter in named if parameter.requires_grad]
    if not trained:
        raise ValueError("no parameter to train: all of them are frozen")
    by_kind: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in sorted(trained, key=lambda named: named[1].dim() <= 1):
        part = "language_model" if name.startswith("lm_head.") else name.partition(".")[0]
        rate = (rates or {}).get(part, lr) * layer_decay ** above[name]
        by_kind.setdefault((rate, weight_decay if parameter.dim() > 1 else 0.0), []).append(parameter)
    groups = [
        {"params": parameters, "weight_decay": decay, "lr": rate, "factor": rate / lr}
        for (rate, decay), parameters in by_kind.items()
    ]
    settings = {"lr": lr, "betas": tuple(betas), "eps": eps}
    if kind == "adamw8bit":
        return AdamW8bit(groups, **settings)
    if apex and whole_on_gpu(p for _, p in trained) and importlib.util.find_spec("apex"):
        from apex.optimizers import FusedAdam

        return FusedAdam(groups, adam_w_mode=True, **settings)
    return torch.optim.AdamW(groups, fused=True, **settings)


def blocks_above(names: Iterable[str]) -> dict[str, int]:
    """By how many powers of ``layer_decay`` the rate of each parameter is below its part's.

    Of a part with L blocks (encoder, decoder, language model) L − i for block i, counted from 0, and L + 1 for what
    comes before them: convolutions and embeddings, also those that are a head once more. 0 for all else.

    Args:
        names: of all parameters, those that do not train too.

    Source: Clark et al., 2020, arXiv:2003.10555, with the exponents of BEiT, Bao et al., 2022, arXiv:2106.08254.
    """
    found = {name: LAYERED.match(name) for name in names}
    layers: Counter[str] = Counter()
    for match in found.values():
        if match and match[2]:
            layers[match[1]] = max(layers[match[1]], int(match[2]) + 1)
    return {
        name: layers[match[1]] - (int(match[2]) if match[2] else -1) if match and layers[match[1]] else 0
        for name, match in found.items()
    }


def whole_on_gpu(parameters: Iterable[nn.Parameter]) -> bool:
    return all(p.is_cuda and not isinstance(p, DTensor) for p in parameters)


def learning_rate(lr: float, warmup: float, schedule: str, progress: float) -> float:
    """Linear warm-up; then, s = (progress − warmup) / (1 − warmup) of the way, lr · ½(1 + cos πs), lr · (1 − s) or lr.

    Args:
        lr: peak.
        warmup: share of the run, 0 to below 1.
        schedule: "cosine", "linear" or "constant".
        progress: share of the run that is done, 0 to 1.

    Raises:
        ValueError: another schedule.
    """
    if schedule not in SCHEDULES:
        raise ValueError(f"no schedule {schedule!r}; there are {', '.join(SCHEDULES)}")
    if progress < warmup:
        return lr * max(progress / warmup, 0.01)
    share = min((progress - warmup) / (1 - warmup), 1.0)
    if schedule == "cosine":
        return lr * 0.5 * (1 + math.cos(math.pi * share))
    return lr * (1 - share) if schedule == "linear" else lr


class FiniteCheck:
    """Stops a run whose loss or gradient is no longer finite, before the weights change.

    On a GPU there is no host sync: fused AdamW reads ``optimiser.found_inf`` on the device and skips the update where
    it is 1, and the values are checked one step later.

    Args:
        stage: named in the error.
    """

    def __init__(self, stage: str):
        self.stage = stage
        self.pending: tuple[int, Tensor, torch.cuda.Event | None] | None = None

    def observe(self, optimiser: torch.optim.Optimizer, loss: Tensor, norm: Tensor, step: int) -> None:
        """Takes a step's values; call it after the backward and before ``optimiser.step()``.

        Args:
            optimiser: the one that is about to step.
            loss: scalar of this rank; it does not decide whether the step is applied, since ranks must agree on that.
            norm: scalar, of the gradients on all ranks.
            step: named in the error.

        Raises:
            ValueError: the loss or the norm of an earlier step (or of this one, on a CPU) is not finite.
        """
        self.flush()
        norm = norm.full_tensor() if isinstance(norm, DTensor) else norm.detach()
        values = torch.stack((loss.detach().to(norm.device).float(), norm.float()))
        optimiser.found_inf = (~torch.isfinite(norm)).float()
        if values.is_cuda:
            kept = torch.empty(2, pin_memory=True)
            kept.copy_(values, non_blocking=True)
            arrived = torch.cuda.Event()
            arrived.record()
            self.pending = (step, kept, arrived)
        else:
            self.pending = (step, values, None)
        # An optimiser that does not read found_inf would apply the step.
        if not values.is_cuda or not isinstance(getattr(optimiser, "inner", optimiser), torch.optim.AdamW):
            self.flush()

    def flush(self) -> None:
        """Checks the last step now; call it before a checkpoint.

        Raises:
            ValueError: its loss or norm is not finite.
        """
        if self.pending is None:
            return
        (step, values, arrived), self.pending = self.pending, None
        if arrived is not None:
            arrived.synchronize()
        loss, norm = values.tolist()
        if not math.isfinite(loss) or not math.isfinite(norm):
            raise ValueError(f"stage {self.stage}, step {step}: loss {loss}, gradient norm {norm}; nothing was changed")
