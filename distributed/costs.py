"""Costs of a training step of the full model on each rank: time of kernels and messages, bytes sent, memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache

import numpy as np
from afn_distributed.plan import make_plan, split_heads


def given(value: float, unit: str, source: str) -> float:
    """A field with an assumed value, its unit and its source."""
    return field(default=value, metadata={"unit": unit, "source": source})


@dataclass(frozen=True)
class Assumptions:
    """Rates, links and memory of one GPU; each field's ``metadata`` has its unit and source."""

    peak: float = given(989e12, "FLOP/s", "H100 SXM, dense bf16 (data sheet); for MFU")
    matmul: float = given(700e12, "FLOP/s", "assumed: 71 % of an H100's 989e12 (data sheet), as long runs get")
    attention: float = given(585e12, "FLOP/s", "FlashAttention-3, packed causal 32K, forward (published figure)")
    attention_backward: float = given(426e12, "FLOP/s", "FlashAttention-3, packed causal 32K, backward (same)")
    encoder_attention: float = given(440e12, "FLOP/s", "FlashAttention-3, head dim 64, full, middle of 425 to 460e12")
    hbm: float = given(2.7e12, "B/s", "assumed: 90 % of the 3.0e12 that copies reach of an H100's 3.35e12")
    kernel: float = given(5e-6, "s", "assumed: no kernel is shorter, launch included")
    nvlink: float = given(320e9, "B/s", "NCCL's all-to-all in a node; data sheet 450e9 each way")
    ib: float = given(46e9, "B/s", "NDR InfiniBand of one GPU: 46 to 48e9 expected (NVIDIA/nccl-tests issue 290)")
    across: float = given(
        250e9,
        "B/s",
        "assumed of gathers over nodes: 200e9 seen on 256 H100 (NVIDIA/nccl issue 1218), eight links have 368e9",
    )
    message: float = given(8.4e-6, "s", "to start a message: NCCL's table, ring, Simple (src/graph/tuning.cc)")
    nvlink_hop: float = given(3.4e-6, "s", "each hop of a ring in a node (same table)")
    ib_hop: float = given(14e-6, "s", "each hop between nodes (same table)")
    node: int = given(8, "GPUs", "HGX H100")
    memory: float = given(80e9, "B", "H100 SXM")
    reserve: float = given(5e9, "B", "assumed: CUDA, NCCL's buffers, holes between blocks, the loss's logits")


ASSUMED = Assumptions()


@dataclass(frozen=True)
class ModelSizes:
    """The full model: Qwen2.5-7B shape with a Whisper-large-v3 encoder."""

    width: int = 3584
    layers: int = 28
    heads: int = 28
    kv_heads: int = 4
    head_dim: int = 128
    ffn: int = 18944
    vocabulary: int = 151_672
    encoder: int = 636_968_960
    encoder_width: int = 1280
    encoder_layers: int = 32
    adaptor: int = 17_439_744
    parameters: int = 8_267_215_360

    @property
    def layer(self) -> int:
        """Weights of one decoder layer."""
        qkv = self.width * (self.heads + 2 * self.kv_heads) * self.head_dim
        return qkv + self.width * self.width + 3 * self.width * self.ffn

    @property
    def embedding(self) -> int:
        """Weights of the token embedding; the head has as many."""
        return self.width * self.vocabulary


RECOMPUTE = ("none", "selective", "full")
MODEL, PIECES = ModelSizes(), 4  # the encoder's 32 blocks count as four pieces of eight


