"""Weights cut over the ranks (FSDP2): float32 masters, computation in a lower precision, gradients summed."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import wraps
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor

from afn_distributed.process import Process

FORWARDS = ("loss", "logits", "answer_logprobs", "hidden", "embed_batch", "encode", "encode_batch", "project")


def mesh_of(process: Process, shard_size: int | None = None) -> DeviceMesh:
    """The ranks as one row that shares the weights, or as rows of ``shard_size`` that each hold a whole copy.

    Raises:
        ValueError: no process group; a shard size that does not divide the ranks.
    """
    if not process.group:
        raise ValueError("sharded weights need a process group: start(group=True)")
    size = shard_size or process.world
    if process.world % size:
        raise ValueError(f"{process.world} ranks cannot be cut into groups of {size} that share the weights")
    kind = process.device.type
    if size == process.world:
        return init_device_mesh(kind, (size,), mesh_dim_names=("shard",))
    return init_device_mesh(kind, (process.world // size, size), mesh_dim_names=("replicate", "shard"))


def shard(
    model: nn.Module,
    mesh: DeviceMesh | Process,
    *,
    blocks: Iterable[nn.Module],
    compute_dtype: torch.dtype,
    reduce_dtype: torch.dtype = torch.float32,
    shard_size: int | None = None,
    reshard: bool = True,
    forwards: Sequence[str] = FORWARDS,
) -> nn.Module:
    """Cuts a model's weights over the ranks, in place; gradients are the SUM of the ranks' gradients.

    Trained weights are kept in float32 and gathered in ``compute_dtype``; frozen ones are stored in it, and have
    neither gradients nor any part in the reduction. A single rank wraps only what it trains.

    Args:
        model: the model, on its device; what trains has ``requires_grad``.
        mesh: the ranks, one-dimensional or (replicate, shard); made from a process if one is given.
        blocks: modules that are gathered and freed one by one; what lies outside of them belongs to the model.
        compute_dtype: of the forward and the backward.
        reduce_dtype: of the gradients' sum.
        shard_size: ranks that share one copy of the weights, if not all.
        reshard: free a block's weights after its forward and gather them again for its backward.
        forwards: methods besides ``forward`` that compute with the weights; those that the model lacks are passed over.

    Returns:
        The model.

    Raises:
        ValueError: no process group; a shard size that does not divide the ranks.
    """
    mesh = mesh_of(mesh, shard_size) if isinstance(mesh, Process) else mesh
    for parameter in model.parameters():
        parameter.data = parameter.data.to(torch.float32 if parameter.requires_grad else compute_dtype)
    alone = mesh.size() == 1
    # Positions and samples come as float32 in dataclasses and must stay so; activations follow the weights anyway.
    policy = MixedPrecisionPolicy(compute_dtype, reduce_dtype, cast_forward_inputs=False)
    frozen = {p for p in model.parameters() if not p.requires_grad} if alone else set()
    for block in blocks:
        if not alone or any(p.requires_grad for p in block.parameters()):
            fully_shard(block, mesh=mesh, mp_policy=policy, reshard_after_forward=reshard, ignored_params=frozen)
    fully_shard(model, mesh=mesh, mp_policy=policy, ignored_params=frozen)
    for module in _parts(model):
        # Losses come already divided by what all ranks have together.
        module.set_gradient_divide_factor(1.0)
        module.set_force_sum_reduction_for_comms(True)
    inside = [False]
    for name in forwards:
        if hasattr(model, name):
            plain = getattr(model, name)
            register_fsdp_forward_method(model, name)
            setattr(model, name, _outermost(cast(FSDPModule, model), plain, getattr(model, name), inside))
    return model


def _outermost(model: FSDPModule, plain: Callable, hooked: Callable, inside: list[bool]) -> Callable:
    """A method that gathers the model's own weights, unless it is called from another one that has done so."""

    @wraps(plain)
    def method(*args: Any, **kwargs: Any) -> Any:
        if inside[0]:
            return plain(*args, **kwargs)
        inside[0] = True
        try:
            return hooked(*args, **kwargs)
        finally:
            inside[0] = False
            if not torch.is_grad_enabled():
                # No backward will come to do it.
                model.reshard()

    method.sharded = True  # pyright: ignore[reportAttributeAccessIssue]
    return method


def _parts(model: nn.Module) -> list[FSDPModule]:
    return [module for module in model.modules() if isinstance(module, FSDPModule)]


@contextmanager
def gathered(model: nn.Module) -> Iterator[nn.Module]:
    """All weights whole on every rank, in the precision of the computation: for generation.

    Inside, ranks may do different things: nothing communicates. No gradients. A model that is not sharded stays as it
    is.
    """
    parts = _parts(model)
    with ExitStack() as stack:
        for module in parts:
            module.unshard()
            stack.callback(module.reshard)
            for hooks in ("_forward_pre_hooks", "_forward_hooks"):
                stack.callback(setattr, module, hooks, getattr(module, hooks))
                setattr(module, hooks, OrderedDict())
        for name in [name for name, value in vars(model).items() if getattr(value, "sharded", False)]:
            stack.callback(setattr, model, name, vars(model)[name])
            delattr(model, name)
        yield model


def set_sync(model: nn.Module, sync: bool) -> None:
    """Whether the next backward sums gradients over the ranks; off for all but the last one that is accumulated."""
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(sync)


def clip_grad_norm(parameters: Iterable[nn.Parameter], largest: float) -> Tensor:
    """Scales the gradients so that their norm over all ranks is at most ``largest``; returns what it was, scalar."""
    norm = nn.utils.clip_grad_norm_(list(parameters), largest)
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


def full_state_dict(model: nn.Module, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """Whole weights on the CPU of rank 0, and nothing on the others. All ranks take part.

    Args:
        model: sharded or not.
        dtype: of the result; that of the weights if None.
    """
    for module in _parts(model):
        module.reshard()
    first = not dist.is_initialized() or dist.get_rank() == 0
    whole = {}
    for name, tensor in model.state_dict().items():
        tensor = tensor.detach()
        tensor = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        if first:
            whole[name] = tensor.to("cpu", dtype, copy=True)
    return whole


def export_model(model: nn.Module, folder: str | Path, dtype: torch.dtype | None = None) -> None:
    """Writes the whole model from rank 0, by its ``save_pretrained``, with its adapters added to the weights.

    Modules that have ``fold(state, name)`` take their own adapters out of the weights and into the layer.
    All ranks take part; the others may go on before the folder is written.
    """
    state = full_state_dict(model)
    if not state:
        return
    for name, module in model.named_modules():
        fold: Any = getattr(module, "fold", None)
        if fold is not None:
            fold(state, name)
    with torch.device("meta"):
        whole: Any = type(model)(model.config)
    whole.load_state_dict({name: tensor.to(dtype or tensor.dtype) for name, tensor in state.items()}, assign=True)
    whole.save_pretrained(folder)
