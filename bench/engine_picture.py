"""The picture of docs/engine.md: what the scheduler puts into every step while requests come and go.

    python -m bench.engine_picture [--out docs/engine.png]

The steps are those that the engine's scheduler plans; the seconds of a step are predicted (an H100's, not measured).
"""

from __future__ import annotations

import argparse
from pathlib import Path

from afn_model.infer.pages import PagePool
from afn_model.infer.schedule import Costs, Scheduler
from afn_model.infer.sequence import Sequence
from afn_model.infer.tokens import PromptTokens, WindowSpan
from afn_model.plot_style import COLOURS, GREY, INK, plotting

WINDOW_TOKENS = 750
# Seconds: a step's fixed part, a token, a pair of tokens, a window, a row and one key of it, and the budget.
COSTS = Costs(step=6e-3, token=2.2e-5, pair=7e-10, window=3.5e-3, row=1e-5, key=2e-8, budget=40e-3)


def prompt(recording: bytes, windows: int, question: list[int]) -> PromptTokens:
    """A system message, a recording of some windows, and a question."""
    spans, ids = [], list(range(1, 21))
    for index in range(windows):
        spans.append(WindowSpan(len(ids), len(ids) + WINDOW_TOKENS, recording + index.to_bytes(2, "big"), index))
        ids += [0] * WINDOW_TOKENS
    return PromptTokens([*ids, *question], tuple(spans))


def played() -> tuple[list[dict], float]:
    """The steps of one example, and how long they are predicted to take."""
    known: set[bytes] = set()
    clock = [0.0]
    scheduler = Scheduler(PagePool(4000), slots=16, costs=COSTS, encoded=known.__contains__, clock=lambda: clock[0])
    arrivals = [
        (0.0, "A: 30 s of speech", Sequence(prompt(b"a", 1, list(range(40, 60))), 40)),
        (0.1, "B: 5 minutes", Sequence(prompt(b"b", 10, list(range(40, 60))), 30)),
        (0.25, "C: B's recording again", Sequence(prompt(b"b", 10, list(range(70, 90))), 20)),
    ]
    names, rows = {sequence: name for _, name, sequence in arrivals}, []
    while arrivals or scheduler.running():
        while arrivals and arrivals[0][0] <= clock[0]:
            scheduler.add(arrivals.pop(0)[2])
        step = scheduler.plan()
        if not step:
            clock[0] = arrivals[0][0]
            continue
        known.update(step.windows)
        scheduler.launched(step)
        seconds = COSTS.step + COSTS.window * len(step.windows)
        seconds += sum(COSTS.chunk(chunk.start, chunk.stop) for chunk in step.chunks)
        seconds += sum(COSTS.row + COSTS.key * place for place in step.places)
        rows.append({"at": clock[0], "seconds": seconds, "windows": len(step.windows)})
        rows[-1]["chunks"] = [(names[chunk.sequence], chunk.stop - chunk.start) for chunk in step.chunks]
        rows[-1]["rows"] = [names[sequence] for sequence in step.rows]
        clock[0] += seconds
        for sequence, draws in zip(step.rows, step.draws, strict=True):
            if draws:
                scheduler.drawn(sequence, 7)
                if len(sequence.tokens) == sequence.limit:
                    scheduler.finish(sequence)
    return rows, clock[0]


def draw(file: Path) -> None:
    rows, end = played()
    names = list(dict.fromkeys(name for row in rows for name in row["rows"]))
    lanes = {name: place for place, name in enumerate([*names, "encoder"])}
    with plotting() as plt:
        figure, axes = plt.subplots(figsize=(9, 2.6))
        for row in rows:
            options = {"height": 0.7, "edgecolor": "white", "linewidth": 0.6}
            if row["windows"]:
                axes.barh(lanes["encoder"], row["seconds"], left=row["at"], color=COLOURS[3], **options)
                axes.text(row["at"] + row["seconds"] / 2, lanes["encoder"], row["windows"], ha="center", va="center")
            for name, tokens in row["chunks"]:
                axes.barh(lanes[name], row["seconds"], left=row["at"], color=COLOURS[0], **options)
                if row["seconds"] > 0.02:
                    place = row["at"] + row["seconds"] / 2
                    axes.text(place, lanes[name], tokens, ha="center", va="center", color="white", fontsize=7)
            for name in set(row["rows"]) - {name for name, _ in row["chunks"]}:
                axes.barh(lanes[name], row["seconds"], left=row["at"], color=COLOURS[2], **options)
        axes.set(yticks=list(lanes.values()), yticklabels=list(lanes), xlim=(0, end), xlabel="seconds, predicted")
        axes.invert_yaxis()
        for colour, text, place in (
            (COLOURS[3], "windows encoded", 0.0),
            (COLOURS[0], "tokens of a prompt", 0.2),
            (COLOURS[2], "a token drawn", 0.42),
        ):
            axes.text(place, 1.06, f"■ {text}", color=colour, transform=axes.transAxes, fontsize=9)
        axes.tick_params(colors=INK)
        axes.grid(axis="x", color=GREY, alpha=0.2)
        figure.savefig(file, bbox_inches="tight")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("docs/engine.png"))
    draw(parser.parse_args(argv).out)


if __name__ == "__main__":
    main()
