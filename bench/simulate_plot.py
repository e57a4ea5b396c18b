"""Tables, document and plot of ``python -m bench.simulate``."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

from afn_distributed.costs import ASSUMED, Packed
from afn_distributed.simulate import FEWEST, RINGS, ULYSSES, choose
from afn_model.plot_style import COLOURS, OURS, RULE, plotting, save

Rows = dict[tuple[int, int], list[dict]]
HEAD = (
    "P",
    "layout",
    "DP",
    "shard",
    "recompute",
    "tok/s/GPU",
    "MFU",
    "step ms",
    "exposed",
    "waiting",
    "GB",
    "work",
    "step tok",
)
CLOSE = 0.97  # of the best, where a difference is below what the assumptions can tell


def name(row: dict) -> str:
    return f"U{row['ulysses']} x R{row['ring']}"


def again(row: dict) -> str:
    return f"{row['recompute'].replace('none', 'no')} recomputation"


def million(tokens: int) -> str:
    return f"{tokens / 1e6:.1f}M"


def best_by_ranks(rows: list[dict]) -> list[dict]:
    """For each size of a sequence-parallel group the fastest row, or the one of least memory if none fits."""
    found = []
    for ranks in sorted({row["ulysses"] * row["ring"] for row in rows}):
        same = [row for row in rows if row["ulysses"] * row["ring"] == ranks]
        found.append(choose(same) or min(same, key=lambda row: row["memory_gb"]["total"]))
    return found


def cells(row: dict) -> list[str]:
    shard = f"{row['shard']} x {row['gpus'] // row['shard']}"
    first = [str(row["ulysses"] * row["ring"]), name(row), str(row["data"]), shard]
    memory, work, step = f"{row['memory_gb']['total']:.1f}", f"{row['work_imbalance']:.3f}", million(row["step_tokens"])
    if not row["fits"]:
        return [*first, "full", "does not fit", "", "", "", "", memory, work, step]
    exposed = f"{1e3 * row['exposed_s']:.0f} ms ({row['exposed_share']:.1%})"
    waiting = f"{max(0.0, row['waiting_s']) / row['step_s']:.1%}"
    speed = [f"{row['tokens_s_gpu']:,.0f}", f"{row['mfu']:.1%}", f"{1e3 * row['step_s']:,.0f}"]
    return [*first, row["recompute"], *speed, exposed, waiting, memory, work, step]


def table(head: tuple[str, ...], rows: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(line)} |" for line in [head, ["---"] * len(head), *rows])


def verdict(rows: list[dict], limit: int) -> str:
    """The recommended layout, those nearly as fast, and the fastest without the limit."""
    best, fastest = choose(rows, limit), choose(rows)
    if best is None:
        return "Nothing fits."
    near = [
        f"{name(row)} with shard {row['shard']} ({row['tokens_s_gpu'] / best['tokens_s_gpu']:.1%})"
        for row in sorted((row for row in rows if row["fits"]), key=lambda row: -row["tokens_s_gpu"])
        if row is not best
        and row["tokens_s_gpu"] >= CLOSE * best["tokens_s_gpu"]
        and row["step_tokens"] <= max(limit, best["step_tokens"])
    ]
    layout = f"ulysses {best['ulysses']} x ring {best['ring']} x data {best['data']}"
    run = (
        f"Run **{layout}, weights over {best['shard']} GPUs, {again(best)}**: {best['tokens_s_gpu']:,.0f} "
        f"tokens/s/GPU, {best['memory_gb']['total']:.1f} GB, {million(best['step_tokens'])} tokens a step. "
        f"Within {1 - CLOSE:.0%}, which the assumptions "
        f"cannot tell apart: {', '.join(near) or 'nothing'}."
    )
    if fastest is not best:
        run += (
            f" Without the limit of {million(limit)} tokens a step: {name(fastest)} at {fastest['tokens_s_gpu']:,.0f}, "
            f"with {million(fastest['step_tokens'])}."
        )
    return run


def section(title: str, batch: Packed, rows: list[dict], limit: int) -> str:
    """The best layout of each P for one packed batch, and the recommended one."""
    facts = (
        f"{batch.total:,} tokens in {len(batch.lengths)} clips, the longest {batch.lengths.max():,}; "
        f"{len(batch.windows)} windows of audio; the loss counts {batch.counted:.1%} of the tokens."
    )
    return "\n\n".join(
        [f"### {title}", facts, table(HEAD, [cells(row) for row in best_by_ranks(rows)]), verdict(rows, limit)]
    )


def markdown(text: str, rows: Rows, doubts: list[tuple[dict, dict]], gpus: int, limit: int) -> str:
    """The document: tables, recommended layouts by number of GPUs, assumptions, and what is not simulated."""
    lengths = sorted({tokens for tokens, _ in rows})
    assumed = [
        [item.name, f"{getattr(ASSUMED, item.name):.4g} {item.metadata['unit']}", item.metadata["source"]]
        for item in fields(ASSUMED)
    ]
    sizes = sorted({size for _, size in rows})
    picks = []
    for size in sizes:
        found = [choose(rows[tokens, size], limit) for tokens in lengths]
        picks.append([f"{size:,}", *(pick_text(row) for row in found)])
    changes = [
        [
            ", ".join(f"{key} {value:.3g}" for key, value in doubt.items()),
            *(doubted(choose(rows[tokens, gpus], limit), tried[tokens], limit) for tokens in lengths),
        ]
        for doubt, tried in doubts
    ]
    cases = sum(len(found) for found in rows.values())
    fitting = sum(row["fits"] for found in rows.values() for row in found)
    return f"""# One training step, simulated

