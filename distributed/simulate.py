"""An event simulation of one training step of the full model; nothing is measured.

    python -m afn_distributed.simulate [--gpus 128] [--tokens 8192 24576 131072] [--out PREFIX]

It simulates the P = ulysses · ring ranks of one data-parallel group, each with a stream of kernels and a stream of
messages, and adds the cost of gathering weights and summing gradients over all GPUs. It assumes that all groups take
the same time.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
from afn_distributed.costs import ASSUMED, MODEL, PIECES, RECOMPUTE, Assumptions, Load, Packed, ParallelConfig
from afn_distributed.plan import Plan
from afn_distributed.timeline import BackgroundCollective, Timeline, TimelineEvent

ULYSSES, RINGS = (1, 2, 4, 7, 8, 14, 28), (1, 2, 4, 8, 16, 32)
SIZES = (8, 16, 32, 64, 128, 256, 512, 1024)
# Other values that assumptions may have in truth; the last table has the best layout for each.
DOUBTS = (
    {"attention": 400e12, "attention_backward": 300e12},
    {"matmul": 550e12},
    {"nvlink": 200e9},
    {"ib": 23e9, "across": 125e9},
    {"memory": 72e9},
)
FEWEST = 1024  # tokens of a rank; with fewer, kernels take about as long as their launches


def mix(clips: int, context: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """[clips] audio and text tokens of clips that fit the context, drawn from the mix that the benchmarks use.

    55 % of clips are 1 to 30 s, 25 % 10 s, 15 % 30 s to 5 min and 5 % 5 to 30 min, the last two log-uniform; 25 tokens
    a second and log-normal text.
    """
    random, audio, text = np.random.default_rng(seed), np.empty(0, np.int64), np.empty(0, np.int64)
    while len(audio) < clips:
        kind = random.choice(4, clips, p=[0.55, 0.25, 0.15, 0.05])
        middle, long = (np.exp(random.uniform(*np.log(ends), clips)) for ends in ((30, 300), (300, 1800)))
        seconds = np.choose(kind, [random.uniform(1, 30, clips), np.full(clips, 10.0), middle, long])
        words = np.minimum(20 + np.exp(random.normal(4.6, 0.8, clips)), 2000).astype(np.int64)
        sound = np.ceil(25 * seconds).astype(np.int64)
        fits = sound + words <= context
        audio, text = np.concatenate((audio, sound[fits])), np.concatenate((text, words[fits]))
    return audio[:clips], text[:clips]


def packed(context: int, seed: int = 0, bins: int = 15) -> Packed:
    """Packs several batches of the mix and returns the one of median attention cost Σ length²."""
    audio, text = mix(max(4000, bins * context // 400), context, seed)
    found, clip = [], 0
    for _ in range(bins):
        room, chosen, refused = context, [], 0
        while refused < 100:
            if audio[clip] + text[clip] <= room:
                chosen.append(clip)
                room -= audio[clip] + text[clip]
            else:
                refused += 1
            clip = (clip + 1) % len(audio)
        found.append(Packed(audio[chosen], text[chosen]))
    return sorted(found, key=lambda batch: (batch.lengths**2).sum())[bins // 2]


RECORDING = Packed(np.array([45_000]), np.array([500]))  # half an hour of audio, and text about it


def recordings(context: int) -> Packed:
    """A packed batch of recordings of half an hour; the last is cut to fill the context."""
    whole, rest = divmod(context, RECORDING.total)
    audio = np.repeat(RECORDING.audio, whole + 1)
    audio[-1] = max(rest - RECORDING.text[0], 0)
    text = np.repeat(RECORDING.text, whole + 1)
    text[-1] = min(rest, text[-1])
    return Packed(audio, text)


def attention_bytes(plan: Plan, rank: int, element_size: int) -> dict[str, dict[str, int]]:
    """Bytes that a rank sends to other ranks in one call of ``sp_attention``.

    Args:
        plan: of the batch.
        rank: r · ulysses + u.
        element_size: bytes of an element of q, k and v.

    Returns:
        {"ulysses" or "ring": {"forward" or "backward": bytes}}.
    """
    r, u = divmod(rank, plan.ulysses)
    own, dim = plan.heads[u], plan.head_dim * element_size
    rows = [plan.part_rows(r * plan.ulysses + peer) for peer in range(plan.ulysses)]
    found = {"ulysses": {"forward": 0, "backward": 0}, "ring": {"forward": 0, "backward": 0}}
    for peer, theirs in enumerate(plan.heads):
        if peer != u:
            to_them = rows[u] * len(theirs.q), rows[u] * (len(theirs.q) + 2 * len(theirs.kv))
            of_mine = rows[peer] * len(own.q), rows[peer] * (len(own.q) + 2 * len(own.kv))
            found["ulysses"]["forward"] += dim * (to_them[1] + of_mine[0])
            found["ulysses"]["backward"] += dim * (to_them[0] + of_mine[1])
    each = 2 * len(own.kv) * plan.head_dim
    for peer in range(plan.ring):
        reader, source = plan.exchange(peer, r), plan.exchange(r, peer)
        if peer != r and reader is not None:
            for name in ("forward", "backward"):
                found["ring"][name] += each * element_size * len(reader.rows)
        if peer != r and source is not None:
            # Gradients of keys are sent in float32, or in float64 for float64 inputs.
            found["ring"]["backward"] += each * max(4, element_size) * len(source.rows)
    return found


def simulate(
    config: ParallelConfig, batch: Packed, assumptions: Assumptions = ASSUMED, layers: int = MODEL.layers
) -> tuple[Timeline, Load]:
    """Simulates one step: encoder, embeddings to their tokens, language model, loss, their backward, optimiser.

    Args:
        config: how the step is parallelised.
        batch: of each group.
        assumptions: about GPUs and links.
        layers: of the language model.

    Returns:
        The timeline, and the load of each rank.
    """
    load = Load(config, batch, assumptions)
    line = Timeline(load.ranks, load.node if config.shard <= assumptions.node else np.zeros_like(load.node))
    _StepEvents(load, line, layers).all()
    return line, load


class _StepEvents:
    """The events of a step, in the order in which a rank issues them."""

    def __init__(self, load: Load, line: Timeline, layers: int):
        self.load, self.line, self.layers, config = load, line, layers, load.config
        m, rows, a = MODEL, load.rows, load.a
        self.shape, self.config, self.nothing = (config.ring, config.ulysses), config, np.zeros(load.ranks)
        qkv, q = (m.heads + 2 * m.kv_heads) * m.head_dim, m.heads * m.head_dim
        norm = (0, 8 * m.width)
        # Rotary counts as a kernel, though with Ulysses it is part of the copy before the all-to-all.
        project = [norm, (2 * m.width * qkv, 0), (0, 4 * (qkv - m.kv_heads * m.head_dim))]
        opening, closing = [(4 * m.width * m.ffn, 0), (0, 6 * m.ffn)], [(2 * m.width * q, 0), norm]
        mlp = [*opening, (2 * m.width * m.ffn, 0)]
        # One copy before or after each all-to-all; in the backward one more joins the gradients of q, k and v.
        self.copies = [load.kernels(rows, [(0, 4 * n)]) if config.ulysses > 1 else self.nothing for n in (qkv, q)]
        self.project, self.closing = load.kernels(rows, project), load.kernels(rows, closing)
        self.mlp, self.opening = load.kernels(rows, mlp), load.kernels(rows, opening)
        self.back = load.kernels(rows, project, 2), load.kernels(rows, [*closing, *mlp], 2)
        self.turns = [t for t in range(1, config.ring) if load.turn(t).any()]
        self.sent = {t: load.turn(t) for t in self.turns}
        self.attend = [{t: load.attend(t, backward) for t in (0, *self.turns)} for backward in (False, True)]
        self.heads = [load.heads(every) if config.ulysses > 1 else self.nothing for every in (True, False)]
        self.returned, self.packing = {t: load.turn(t, back=True) for t in self.turns}, load.packing()
        piece = m.encoder_layers // PIECES
        linear, block = 2 * m.encoder / m.encoder_layers, [(0, 2 * m.encoder_width * n) for n in (4, 6, 4, 8)]
        self.encode = piece * (load.kernels(load.frames, [(linear, 0), *block])
            + 4 * m.encoder_width * load.squares / a.encoder_attention)  # fmt: skip
        self.adapt = load.kernels(load.frames / 2, [(2 * m.adaptor, 0)])
        self.loss = load.kernels(rows * load.batch.counted, [(2 * m.embedding, 0)], 3)
        self.gather = load.gather(2 * m.layer)
        self.reduce = load.reduce(4 * m.layer)

    def all(self) -> None:
        m, load, line = MODEL, self.load, self.line
        outside = 2 * m.embedding + m.adaptor
        root = line.background("gather root", load.gather(2 * outside))
        ahead = self.gather_piece(0)
        last = line.run("start", self.nothing, line.wait(root))
        for i in range(PIECES):
            here = line.wait(ahead)
            ahead = self.gather_piece(i + 1, last) if i + 1 < PIECES else self.gather_layer(0, last)
            last = line.run(f"encode {i}", self.encode, here)
        last = line.run("adaptor", self.adapt)
        last = self.group("embeddings", load.embeddings(), (1, load.ranks), 1, last)
        for i in range(self.layers):
            here = line.wait(ahead)
            before = line.run(f"layer {i}", self.nothing, here, last)
            ahead = self.gather_layer(i + 1, before) if i + 1 < self.layers else None
            last = self.forward(i, before)
        last = line.run("loss", self.loss, last)
        ahead, reduced = self.gather_layer(self.layers - 1, last), None
        for i in reversed(range(self.layers)):
            before = line.run(f"layer {i} again", self.nothing, line.wait(ahead), last)
            ahead = self.gather_layer(i - 1, before) if i else self.gather_piece(PIECES - 1, before)
            last = self.backward(i, before)
            reduced = self.reduced(f"reduce {i}", self.reduce, reduced, last)
        last = self.group("gradients of embeddings", load.embeddings(), (1, load.ranks), 1, last)
        line.run("adaptor back", 2 * self.adapt, last)
        for i in reversed(range(PIECES)):
            before = line.run(f"encode {i} again", self.nothing, line.wait(ahead))
            ahead = self.gather_piece(i - 1, before) if i else None
            last = line.run(f"encode {i} back", self.encode * (2 if self.config.recompute == "none" else 3), before)
            reduced = self.reduced(f"reduce piece {i}", load.reduce(4 * m.encoder / PIECES), reduced, last)
        sums = [line.wait(reduced), line.wait(line.background("reduce root", load.reduce(4 * outside), last))]
        # Master weights, two moments and gradients are read and all but the last written; the norm reads them before.
        line.run("optimiser", self.nothing + 32 * m.parameters / self.config.shard / load.a.hbm, *sums)

    def gather_piece(self, i: int, *after: TimelineEvent) -> BackgroundCollective:
        return self.line.background(f"gather piece {i}", self.load.gather(2 * MODEL.encoder / PIECES), *after)

    def gather_layer(self, i: int, *after: TimelineEvent) -> BackgroundCollective:
        return self.line.background(f"gather {i}", self.gather, *after)

    def reduced(
        self, name: str, seconds: float, before: BackgroundCollective | None, *after: TimelineEvent
    ) -> BackgroundCollective:
        """Sums gradients, once the previous sum has ended, whose memory this one takes."""
        if before is not None:
            after = (*after, self.line.run(f"room to {name}", self.nothing, self.line.wait(before)))
        return self.line.background(name, seconds, *after)

    def group(
        self, name: str, seconds: np.ndarray, shape: tuple[int, int], axis: int, *after: TimelineEvent
    ) -> TimelineEvent:
        return self.line.collect(name, seconds, shape, axis, *after) if seconds.any() else after[-1]

    def ring(self, name: str, backward: bool, *after: TimelineEvent) -> TimelineEvent:
        """Attention to this rank's keys, then to those of other ranks, which are received meanwhile."""
        line, done, returned = self.line, [], []
        if self.turns:
            after = (line.run(f"{name} pack", self.packing, *after),)
        came = [line.send(f"{name} keys {t}", t * self.config.ulysses, self.sent[t], *after) for t in self.turns[:1]]
        done.append(line.run(f"{name} own", self.attend[backward][0], *after))
        for i, t in enumerate(self.turns):
            if i + 1 < len(self.turns):
                # Issued when the previous keys have been received and the kernel before has ended.
                shift = self.turns[i + 1] * self.config.ulysses
                came.append(line.send(f"{name} keys {t}+", shift, self.sent[self.turns[i + 1]], came[i], done[-1]))
            done.append(line.run(f"{name} attend {t}", self.attend[backward][t], came[i]))
            if backward:
                shift = -t * self.config.ulysses
                returned.append(line.send(f"{name} gradients {t}", shift, self.returned[t], done[-1]))
                # Added after the attention to the next step's keys.
                done[-1] = line.run(f"{name} add {t}", self.nothing, *returned[-2:-1], done[-1])
        return line.run(f"{name} added", self.nothing, *returned[-1:], done[-1])

    def attention(self, name: str, last: TimelineEvent) -> TimelineEvent:
        """Projections, all-to-all of q, k and v, attention, all-to-all of its output."""
        last = self.line.run(f"{name} project", self.project + self.copies[0], last)
        last = self.ring(name, False, self.group(f"{name} heads", self.heads[0], self.shape, 1, last))
        return self.group(f"{name} rows", self.heads[1], self.shape, 1, last)

    def forward(self, i: int, last: TimelineEvent) -> TimelineEvent:
        last = self.attention(f"forward {i}", last)
        return self.line.run(f"forward {i} mlp", self.copies[1] + self.closing + self.mlp, last)

    def backward(self, i: int, last: TimelineEvent) -> TimelineEvent:
        line, name, mode = self.line, f"backward {i}", self.config.recompute
        if mode == "full":
            # A recomputed block repeats its messages.
            last = self.attention(f"again {i}", last)
        again = {"none": self.nothing, "selective": self.opening, "full": self.copies[1] + self.closing + self.opening}
        last = line.run(f"{name} mlp", again[mode] + self.back[1] + self.copies[1], last)
        last = self.ring(name, True, self.group(f"{name} rows", self.heads[1], self.shape, 1, last))
        last = self.group(f"{name} heads", self.heads[0], self.shape, 1, last)
        return line.run(f"{name} project", self.back[0] + 2 * self.copies[0], last)


