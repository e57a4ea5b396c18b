"""Attention over the ranks that share a batch: Ulysses inside a ring rank, the ring across them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh

from afn_distributed.comm import Comm, GroupComm, virtual_group
from afn_distributed.layout import Layout
from afn_distributed.plan import Plan
from afn_distributed.process import Process
from afn_distributed.ring import ring_attention
from afn_distributed.ulysses import gather_heads, scatter_heads


@dataclass(frozen=True)
class SequenceParallel:
    """A rank among the P = ulysses · ring ranks that share a batch.

    Attributes:
        ulysses, ring, all: the groups of ranks that exchange heads, that pass keys, and of all P together.
        rank: r · ulysses + u.
    """

    ulysses: Comm
    ring: Comm
    all: Comm

    @property
    def rank(self) -> int:
        return self.ring.rank * self.ulysses.size + self.ulysses.rank

    @property
    def size(self) -> int:
        return self.ring.size * self.ulysses.size

    @staticmethod
    def of(process: Process, ulysses: int, ring: int) -> SequenceParallel:
        """This rank's groups among all ranks: rank = d · P + r · ulysses + u; d counts the groups, data parallel.

        Raises:
            ValueError: ranks that do not divide into groups of ulysses · ring.
        """
        layout = Layout(process.world, ulysses, ring)
        kind, groups = process.device.type, process.world // layout.sequence
        mesh = init_device_mesh(kind, (groups, ring, ulysses), mesh_dim_names=("data", "ring", "ulysses"))
        flat = init_device_mesh(kind, (groups, layout.sequence), mesh_dim_names=("data", "sequence"))
        comms = (mesh.get_group("ulysses"), mesh.get_group("ring"), flat.get_group("sequence"))
        for group in comms:
            # Makes NCCL's communicators, in which all must take part; a ring's first step may be of some ranks only.
            dist.all_reduce(torch.zeros(1, device=process.device), group=group)
        return SequenceParallel(*map(GroupComm, comms))

    @staticmethod
    def virtual(ulysses: int, ring: int, patience: float = 60.0) -> list[SequenceParallel]:
        """The ranks as threads of one process, for tests and for measuring on one device."""
        everyone = virtual_group(ulysses * ring, patience)
        rows = [virtual_group(ulysses, patience) for _ in range(ring)]
        columns = [virtual_group(ring, patience) for _ in range(ulysses)]
        return [
            SequenceParallel(rows[rank // ulysses][rank % ulysses], columns[rank % ulysses][rank // ulysses], comm)
            for rank, comm in enumerate(everyone)
        ]


def agree(comm: Comm, facts: dict[str, str]) -> None:
    """Whether all ranks of a group have the same facts.

    Raises:
        ValueError: on every rank, which ones differ from rank 0, and in what.
    """
    everyone = comm.gather_objects(facts)
    for what, first in everyone[0].items():
        others = [str(rank) for rank, theirs in enumerate(everyone) if theirs.get(what) != first]
        if others:
            raise ValueError(f"{what} of rank {', '.join(others)} of the group differ from those of rank 0")


def sp_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    plan: Plan,
    ranks: SequenceParallel,
    *,
    positions: Tensor | None = None,
    inv_freq: Tensor | None = None,
    scale: float | None = None,
    transport: str = "auto",
    impl: str = "auto",
) -> Tensor:
    """Causal attention within each document of a batch that several ranks share.

    Args:
        q: [rows, Hq, D] of the tokens ``plan.tokens(rank)``.
        k, v: [rows, Hk, D] of the same tokens.
        plan: of the batch.
        ranks: this rank among them.
        positions: [rows] float32, to rotate q and k by as ``afn_kernels.rotary`` does, on their way to the other ranks.
        inv_freq: [D / 2] float32.
        scale: of the scores; default D^(−1/2).
        transport: how keys travel: "ring", "gather", or the one of both that suits the batch.
        impl: of ``afn_kernels.attention``.

    Returns:
        [rows, Hq, D] for the same tokens.

    Raises:
        ValueError: tensors that are not what the plan says; positions without frequencies.
    """
    rows, heads = plan.part_rows(ranks.rank), plan.heads
    wanted = (rows, heads[-1].q.stop, plan.head_dim), (rows, heads[-1].kv.stop, plan.head_dim)
    if q.shape != wanted[0] or k.shape != wanted[1] or v.shape != wanted[1]:
        found = ", ".join(str(tuple(x.shape)) for x in (q, k, v))
        raise ValueError(f"rank {ranks.rank}: q, k, v are {found}, the plan says {wanted[0]}, {wanted[1]}")
    if (positions is None) != (inv_freq is None):
        raise ValueError(f"rank {ranks.rank}: positions and inv_freq go together, one of them is missing")
    angles = {"positions": positions, "inv_freq": inv_freq}
    q, k, v = scatter_heads(q, k, v, plan, ranks.ulysses, ranks.rank, **angles)
    own = heads[ranks.ulysses.rank]
    out = ring_attention(q, k, v, plan, ranks.ring, own, scale=scale, transport=transport, impl=impl)
    return gather_heads(out, plan, ranks.ulysses, ranks.rank)