**Nothing here was measured.** Every number comes from `python -m bench.simulate` and stands or falls with the
assumptions below. {cases:,} layouts of {sizes[0]:,} to {sizes[-1]:,} GPUs were weighed on the mix; {fitting:,} fit.

Step: forward, backward and AdamW of the full model, all of it trained, on packed clips of the mix of `bench.packing`
(of fifteen packed batches the one of median Σ length²), and on recordings of half an hour where they fit. Layouts:
ulysses {", ".join(map(str, ULYSSES))} and ring {", ".join(map(str, RINGS))} where they divide the GPUs and leave a
rank {FEWEST:,} tokens; weights over a node with copies, or over all GPUs; of no, selective and full recomputation the
first that fits. A step has at most {million(limit)} tokens over all groups: a choice (`--limit`), not a law.

{text}

Columns: P ranks share a batch; DP groups of them; shard: GPUs that share the weights x copies of them; exposed:
messages with no kernel beside them, mean over the ranks; waiting: neither kernel nor message, which is for slower
ranks; GB: of the fullest GPU; work: attention of the busiest rank over the mean; step tok: tokens of an optimiser step.

### At every size

Tokens/s/GPU of what to run on the mix, with at most {million(limit)} tokens a step where anything that small fits.

{table(("GPUs", *(f"{tokens:,} tokens" for tokens in lengths)), picks)}

### Assumptions

{table(("what", "value", "source"), assumed)}

### If they are wrong

What to run on {gpus:,} GPUs then, and how much of its rate the layout named above would have.

{table(("instead", *(f"{tokens:,} tokens" for tokens in lengths)), changes)}

### What is simulated, and what is not

- Two streams on each of the P ranks of one group. Kernels run in order. Messages of attention and embeddings run in
  order and start when those who exchange them are there; gathered weights and summed gradients take the gaps between
  them. Both share one link: what goes by NVLink and what goes by InfiniBand never overlap.
- Weights are gathered one layer ahead, again in the backward; a layer's gradients are summed in float32 while the next
  is computed, and one sum at a time is under way. The ring has the next keys under way while it computes, and the
  float32 gradients of the step before on their way back. Full recomputation repeats a layer's messages.
- Other groups do alike: a real step also waits for the group with the dearest batch. No loader, no checkpoints.
- Attention runs at one rate whatever its lengths, down to the shortest kernel and the bytes it must move. Short pieces
  are slower in truth, which favours layouts that cut more: many ring steps, many heads' owners.
