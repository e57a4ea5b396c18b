"""A stage's model: frozen where it does not train, adapted and sharded, with its optimiser and its reference."""

from __future__ import annotations

import copy
import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh

from afn_distributed.fp8_gather import gather_in_fp8
from afn_distributed.process import Process
from afn_distributed.shard import mesh_of, shard
from afn_model.afnext import AFNext
from afn_model.train import lora
from afn_model.train.activation_checkpoint import checkpoint_blocks
from afn_model.train.activation_offload import ActivationOffload
from afn_model.train.adapt import Adapted, adapt, with_adapters
from afn_model.train.curriculum import Stage
from afn_model.train.fp8 import fp8_weights, multiply_in_fp8
from afn_model.train.grpo import frozen_reference
from afn_model.train.lora_linear import adapters
from afn_model.train.optimiser import make_optimiser
from afn_model.train.optimiser_offload import OffloadedOptimiser
from afn_model.train.prepare import together
from afn_model.train.run_layout import RunLayout
from afn_model.weights.slices import StoredWeights

# Methods of the model besides forward that compute with its weights.
FORWARDS = ("loss", "logits", "answer_logprobs", "hidden", "embed_batch", "encode", "encode_batch", "project")
ENCODER_GROUP = 8  # blocks gathered at once: 0.3 GB, of 39 MB each
WHOLE_SHARE = 0.25  # of a GPU's memory, up to which frozen weights are kept whole where a layout leaves it open


@dataclass
class StageModel:
    """What a stage trains.

    Args:
        model: the policy, in training mode; trained weights are float32, frozen ones have the layout's dtype, and so
            have trained ones whose float32 weights are on the host.
        optimiser: of what trains.
        adapted: what trains: whole submodules and adapters.
        sharded: whether the weights are cut over ranks, or computed with in another dtype than the optimiser's.
        reference: for the KL penalty of GRPO: a frozen copy of the policy, sharded as the policy is; with adapters the
            policy itself. ``reference_context`` gives what to ask.
        originals: with adapters, frozen copies of the submodules that train besides them, by name.
        copied: whether every rank has all of what trains, whose gradients are summed before the optimiser's step.
    """

    model: Any
    optimiser: torch.optim.Optimizer
    adapted: Adapted
    sharded: bool
    reference: AFNext | None = None
    originals: dict[str, nn.Module] = field(default_factory=dict)
    copied: bool = False

    @contextmanager
    def reference_context(self) -> Iterator[AFNext]:
        """A context with the model to ask for reference log-probabilities, without gradients.

        With adapters that is the policy, which inside of the context is what it was before they were added.

        Raises:
            ValueError: the stage has no reference.
        """
        if self.reference is None:
            raise ValueError("the stage keeps no reference: its KL weight is 0, or it is none of GRPO")
        if self.reference is not self.model:
            yield self.reference
            return
        trained = {name: getattr(self.model, name) for name in self.originals}
        with lora.disabled(self.model):
            for name, module in self.originals.items():
                setattr(self.model, name, module)
            try:
                yield self.model
            finally:
                for name, module in trained.items():
                    setattr(self.model, name, module)


