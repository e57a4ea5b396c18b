"""One optimiser step: the gradients of all micro-batches, clipped and checked, then AdamW."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from afn_distributed import process as processes
from afn_distributed.shard import clip_grad_norm, set_all_reduce, sum_gradients
from afn_model.data.loader import GlobalBatch, MicroBatch
from afn_model.prompt.batch import IGNORED, join
from afn_model.prompt.conversation import SILENCE
from afn_model.prompt.processor import AFNextProcessor
from afn_model.train.optimiser import FiniteCheck
from afn_model.train.optimiser_offload import OffloadedOptimiser

if TYPE_CHECKING:
    from afn_model.train.stage_model import StageModel


def update(
    stage_model: StageModel,
    method: Any,
    global_batch: GlobalBatch,
    *,
    rate: float,
    clip: float,
    finite: FiniteCheck,
    step: int,
    detailed: bool,
) -> dict[str, Any]:
    """One optimiser step, or as many as the method makes of a batch.

    Args:
        stage_model: model and optimiser.
        method: whose ``updates`` yields the losses of each optimiser step: they are made as they are read.
        global_batch: this rank's part of the batch.
        rate: learning rate of the stage, which a group of parameters may have a factor of.
        clip: largest norm of the gradient.
        finite: stops the run where loss or norm is not finite.
        step: named in its error.
        detailed: whether the log wants this step.

    Returns:
        Loss and gradient norm for the log with the method's own columns; nothing unless ``detailed``.
    """
    model, optimiser = stage_model.model, stage_model.optimiser
    for group in optimiser.param_groups:
        group["lr"] = rate * group.get("factor", 1.0)
    trained = [parameter for group in optimiser.param_groups for parameter in group["params"]]
    norm = total = torch.zeros((), device=model.device)
    for losses in method.updates(global_batch, detailed=detailed):
        total = torch.zeros((), device=model.device)
        for number, loss in enumerate(losses, 1):
            set_all_reduce(model, number == len(losses))
            if stage_model.adapted.dropout:
                stage_model.adapted.dropout.begin(step, number)
            value = loss()
            if value.requires_grad:  # a batch of text has no gradient where the language model is frozen
                value.backward()
            total += value.detach()
        if not losses:
            continue
        if stage_model.copied:
            sum_gradients(trained)
        norm = optimiser.clip(clip) if isinstance(optimiser, OffloadedOptimiser) else clip_grad_norm(trained, clip)
        finite.observe(optimiser, total, norm, step)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
    if not detailed:
        return {}
    return {"loss": float(processes.sum_over(total)), "grad_norm": float(norm)} | method.metrics()


def with_audio(micro: MicroBatch, processor: AFNextProcessor) -> MicroBatch:
    """A micro-batch with a second of silence added where it has no audio, for sharded weights.

    FSDP2 gathers weights and sums gradients layer by layer, so every rank must run every layer, the encoder's too.
    """
    if micro.batch is not None and micro.batch.pcm is None:
        silence = processor.prepare(SILENCE)
        silence.labels = torch.full_like(silence.ids, IGNORED)
        micro.batch = join(micro.batch, processor.pack([silence]))
        micro.axes, micro.source = [*micro.axes, ""], None
    return micro


@contextmanager
def collected_together(every: int = 50) -> Iterator[Callable[[int], None]]:
    """Inside, Python collects garbage only where the function that this gives is called with the steps done.

    Ranks that each collect when they happen to have garbage keep all others waiting, one after another.

    Args:
        every: steps between collections of young objects; every twentieth is of all objects.
    """
    enabled = gc.isenabled()
    gc.disable()

    def collect(steps: int) -> None:
        if steps % every == 0:
            gc.collect(2 if steps % (20 * every) == 0 else 1)

    try:
        yield collect
    finally:
        if enabled:
            gc.enable()