- Four layers are simulated; those between are taken to last as long as the fourth. Eight encoder blocks count as one.
"""


def doubted(before: dict | None, rows: list[dict], limit: int) -> str:
    """The recommended layout under other assumptions, and the rate of the one recommended before relative to it."""
    best, keys = choose(rows, limit), ("ulysses", "ring", "shard")
    if best is None or before is None:
        return pick_text(best)
    kept = next(row for row in rows if all(row[key] == before[key] for key in keys))
    share = f"{kept['tokens_s_gpu'] / best['tokens_s_gpu']:.1%}" if kept["fits"] else "does not fit"
    return f"{pick_text(best)} ({share})"


def pick_text(row: dict | None) -> str:
    if row is None:
        return "nothing fits"
    return f"{row['tokens_s_gpu']:,.0f}: {name(row)}, shard {row['shard']}, {again(row)}"


def draw(rows: Rows, gpus: int, limit: int, path: Path) -> None:
    """Writes ``picture`` to a file."""
    with plotting() as plt:
        save(picture(plt, rows, gpus, limit), path)


def by_size(records: list[dict]) -> Rows:
    """The rows of a .jsonl that ``bench.simulate`` wrote, on the mix and under its assumptions."""
    rows: Rows = {}
    for row in records:
        if row["kind"] == "case" and row["clips"] == "mix" and "doubt" not in row:
            rows.setdefault((row["context"], row["gpus"]), []).append(row)
    return rows


def picture(plt: Any, rows: Rows, gpus: int, limit: int) -> Any:
    """Left: the rate at every size. Right: exposed communication of the layouts at the longest length."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(13, 5.5), layout="tight")
    lengths = sorted({tokens for tokens, _ in rows})
    for tokens, colour in zip(lengths, COLOURS, strict=False):
        sizes = sorted(size for length, size in rows if length == tokens)
        for most, dash in ((limit, "o-"), (float("inf"), ":")):
            picks = [choose(rows[tokens, size], most) for size in sizes]
            points = [(size, row["tokens_s_gpu"]) for size, row in zip(sizes, picks, strict=True) if row]
            label = f"{tokens:,} tokens a group" if dash == "o-" else None
            left.plot(*zip(*points, strict=True), dash, color=colour, label=label, markersize=4)
    left.set_xscale("log", base=2)
    left.set_xticks(sizes, [f"{size:,}" for size in sizes])
    left.set(xlabel="GPUs", ylabel="tokens/s/GPU", ylim=(0, None))
    left.set_title(f"Best layout; dotted: without the limit of {million(limit)} tokens a step", loc="left")
    left.legend(loc="lower left")
    layouts: dict[tuple[int, int, int], list[dict]] = {}
    for row in rows[lengths[-1], gpus]:
        layouts.setdefault((row["ulysses"] * row["ring"], row["ulysses"], row["ring"]), []).append(row)
    found = [row for key in sorted(layouts) if (row := choose(layouts[key]))]
    labels = [f"{name(row)}, shard {row['shard']}, {row['recompute']}" for row in found]
    shares = [100 * row["exposed_share"] for row in found]
    best = choose(rows[lengths[-1], gpus], limit)
    colours = [OURS if row is best else RULE for row in found]
    right.barh(range(len(found)), shares, color=colours)
    for place, row in enumerate(found):
        right.text(shares[place] + 0.5, place, f"{row['tokens_s_gpu']:,.0f} tok/s/GPU", va="center", fontsize=8)
    right.set_yticks(range(len(found)), labels, fontsize=8)
    right.invert_yaxis()
    right.set(xlabel="exposed communication, % of the step", xlim=(0, 1.25 * max(shares, default=1)))
    right.set_title(f"{lengths[-1]:,} tokens a group on {gpus} GPUs; green: to run", loc="left")
    figure.suptitle("One training step of the full model, simulated: nothing was measured", x=0.01, ha="left")
    return figure
