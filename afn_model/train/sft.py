"""Supervised fine-tuning: next-token loss on what the assistant says."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from afn_distributed import SequenceParallel
from afn_model.afnext import AFNext
from afn_model.data.loader import GlobalBatch, MicroBatch
from afn_model.network.device_batch import CopyStream, DeviceBatch
from afn_model.train.feature_cache import FeatureCache
from afn_model.train.log import by_axis


class SFT:
    """The loss of a global batch: the mean over all supervised tokens of all ranks.

    Args:
        model: the model.
        gather: sums a tensor over the ranks.
        collect: lists what each rank has.
        features: cached encoder features; None to run the encoder on every batch.
        sp_group: the ranks that share every sequence with this one; None where sequences are not shared.
    """

    def __init__(
        self,
        model: AFNext,
        *,
        gather: Callable[[Tensor], Tensor] = lambda tensor: tensor,
        collect: Callable[[Any], list[Any]] = lambda value: [value],
        features: FeatureCache | None = None,
        sp_group: SequenceParallel | None = None,
    ):
        self.model, self.gather, self.collect, self.features = model, gather, collect, features
        self.sp_group = sp_group
        self.options: dict[str, Any] = {}  # of the model's loss in training
        self.copies = CopyStream(model.device)
        self.detailed: list[tuple[list[str], Tensor, Tensor]] = []  # axes, the supervised tokens' sequences and losses

    def updates(self, global_batch: GlobalBatch, *, detailed: bool = False) -> Iterator[Losses]:
        """One optimiser step, a loss for every packed sequence; ``detailed`` also counts the losses by data axis.

        The divisor is the number of supervised tokens that the plan says, so the first loss waits for one micro-batch.
        """
        total = global_batch.supervised
        if total is None:
            supervised = torch.tensor(float(sum(micro.batch.supervised for micro in global_batch.micro)))
            total = float(self.gather(supervised)) / (self.sp_group.size if self.sp_group is not None else 1)
        self.detailed = []
        yield Losses(self, global_batch, max(float(total), 1.0), detailed)

    def loss(self, micro: MicroBatch, total: float, detailed: bool) -> Tensor:
        assert micro.batch is not None, "prompts alone have no loss"
        encoded = self.features(micro.batch) if self.features is not None else None
        options = {"source": micro.source, "encode": encoded is None}
        here = DeviceBatch.of(micro.batch, self.model.config, self.sp_group, **options)
        here = self.copies(here)
        if not detailed:
            return self.model.loss(here, encoded=encoded, total=total, **self.options)
        loss, rows, tokens = self.model.loss(here, encoded=encoded, total=total, with_rows=True, **self.options)
        lengths = micro.batch.cu_seqlens.diff().long()
        self.detailed.append((micro.axes, torch.repeat_interleave(torch.arange(len(lengths)), lengths)[tokens], rows))
        return loss

    def by_axis(self) -> dict[str, list[float]]:
        """Sum and number of the losses of the last step's tokens on this rank, by data axis."""
        found: dict[str, list[float]] = {}
        for axes, sequence, rows in self.detailed:
            sums = torch.zeros(len(axes)).index_add_(0, sequence, rows.float().cpu())
            counts = torch.bincount(sequence, minlength=len(axes))
            for axis, value, count in zip(axes, sums.tolist(), counts.tolist(), strict=True):
                entry = found.setdefault(axis or "all", [0.0, 0])
                entry[0] += value
                entry[1] += count
        return found

    def metrics(self) -> dict[str, Any]:
        """Mean losses by data axis, over the ranks, of a detailed step."""
        totals: dict[str, list[float]] = {}
        for of_rank in self.collect(self.by_axis()):
            for axis, (loss, count) in of_rank.items():
                entry = totals.setdefault(axis, [0.0, 0])
                entry[0] += loss
                entry[1] += count
        return {"losses": by_axis(totals)}

    def work(self) -> dict[str, float]:
        """A correction to the FLOPs counted from the batches: those the feature cache saved, below zero."""
        return {"flops": -self.features.saved_flops()} if self.features is not None else {}


@dataclass(frozen=True)
class Losses:
    """The losses of a step's micro-batches, each made when it is read; ``len`` is their number."""

    method: SFT
    global_batch: GlobalBatch
    total: float
    detailed: bool

    def __len__(self) -> int:
        return len(self.global_batch)

    def __iter__(self) -> Iterator[Callable[[], Tensor]]:
        for micro in self.global_batch:
            yield partial(self.method.loss, micro, self.total, self.detailed)


def select(modules: nn.Module, trains: tuple[str, ...]) -> list[nn.Parameter]:
    """Freezes everything, then unfreezes the named submodules; returns the parameters that train.

    The encoder's sinusoidal positions stay frozen; a decoder's are learned.
    """
    named = dict(modules.named_modules())
    unknown = [name for name in trains if name not in named]
    if unknown:
        raise ValueError(f"no submodule {', '.join(unknown)} to train; there are {', '.join(n for n in named if n)}")
    positions = ((name, p) for name, p in modules.named_parameters() if name.endswith("embed_positions.weight"))
    fixed = {id(p) for name, p in positions if not name.endswith("decoder.embed_positions.weight")}
    for parameter in modules.parameters():
        parameter.requires_grad_(False)
    trained = {id(p): p for name in trains for p in named[name].parameters() if id(p) not in fixed}
    for parameter in trained.values():
        parameter.requires_grad_(True)
    return list(trained.values())