@dataclass(frozen=True)
class Packed:
    """A packed batch of clips.

    Args:
        audio, text: [documents] audio and text tokens of each.
        supervised: share of the text tokens in the loss.
    """

    audio: np.ndarray
    text: np.ndarray
    supervised: float = 0.5

    @property
    def counted(self) -> float:
        """Share of all tokens in the loss."""
        return self.supervised * float(self.text.sum()) / self.total

    @property
    def lengths(self) -> np.ndarray:
        return self.audio + self.text

    @property
    def total(self) -> int:
        return int(self.lengths.sum())

    @property
    def cu_seqlens(self) -> np.ndarray:
        return np.concatenate(([0], np.cumsum(self.lengths)))

    @property
    def windows(self) -> np.ndarray:
        """[windows] encoder frames of each 30 s window, at 50 a second; two frames make an audio token."""
        full = [np.full(n // 750, 1500) for n in self.audio]
        return np.concatenate([*full, [2 * (n % 750) for n in self.audio if n % 750]]).astype(np.int64)


@dataclass(frozen=True)
class ParallelConfig:
    """How a training step is parallelised.

    Args:
        gpus: number of GPUs, in data-parallel groups of P = ulysses · ring.
        ulysses: ranks that exchange heads.
        ring: ranks that exchange keys and values.
        shard: GPUs that share one copy of the weights.
        recompute: activations that are recomputed: "none", "selective" or "full".
    """

    gpus: int
    ulysses: int = 1
    ring: int = 1
    shard: int = 8
    recompute: str = "selective"

    @property
    def sp_size(self) -> int:
        return self.ulysses * self.ring


@dataclass(frozen=True)
class RingLoad:
    """[ring] rows of each shard, and [r, s] query-key pairs and keys that ring rank r reads of ring rank s."""

    rows: np.ndarray
    pairs: np.ndarray
    keys: np.ndarray


@cache
def _ring(lengths: tuple[int, ...], ring: int) -> RingLoad:
    plan = make_plan(np.concatenate(([0], np.cumsum(lengths))), ring=ring)
    pairs, keys = np.zeros((2, ring, ring))
    for r in range(ring):
        for s in range(ring):
            exchange = plan.exchange(r, s)
            if exchange is not None:
                pairs[r, s], keys[r, s] = exchange.pairs, len(exchange.rows)
    return RingLoad(plan.rows, pairs, keys)


class Load:
    """What each rank of a sequence-parallel group computes, stores and sends; vectors are [ranks], times in seconds."""

    def __init__(self, config: ParallelConfig, batch: Packed, a: Assumptions):
        self.config, self.batch, self.a = config, batch, a
        u, ring = config.ulysses, _ring(tuple(batch.lengths.tolist()), config.ring)
        self.ranks, self.ring = config.sp_size, ring
        heads = split_heads(MODEL.heads, MODEL.kv_heads, u)
        self.q = np.tile([len(h.q) for h in heads], config.ring)
        self.kv = np.tile([len(h.kv) for h in heads], config.ring)
        self.spread = np.tile([len(h.kv) if h.even else len(h.q) for h in heads], config.ring)
        self.shard_rows = np.repeat(ring.rows, u)
        part = np.arange(u)
        self.rows = (ring.rows[:, None] * (part + 1) // u - ring.rows[:, None] * part // u).reshape(-1)
        # Of all groups the one over the most nodes, which is the slowest.
        places = (
            np.arange(self.ranks) + self.ranks * np.arange(min(config.gpus // self.ranks, a.node))[:, None]
        ) // a.node
        self.node = max(places, key=lambda place: len(np.unique(place)))
        self.frames, self.squares = self._windows()
        pairs = np.repeat(ring.pairs.sum(1), u) * self.q
        self.imbalance = tuple(float(x.max() / x.mean()) for x in (pairs, self.rows))

    @property
    def sent(self) -> float:
        """Bytes that a rank sends for attention in a step, mean over the ranks."""
        heads = [self.head_bytes(every).sum() for every in (True, False)]
        keys = sum(self.key_bytes(t).sum() for t in range(1, self.config.ring))
        passes = 3 if self.config.recompute == "full" else 2
        return MODEL.layers * (passes * (sum(heads) + keys) + self.gradient_bytes().sum()) / self.ranks

    @property
    def flops(self) -> float:
        """FLOPs of the model in a step of the group, recomputation not counted, causal attention half its square."""
        m, lengths = MODEL, self.batch.lengths.astype(float)
        linear = 2 * (m.layers * m.layer + m.embedding * self.batch.counted) * self.batch.total
        attention = 2 * m.layers * m.heads * m.head_dim * (lengths**2).sum()
        encoder = 2 * m.encoder * self.frames.sum() + 4 * m.encoder_layers * m.encoder_width * self.squares.sum()
        return 3 * (linear + attention + encoder + m.adaptor * self.frames.sum())

    def _windows(self) -> np.ndarray:
        """[2, ranks] frames that each rank encodes, and Σ frames² of its windows, assigned longest first."""
        found = np.zeros((2, self.ranks))
        for frames in -np.sort(-self.batch.windows):
            rank = found[0].argmin()
            found[:, rank] += frames, frames**2
        return found

    def kernels(self, rows: np.ndarray, each: Sequence[tuple[float, float]], times: float = 1) -> np.ndarray:
        """Seconds of one kernel for each (FLOPs, bytes) per row, by the slower of the two."""
        a = self.a
        return sum(np.maximum(times * rows * max(f / a.matmul, b / a.hbm), a.kernel) for f, b in each)

    def attend(self, t: int, backward: bool = False) -> np.ndarray:
        """Seconds of attention to the keys of ring rank − t; a ring reads and writes partial outputs."""
        a, r = self.a, np.arange(self.config.ring)
        pairs, keys = (np.repeat(x[r, r - t], self.config.ulysses) for x in (self.ring.pairs, self.ring.keys))
        flops = MODEL.head_dim * self.q * pairs * (10 if backward else 4)
        element = (20 if backward else 10) if self.config.ring > 1 else (14 if backward else 4)
        moved = MODEL.head_dim * (self.shard_rows * self.q * element + keys * self.spread * (12 if backward else 4))
        rate = a.attention_backward if backward else a.attention
        return np.where(pairs > 0, np.maximum(np.maximum(flops / rate, moved / a.hbm), a.kernel), 0.0)

    def messages(self, sent: np.ndarray, place: np.ndarray) -> np.ndarray:
        """[groups, ranks] seconds to send [groups, from, to] bytes at once, with the ranks on the nodes ``place``."""
        a, near, worst = self.a, place[:, :, None] == place[:, None, :], []
        for axis in (1, 2):
            worst += [np.where(near, sent, 0).sum(axis) / a.nvlink, np.where(near, 0, sent).sum(axis) / a.ib]
        taken = np.maximum.reduce(worst)
        return np.where(taken > 0, taken + a.message + np.where(near.all(2), a.nvlink_hop, a.ib_hop), 0.0)

    def head_bytes(self, every: bool) -> np.ndarray:
        """[ring, from, to] bytes of the all-to-all of q, k and v (``every``), or of the output alone."""
        u, size = self.config.ulysses, 2 * MODEL.head_dim
        heads, rows = (self.q + 2 * self.kv if every else self.q)[:u], self.rows.reshape(-1, u)
        sent = size * (rows[:, :, None] * heads if every else rows[:, None, :] * heads[:, None])
        return sent * (1 - np.eye(u, dtype=np.int64))

    def heads(self, every: bool) -> np.ndarray:
        """Seconds of that all-to-all."""
        u = self.config.ulysses
        return np.repeat(self.messages(self.head_bytes(every), self.node.reshape(-1, u)).max(1), u)

    def key_bytes(self, t: int) -> np.ndarray:
        """Bytes of keys and values that a rank sends to ring rank + t."""
        r = np.arange(self.config.ring)
        return np.repeat(self.ring.keys[(r + t) % len(r), r], self.config.ulysses) * self.kv * 4 * MODEL.head_dim

    def turn(self, t: int, back: bool = False) -> np.ndarray:
        """Seconds of those messages; with ``back``, of the float32 gradients of the keys from ring rank − t, to it."""
        a, to = self.a, (-t if back else t) * self.config.ulysses
        sent = 2 * np.roll(self.key_bytes(t), -to) if back else self.key_bytes(t)
        near = self.node == np.roll(self.node, -to)
        taken = sent / np.where(near, a.nvlink, a.ib) + a.message + np.where(near, a.nvlink_hop, a.ib_hop)
        return np.where(sent > 0, taken, 0.0)

    def gradient_bytes(self) -> np.ndarray:
        """[ulysses, from, to] bytes of float32 gradients of keys and values, to the ranks that sent them."""
        away = self.ring.keys * (1 - np.eye(self.config.ring))
        return away * (8 * MODEL.head_dim * self.kv[: self.config.ulysses, None, None])

    def packing(self) -> np.ndarray:
        """Seconds to copy the rows of keys and values that other ranks read into messages."""
        sent = sum((self.key_bytes(t) for t in range(1, self.config.ring)), np.zeros(self.ranks))
        return np.where(sent > 0, np.maximum(3 * sent / self.a.hbm, self.a.kernel), 0.0)

    def embeddings(self) -> np.ndarray:
        """Seconds of the all-to-all of audio embeddings to the ranks that have their tokens."""
        sent = np.tile(MODEL.width * self.frames[:, None] / self.ranks, (1, self.ranks)) * (1 - np.eye(self.ranks))
        return np.full(self.ranks, self.messages(sent[None], self.node[None]).max())

    def gather(self, size: float) -> float:
        """Seconds of an all-gather, or reduce-scatter, of ``size`` bytes over the ranks that share the weights."""
        n, a = self.config.shard, self.a
        nodes = -(-n // a.node)
        hops = (nodes - 1) * a.ib_hop + (n - nodes) * a.nvlink_hop
        return 0.0 if n == 1 else a.message + hops + size * (n - 1) / n / (a.nvlink if nodes == 1 else a.across)

    def reduce(self, size: float) -> float:
        """Seconds to sum ``size`` bytes of gradients: reduce-scatter in the shard, all-reduce over replicas."""
        copies, a = self.config.gpus // self.config.shard, self.a
        start = a.message + 2 * a.ib_hop * np.log2(copies) if copies > 1 else 0.0
        return self.gather(size) + start + 2 * (copies - 1) / copies * size / self.config.shard / a.ib

    def memory(self) -> dict[str, float]:
        """Bytes on the fullest GPU."""
        m, config, tokens = MODEL, self.config, self.rows.max()
        row, head = 2 * m.width, m.head_dim
        mlp, out = 6 * m.ffn * tokens, 2 * m.heads * head * tokens
        # On one rank attention and the next projection keep the same output; with more, attention keeps it in float32.
        own = 2 * (self.q + 2 * self.kv) + 4 * self.q * (config.sp_size > 1)
        attention = 4 * row * tokens + (own * head * self.shard_rows).max() + out
        kept = {"none": attention + mlp, "selective": attention, "full": 2 * row * tokens}[config.recompute]
        # Per frame an encoder block keeps two norms and their sums, q, k, v, out, and two of the MLP's width.
        block = self.frames.max() * 2 * m.encoder_width * (8 + 2 * 4)
        frames = self.frames.max() * 2 * m.encoder_width
        encoder = m.encoder_layers * (block if config.recompute == "none" else frames)
        # What a layer keeps while it is recomputed, and as much as its MLP keeps for the MLP's gradients.
        again = {"none": 0, "selective": mlp, "full": attention + mlp}[config.recompute]
        working = max(again + mlp, block)
        gathered = 2 * (2 * m.layer) + 2 * 2 * m.embedding
        # Gradients of a layer in bf16, of two layers in float32 while they are summed, and of the head.
        reduced = 2 * m.layer + 2 * 4 * m.layer + 2 * m.embedding
        root = 2 * 2 * m.embedding * (1 + 1 + 2)
        # Keys and values of all steps, sent and received, their float32 gradients, and the sum of this rank's own.
        there = sum((self.key_bytes(t) for t in range(1, config.ring)), np.zeros(self.ranks))
        back = self.gradient_bytes().sum(2).T.reshape(-1)
        flying = 3 * there + 1.5 * back + (8 * head * self.kv * self.shard_rows if config.ring > 1 else 0)
        found = {
            "weights": 4 * m.parameters / config.shard,
            "gradients": 4 * m.parameters / config.shard,
            "optimiser": 8 * m.parameters / config.shard,
            "activations": float(m.layers * kept + encoder),
            "working": float(max(working + gathered + reduced, root - m.layers * kept)),
            "keys in flight": float(np.max(flying)),
            "reserve": self.a.reserve,
        }
        return {**found, "total": sum(found.values())}
