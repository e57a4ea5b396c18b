"""Weights sharded over ranks (FSDP2): float32 master weights, computation in lower precision, summed gradients."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import wraps
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor

from afn_distributed.process import MESHES, Process


def mesh_of(process: Process, shard_size: int | None = None) -> DeviceMesh:
    """The device mesh of sharded weights: (shard), or (replicate, shard) if ``shard_size`` is less than all ranks.

    There is one of each shape while the ranks are together: DTensor keeps results with their meshes, and gives an equal
    mesh the groups of the first. The next stage has the use of its communicators, too.

    Args:
        process: this rank, with a process group.
        shard_size: ranks that share one copy of the weights; all if None.

    Returns:
        The mesh.

    Raises:
        ValueError: no process group; a shard size that does not divide the ranks.
    """
    if not process.group:
        raise ValueError("sharded weights need a process group: start(group=True)")
    size = shard_size or process.world_size
    if process.world_size % size:
        raise ValueError(f"{process.world_size} ranks cannot be cut into groups of {size} that share the weights")
    kind, world = process.device.type, dist.group.WORLD
    for key in [key for key in MESHES if key[0] is not world]:
        del MESHES[key]
    if (world, kind, size) not in MESHES:
        shape, names = (process.world_size // size, size), ("replicate", "shard")
        first = 0 if size < process.world_size else 1
        MESHES[world, kind, size] = init_device_mesh(kind, shape[first:], mesh_dim_names=names[first:])
    return MESHES[world, kind, size]


def shard(
    model: nn.Module,
    mesh: DeviceMesh | Process,
    *,
    blocks: Iterable[nn.Module | Sequence[nn.Module]],
    compute_dtype: torch.dtype,
    reduce_dtype: torch.dtype = torch.float32,
    shard_size: int | None = None,
    reshard: bool = True,
    whole: Collection[nn.Parameter] = (),
    forwards: Sequence[str] = (),
) -> nn.Module:
    """Shards a model's weights over ranks, in place; a gradient is the SUM of the ranks' gradients, not their mean.

    Trained weights are stored in float32 and gathered in ``compute_dtype``. Frozen weights are stored in
    ``compute_dtype`` and take no part in the reduction. A single rank wraps only modules that train.

    A gradient is summed and cut in every backward, also where several are accumulated: FSDP2 would keep one that waits
    for the last backward whole, in ``reduce_dtype``, on every rank.

    Args:
        model: the model, on its device; trained weights have ``requires_grad``.
        mesh: (shard) or (replicate, shard); created from a process if one is given.
        blocks: modules, or lists of modules that run one after another, whose weights are gathered and freed as a
            unit; all other weights are gathered with the model.
        compute_dtype: of the forward and the backward.
        reduce_dtype: of the gradients' sum.
        shard_size: ranks that share one copy of the weights; all if None.
        reshard: free a block's weights after its forward and gather them again for its backward.
        whole: frozen parameters that every rank keeps whole, without communication.
        forwards: names of the model's methods besides ``forward`` that need gathered weights.

    Returns:
        The model.

    Raises:
        ValueError: no process group; a shard size that does not divide the ranks; a method that the model lacks.
    """
    missing = [name for name in forwards if not hasattr(model, name)]
    if missing:
        raise ValueError(f"{type(model).__name__} has no method {', '.join(missing)} to gather weights for")
    mesh = mesh_of(mesh, shard_size) if isinstance(mesh, Process) else mesh
    for parameter in model.parameters():
        parameter.data = parameter.data.to(torch.float32 if parameter.requires_grad else compute_dtype)
    alone = mesh.size() == 1
    # Positions and PCM samples must stay float32; activations take the dtype of the weights anyway.
    policy = MixedPrecisionPolicy(compute_dtype, reduce_dtype, cast_forward_inputs=False)
    kept = {p for p in model.parameters() if not p.requires_grad} if alone else set(whole)
    for block in blocks:
        group = [block] if isinstance(block, nn.Module) else list(block)
        if any(p not in kept for module in group for p in module.parameters()):
            unit = group if len(group) > 1 else group[0]
            fully_shard(unit, mesh=mesh, mp_policy=policy, reshard_after_forward=reshard, ignored_params=kept)
    fully_shard(model, mesh=mesh, mp_policy=policy, ignored_params=kept)
    assert isinstance(model, FSDPModule)  # fully_shard changes the class of what it is given
    for module in _parts(model):
        # Losses are already divided by the token count of all ranks.
        module.set_gradient_divide_factor(1.0)
        module.set_force_sum_reduction_for_comms(True)
    inside = [False]
    for name in forwards:
        plain = getattr(model, name)
        register_fsdp_forward_method(model, name)
        setattr(model, name, _outermost(model, plain, getattr(model, name), inside))
    return model


def _outermost(model: FSDPModule, plain: Callable, hooked: Callable, inside: list[bool]) -> Callable:
    """A method that gathers the model's own weights, unless another such method, which has done so, calls it."""

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
                # FSDP reshards in the backward, which will not happen.
                model.reshard()

    method.sharded = True  # pyright: ignore[reportAttributeAccessIssue]
    return method


def _parts(model: nn.Module) -> list[FSDPModule]:
    return [module for module in model.modules() if isinstance(module, FSDPModule)]


@contextmanager
def gathered(model: nn.Module) -> Iterator[nn.Module]:
    """A context in which every rank has all weights, in the compute dtype: for generation.

    Inside, the model communicates nothing, so ranks may make different calls, without gradients. A model that is not
    sharded is left alone.
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


def set_all_reduce(model: nn.Module, wanted: bool) -> None:
    """Whether the next backward also sums gradients over copies of the weights; False for all but the last of a step.

    Between the copies of a (replicate, shard) mesh there is then one sum in a step. Within a copy every backward sums.
    """
    for module in _parts(model):
        module.set_requires_all_reduce(wanted, recurse=False)


def sum_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Σ over the ranks of the gradients of parameters that every rank holds whole, in place.

    A rank without a gradient adds nothing; where no rank has one there is none afterwards either.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return
    every = list(parameters)
    flags = torch.tensor([float(parameter.grad is not None) for parameter in every])
    dist.all_reduce(flags)
    wanted = [parameter for parameter, flag in zip(every, flags.tolist(), strict=True) if flag]
    if not wanted:
        return
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in wanted]
    whole = torch.cat([gradient.reshape(-1) for gradient in gradients])
    dist.all_reduce(whole)
    sizes = [gradient.numel() for gradient in gradients]
    for parameter, part in zip(wanted, whole.split(sizes), strict=True):
        parameter.grad = part.view_as(parameter)


def clip_grad_norm(parameters: Iterable[nn.Parameter], largest: float) -> Tensor:
    """Scales gradients by min(1, largest / norm), with the norm over all ranks; returns that norm, scalar."""
    norm = nn.utils.clip_grad_norm_(list(parameters), largest)
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


def full_state_dict(model: nn.Module, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """The full weights on the CPU of rank 0; all ranks must call it.

    Args:
        model: sharded or not.
        dtype: of the result; that of the weights if None.

    Returns:
        Weights by name on rank 0, an empty dictionary on other ranks.
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
    """Writes the full model from rank 0 with its ``save_pretrained``, adapters merged; all ranks must call it.

    A module with a method ``fold(state, name)`` merges its adapter into its weights in ``state``. Other ranks do not
    wait until the folder is written.

    Args:
        model: sharded or not; ``type(model)(model.config)`` makes one like it.
        folder: to write.
        dtype: of the written weights; that of the model's weights if None.
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