def configs(gpus: int, tokens: int) -> Iterator[ParallelConfig]:
    """All layouts of a number of GPUs, with weights sharded over a node or over all GPUs."""
    node = int(np.gcd(gpus, ASSUMED.node))
    for ulysses in ULYSSES:
        for ring in RINGS:
            if gpus % (ulysses * ring) == 0 and tokens >= FEWEST * ulysses * ring:
                yield from (ParallelConfig(gpus, ulysses, ring, shard) for shard in sorted({node, gpus}))


def evaluate(config: ParallelConfig, batch: Packed, assumptions: Assumptions = ASSUMED) -> dict:
    """A row of the results: a layout with the least recomputation that fits, and its step if one fits.

    All layers from the third on take the same time: four are simulated, and the fourth stands for the others.
    """
    for mode in RECOMPUTE:
        config = replace(config, recompute=mode)
        load = Load(config, batch, assumptions)
        memory = load.memory()
        if memory["total"] <= assumptions.memory:
            break
    row = {"kind": "case", "tokens": batch.total, **asdict(config), "data": config.gpus // config.sp_size}
    row |= {"step_tokens": batch.total * row["data"], "fits": memory["total"] <= assumptions.memory}
    row |= {"memory_gb": {name: round(size / 1e9, 3) for name, size in memory.items()}}
    row |= dict(zip(("work_imbalance", "token_imbalance"), (round(x, 4) for x in load.imbalance), strict=True))
    if not row["fits"]:
        return row
    few, more = (simulate(config, batch, assumptions, layers)[0].shares() for layers in (3, 4))
    whole = {name: more[name] + (MODEL.layers - 4) * (more[name] - few[name]) for name in more}
    step = whole["step_s"]
    row |= {name: round(value, 6) for name, value in whole.items()}
    row |= {"tokens_s_gpu": round(batch.total / config.sp_size / step, 1), "attention_gb": round(load.sent / 1e9, 4)}
    return row | {
        "exposed_share": round(whole["exposed_s"] / step, 5),
        "mfu": round(load.flops / config.sp_size / step / assumptions.peak, 4),
    }


def evaluated(
    gpus: int, context: int, batch: Packed, clips: str = "mix", assumptions: Assumptions = ASSUMED
) -> list[dict]:
    """Rows of all layouts of a number of GPUs."""
    found = (evaluate(config, batch, assumptions) for config in configs(gpus, context))
    return [{**row, "context": context, "clips": clips} for row in found]


def choose(rows: Sequence[dict], limit: float = float("inf")) -> dict | None:
    """The fastest row that fits and has at most ``limit`` tokens in a step, or the fewest if none has so few."""
    fitting = [row for row in rows if row["fits"]]
    small = [row for row in fitting if row["step_tokens"] <= limit]
    if not small and fitting:
        least = min(row["step_tokens"] for row in fitting)
        small = [row for row in fitting if row["step_tokens"] == least]
    return max(small, key=lambda row: row["tokens_s_gpu"], default=None)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="An event simulation of one training step: nothing is measured.")
    parser.add_argument("--gpus", type=int, default=128, help="whose table is printed; default 128")
    parser.add_argument(
        "--tokens", type=int, nargs="+", default=[8192, 24576, 131072], help="of a group's packed batch"
    )
    parser.add_argument("--limit", type=int, default=1 << 22, help="most tokens of a step over all groups; default 4M")
    parser.add_argument("--seed", type=int, default=0, help="of the clips")
    parser.add_argument("--out", type=Path, help="write PREFIX.jsonl, PREFIX.md and PREFIX.png, for 8 to 1,024 GPUs")
    args = parser.parse_args(arguments)
    from afn_distributed.simulate_plot import draw, markdown, section

    sizes = sorted({args.gpus, *SIZES}) if args.out else [args.gpus]
    rows, texts = {}, []
    for tokens in args.tokens:
        batch = packed(tokens, args.seed)
        rows |= {(tokens, gpus): evaluated(gpus, tokens, batch) for gpus in sizes}
        if found := rows[tokens, args.gpus]:
            texts.append(section(f"{args.gpus:,} GPUs, {tokens:,} tokens a group", batch, found, args.limit))
    most, lines = max(args.tokens), [line for found in rows.values() for line in found]
    if most > RECORDING.total:
        batch = recordings(most)
        found = evaluated(args.gpus, most, batch, "recordings")
        title = f"{args.gpus:,} GPUs, {most:,} tokens a group, of recordings of half an hour"
        texts.append(section(title, batch, found, args.limit))
        lines += found
    print("\n\n".join(texts))
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        given = {"kind": "assumptions", "measured": False, **asdict(ASSUMED), "seed": args.seed}
        doubts = []
        for doubt in DOUBTS:
            other, tried = replace(ASSUMED, **doubt), {}
            for tokens in args.tokens:
                tried[tokens] = evaluated(args.gpus, tokens, packed(tokens, args.seed), assumptions=other)
                if best := choose(tried[tokens], args.limit):
                    lines.append({**best, "doubt": doubt})
            doubts.append((doubt, tried))
        args.out.with_suffix(".jsonl").write_text("".join(json.dumps(line) + "\n" for line in [given, *lines]))
        args.out.with_suffix(".md").write_text(markdown("\n\n".join(texts), rows, doubts, args.gpus, args.limit))
        draw(rows, args.gpus, args.limit, args.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