def stage_model(
    model: AFNext,
    stage: Stage,
    layout: RunLayout,
    process: Process,
    *,
    reference: bool,
    seed: int = 0,
    weights: StoredWeights | None = None,
) -> StageModel:
    """Makes the model that a stage starts from ready to train, in place.

    Args:
        model: whole and on this rank's device, or with ``weights`` on the meta device.
        stage: says what trains, and how.
        layout: precision, recomputation, sharding and offload.
        process: this rank.
        reference: whether the stage asks a frozen copy of the policy.
        seed: of the run.
        weights: the model's, of which this rank reads what it holds, once it is known what that is.

    Raises:
        ValueError: weights that a rank cannot read, on every rank; what ``adapt`` raises.
    """
    compute = getattr(torch, layout.dtype)
    where = process.device if weights is not None else None
    adapted = adapt(model, stage, seed=seed, rank=process.rank, device=where)
    if layout.fp8:
        multiply_in_fp8(model.language_model)
    # Without its adapters the policy is what they were added to; one that goes on from an adapter needs a copy.
    itself = reference and bool(stage.lora) and not stage.adapter
    originals = {}
    if itself:
        originals = {name: _frozen(getattr(model, name), compute) for name in adapted.trains if hasattr(model, name)}
    model.train()
    other = None
    if reference:
        other = model if itself else frozen_reference(model, compute)
    for parameter in model.parameters():
        parameter.data = parameter.data.to(torch.float32 if parameter.requires_grad else compute)
    checkpoint_blocks(
        model, layout.recompute, ActivationOffload(process.device) if layout.offload_activations else None
    )
    if layout.compile:
        for block in (*model.blocks, *model.encoder.layers):
            block.compile(dynamic=True)
    sharded = process.world_size > 1 or compute != torch.float32
    copies = sharded and copies_alone(stage, layout, process.world_size)
    if sharded and not copies:
        mesh = mesh_of(process, layout.shard or None)
        whole = kept_whole(model, layout, process.device)
        _shard(model, mesh, compute, whole)
        if other is not None and other is not model and mesh.size() > 1:
            _shard(other, mesh, compute, whole)
        gc.collect()  # the whole weights, which cycles still hold
    if weights is not None:
        together(process, lambda: _fill(weights, process.device, model, other, originals))
    if layout.fp8:
        for part in (model,) if other is None or other is model else (model, other):
            gather_in_fp8(fp8_weights(part))
    optimiser = make_optimiser(
        model.named_parameters(),
        lr=stage.lr,
        betas=stage.betas,
        weight_decay=stage.weight_decay,
        rates=stage.rates,
        layer_decay=stage.layer_decay,
        kind=stage.optimiser,
        apex=not layout.offload_optimiser,
    )
    if layout.offload_optimiser:
        optimiser = OffloadedOptimiser(optimiser, compute if copies else None, gradients=layout.offload_gradients)
    return StageModel(model, optimiser, adapted, sharded, other, originals)


def copies_alone(stage: Stage, layout: RunLayout, ranks: int) -> bool:
    """Whether the model has trained weights in the layout's dtype alone: the float32 ones are on the host.

    That is for one GPU, which FSDP2 has nothing to cut for. Of several, each has its share of the float32 weights, from
    which the others are gathered; what trains beside adapters is small.
    """
    return layout.offload_optimiser and ranks == 1 and layout.dtype != "float32" and not with_adapters(stage)


def kept_whole(model: AFNext, layout: RunLayout, device: torch.device) -> set[nn.Parameter]:
    """Frozen parameters that every rank keeps whole: they need no communication, and no more than their own memory."""
    frozen = {parameter for parameter in model.parameters() if not parameter.requires_grad}
    fits = True
    if layout.frozen == "auto" and device.type == "cuda":
        most = WHOLE_SHARE * torch.cuda.get_device_properties(device).total_memory
        fits = sum(parameter.nbytes for parameter in frozen) <= most
    return frozen if layout.frozen == "whole" or (layout.frozen == "auto" and fits) else set()


def gathered_together(model: AFNext, *, frozen_whole: bool) -> list[nn.Module | Sequence[nn.Module]]:
    """The decoder's layers and the encoder's groups of blocks, each of which is gathered and freed as a unit."""
    layers, encoder = list(model.blocks), list(model.encoder.layers)
    if adapters(model) and frozen_whole:
        layers = []  # the adapters of all layers together are small: they are gathered at once, with the model
    groups = [encoder[first : first + ENCODER_GROUP] for first in range(0, len(encoder), ENCODER_GROUP)]
    return [*layers, *groups]


def _shard(model: AFNext, mesh: DeviceMesh, compute: torch.dtype, whole: set[nn.Parameter]) -> None:
    blocks = gathered_together(model, frozen_whole=bool(whole))
    forwards = [name for name in FORWARDS if hasattr(model, name)]  # an encoder with its own decoder has fewer
    shard(model, mesh, blocks=blocks, compute_dtype=compute, whole=whole, forwards=forwards)


def _fill(
    weights: StoredWeights, device: torch.device, model: AFNext, other: AFNext | None, originals: dict[str, nn.Module]
) -> None:
    weights.fill(model, device)
    if other is not None:
        weights.fill(other, device)
    for name, module in originals.items():
        weights.fill(module, device, f"{name}.")


def _frozen(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    return copy.deepcopy(module).requires_grad_(False).to(dtype).eval()
