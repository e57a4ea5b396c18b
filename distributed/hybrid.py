"""Hybrid sequence parallelism: attention with Ulysses inside a ring rank and ring attention across ring ranks."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh

from afn_distributed.comm import Comm, GroupComm, virtual_group
from afn_distributed.layout import RankLayout
from afn_distributed.plan import Plan
from afn_distributed.process import Process, destroy
from afn_distributed.ring import ring_attention
from afn_distributed.ulysses import gather_heads, scatter_heads


@dataclass(frozen=True)
class SequenceParallel:
    """A rank's end of a sequence-parallel group: P = ulysses · ring ranks that share a packed batch.

    Attributes:
        ulysses: group of the ranks that exchange heads for rows.
        ring: group of the ranks that exchange keys and values.
        all: group of all P ranks.
        groups: process groups that were made for it, those of other dimensions of its device meshes too.
    """

    ulysses: Comm
    ring: Comm
    all: Comm
    groups: tuple[dist.ProcessGroup, ...] = field(default=(), repr=False)

    @property
    def rank(self) -> int:
        """r · ulysses + u, this rank's number in the group."""
        return self.ring.rank * self.ulysses.size + self.ulysses.rank

    @property
    def size(self) -> int:
        """P, the number of ranks in the group."""
        return self.ring.size * self.ulysses.size

    @staticmethod
    def of(process: Process, ulysses: int, ring: int) -> SequenceParallel:
        """Cuts all ranks into groups of P: rank = d · P + r · ulysses + u, with d the data-parallel rank.

        Args:
            process: this rank, with a process group.
            ulysses: ranks that exchange heads.
            ring: ranks that exchange keys and values.

        Returns:
            This rank's end of its group.

        Raises:
            ValueError: a number of ranks that P does not divide.
        """
        layout, kind = RankLayout(process.world_size, ulysses, ring), process.device.type
        mesh = init_device_mesh(kind, (layout.dp_size, ring, ulysses), mesh_dim_names=("data", "ring", "ulysses"))
        flat = init_device_mesh(kind, (layout.dp_size, layout.sp_size), mesh_dim_names=("data", "sequence"))
        groups = (mesh.get_group("ulysses"), mesh.get_group("ring"), flat.get_group("sequence"))
        for group in groups:
            # NCCL creates a communicator at its first use, by all ranks; the first ring step may involve only some.
            dist.all_reduce(torch.zeros(1, device=process.device), group=group)
        made = (*mesh.get_all_groups(), *flat.get_all_groups())
        of_ulysses, of_ring, sequence = map(GroupComm, groups)
        return SequenceParallel(of_ulysses, of_ring, sequence, made)

    def close(self) -> None:
        """Destroys its process groups; all ranks do so together, and nothing may be on its way."""
        destroy(self.groups)

    @staticmethod
    def virtual(ulysses: int, ring: int, patience: float = 60.0) -> list[SequenceParallel]:
        """The ends of one group whose ranks are threads of this process, for tests and measurements on one device."""
        everyone = virtual_group(ulysses * ring, patience)
        rows = [virtual_group(ulysses, patience) for _ in range(ring)]
        columns = [virtual_group(ring, patience) for _ in range(ulysses)]
        return [
            SequenceParallel(rows[rank // ulysses][rank % ulysses], columns[rank % ulysses][rank // ulysses], comm)
            for rank, comm in enumerate(everyone)
        ]


def agree(comm: Comm, facts: dict[str, str]) -> None:
    """Checks that all ranks of a group have the same values.

    Args:
        comm: the group.
        facts: values by name; the names are those of the error message.

    Raises:
        ValueError: on every rank, naming the first value that differs from rank 0's and the ranks that have it.
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
    sp_group: SequenceParallel,
    *,
    positions: Tensor | None = None,
    inv_freq: Tensor | None = None,
    scale: float | None = None,
    transport: str = "auto",
    impl: str = "auto",
) -> Tensor:
    """Causal attention within each document of a packed batch whose tokens are spread over several ranks.

    out_i = Σ_j softmax_j(scale · q_i · k_j) v_j over the keys j ≤ i of the same document, on whichever rank they are.

    Args:
        q: [rows, Hq, D] queries of the tokens ``plan.tokens(sp_group.rank)``.
        k, v: [rows, Hk, D] keys and values of the same tokens.
        plan: of the batch.
        sp_group: this rank's sequence-parallel group.
        positions: [rows] float32; rotates q and k as ``afn_kernels.rotary`` does, in the copy before the all-to-all.
        inv_freq: [D / 2] float32, with ``positions``.
        scale: of the scores; default D^(−1/2).
        transport: of keys and values: "ring", "gather", or "auto" (see ``ring_attention``).
        impl: of ``afn_kernels.attention``.

    Returns:
        [rows, Hq, D] of the same tokens.

    Raises:
        ValueError: shapes that differ from the plan's; positions without frequencies; an unknown transport.

    Source: USP, Fang and Zhao, 2024, arXiv:2405.07719.
    """
    rows, heads = plan.part_rows(sp_group.rank), plan.heads
    wanted = (rows, heads[-1].q.stop, plan.head_dim), (rows, heads[-1].kv.stop, plan.head_dim)
    if q.shape != wanted[0] or k.shape != wanted[1] or v.shape != wanted[1]:
        found = ", ".join(str(tuple(x.shape)) for x in (q, k, v))
        raise ValueError(f"rank {sp_group.rank}: q, k, v are {found}, the plan says {wanted[0]}, {wanted[1]}")
    if (positions is None) != (inv_freq is None):
        raise ValueError(f"rank {sp_group.rank}: positions and inv_freq go together, one of them is missing")
    angles = {"positions": positions, "inv_freq": inv_freq}
    q, k, v = scatter_heads(q, k, v, plan, sp_group.ulysses, sp_group.rank, **angles)
    own = heads[sp_group.ulysses.rank]
    out = ring_attention(q, k, v, plan, sp_group.ring, own, scale=scale, transport=transport, impl=impl)
    return gather_heads(out, plan, sp_group.ulysses, sp_group.rank)
