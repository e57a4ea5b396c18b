"""A stage's model: loaded, frozen where it does not train, adapted and sharded, with its optimiser."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from afn_distributed.process import Process
from afn_distributed.shard import shard
from afn_model.afnext import AFNext
from afn_model.train.activation_checkpoint import checkpoint_blocks
from afn_model.train.adapt import Adapted, adapt, load_base
from afn_model.train.curriculum import RunLayout, Stage
from afn_model.train.grpo import frozen_reference
from afn_model.train.optimiser import make_optimiser

# Methods of the model besides forward that compute with its weights.
FORWARDS = ("loss", "logits", "answer_logprobs", "hidden", "embed_batch", "encode", "encode_batch", "project")


@dataclass
class StageModel:
    """What a stage trains.

    Args:
        model: the policy, in training mode; trained weights are float32, frozen ones have the layout's dtype.
        optimiser: of what trains.
        adapted: what trains: whole submodules and adapters.
        sharded: whether the weights are cut over ranks, or gathered in another dtype than they are stored in.
        reference: frozen copy of the policy for the KL penalty of GRPO.
    """

    model: AFNext
    optimiser: torch.optim.Optimizer
    adapted: Adapted
    sharded: bool
    reference: AFNext | None = None


def stage_model(
    start: Path, stage: Stage, layout: RunLayout, process: Process, *, reference: bool, seed: int = 0
) -> StageModel:
    """Loads the model that a stage starts from, and makes it ready to train.

    Args:
        start: model folder.
        stage: says what trains, and how.
        layout: precision, recomputation and sharding.
        process: this rank.
        reference: whether to keep a frozen copy of the policy.
        seed: of the run.
    """
    model = load_base(start, stage, process.device)
    compute = getattr(torch, layout.dtype)
    adapted = adapt(model, stage, seed=seed, rank=process.rank)
    model.train()
    frozen = frozen_reference(model, compute) if reference else None
    for parameter in model.parameters():
        parameter.data = parameter.data.to(torch.float32 if parameter.requires_grad else compute)
    blocks = [*model.language_model.layers, *model.encoder.layers]
    checkpoint_blocks(model, layout.recompute)
    if layout.compile:
        for block in blocks:
            block.compile(dynamic=True)
    sharded = process.world_size > 1 or compute != torch.float32
    if sharded:
        shard(
            model,
            process,
            blocks=blocks,
            compute_dtype=compute,
            shard_size=layout.shard or None,
            forwards=FORWARDS,
        )
    optimiser = make_optimiser(
        [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad],
        lr=stage.lr,
        betas=stage.betas,
        weight_decay=stage.weight_decay,
        rates=stage.rates,
        kind=stage.optimiser,
    )
    return StageModel(model, optimiser, adapted, sharded, frozen)
