"""A rank's part of a packed batch that several ranks share: its tokens, its audio windows, and how they attend."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from afn_distributed.dispatch import DispatchPlan, assign_balanced, dispatch
from afn_distributed.hybrid import SequenceParallel, agree, sp_attention
from afn_distributed.plan import Exchange, Plan, make_plan
from afn_model.audio.frames import conv_frames
from afn_model.config import ModelConfig

if TYPE_CHECKING:
    from afn_model.prompt.batch import Batch


@dataclass(frozen=True)
class SequenceShard:
    """What a rank computes of a batch that all ranks of its group have.

    Args:
        plan: who holds which tokens and heads.
        sp_group: this rank among those that share the batch.
        tokens: [rows] int64, its tokens of the batch, ascending.
        windows: [own] int64, the audio windows that it encodes; each window is encoded by one rank. A rank without any
            encodes silence: ranks gather weights layer by layer and sum gradients, so all of them must use the encoder
            if one does.
        encoder: [W] int64, the rank that encodes each window.
        dispatch_plan: of audio embeddings, from the ranks that encode them to the ranks that hold their tokens.
    """

    plan: Plan
    sp_group: SequenceParallel
    tokens: Tensor
    windows: Tensor
    encoder: Tensor
    dispatch_plan: DispatchPlan

    @staticmethod
    def of(batch: Batch, sp_group: SequenceParallel, config: ModelConfig, scheme: str = "balanced") -> SequenceShard:
        """This rank's shard.

        Raises:
            ValueError: the ranks' batches or plans differ.
        """
        text = config.text
        heads = {"heads": text.heads, "kv_heads": text.kv_heads, "head_dim": text.head_dim}
        sizes = {"ulysses": sp_group.ulysses.size, "ring": sp_group.ring.size}
        plan = make_plan(batch.cu_seqlens, **sizes, **heads, scheme=scheme)
        frames = conv_frames(batch.mel_lengths).tolist() if batch.pcm is not None else []
        encoder = torch.from_numpy(assign_balanced([cost(count) for count in frames], sp_group.size))
        places = (batch.input_ids == config.audio_token_id).nonzero().squeeze(1).cpu()
        counts = batch.window_tokens
        if int(counts.sum()) != len(places):
            raise ValueError(f"{len(places)} audio placeholders in the batch for {int(counts.sum())} audio embeddings")
        src_rank = torch.repeat_interleave(encoder, counts).numpy()
        content = hashlib.sha256(batch.input_ids.cpu().numpy().tobytes()).hexdigest()
        agree(sp_group.all, {"the plan": plan.digest(), "the tokens": content})
        rank, dst_rank = sp_group.rank, plan.rank_of_token()[places.numpy()]
        dispatch_plan = DispatchPlan.of(src_rank, dst_rank, rank, sp_group.size)
        windows = (encoder == rank).nonzero().squeeze(1)
        return SequenceShard(plan, sp_group, plan.tokens(rank), windows, encoder, dispatch_plan)

    def attention(self, q: Tensor, k: Tensor, v: Tensor, positions: Tensor, inv_freq: Tensor) -> Tensor:
        """Rotary and attention of this rank's tokens over their documents: q [rows, Hq, D], k and v [rows, Hk, D]."""
        return sp_attention(q, k, v, self.plan, self.sp_group, positions=positions, inv_freq=inv_freq)

    def own_samples(self, batch: Batch, source: int) -> Tensor:
        """[Σ samples] of this rank's windows, from the rank that has those of all: one all-to-all on the host."""
        assert batch.pcm is not None, "there are windows"
        counts, comm = batch.samples.tolist(), self.sp_group.all
        of_rank = [(self.encoder == rank).nonzero().squeeze(1).tolist() for rank in range(comm.size)]
        sizes = [sum(counts[w] for w in windows) for windows in of_rank]
        wanted = [sizes[comm.rank] if rank == source else 0 for rank in range(comm.size)]
        if comm.rank != source:
            return comm.all_to_all(batch.pcm, [0] * comm.size, wanted)
        rows = batch.pcm.split(counts)
        return comm.all_to_all(torch.cat([rows[w] for windows in of_rank for w in windows]), sizes, wanted)

    def exchanges(self, device: torch.device | str = "cpu") -> dict[tuple[int, int], Exchange]:
        """What attention exchanges between this rank's ring and others, by the ranks of queries and keys."""
        own, others = self.sp_group.ring.rank, range(self.plan.ring)
        pairs = {(own, other) for other in others} | {(other, own) for other in others}
        found = {pair: self.plan.exchange(*pair, device) for pair in sorted(pairs)}
        return {pair: exchange for pair, exchange in found.items() if exchange is not None}

    def keep(self, exchanges: dict[tuple[int, int], Exchange]) -> None:
        """Has the plan use these copies on another device, instead of making its own, which waits for it."""
        for (ring_rank, source), exchange in exchanges.items():
            self.plan.keep(ring_rank, source, exchange)

    def routed(self, audio: Tensor) -> Tensor:
        """Embeddings of this rank's windows [made, width] to those of its tokens [audio tokens held, width]."""
        return dispatch(audio if len(self.windows) else audio[:0], self.dispatch_plan, self.sp_group.all)


def cost(frames: int) -> float:
    """What encoding a window costs: linear layers and, at 1,500 frames, about a fifth of that for attention."""
    return frames * (1 + 0.2 * frames / 1500)
