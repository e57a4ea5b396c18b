"""The picture of a run of the tiny curriculum: held-out scores, losses and rewards over the stages."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from afn_model.plot_style import COLOURS, GREY, INK, MARKERS, RULE, plotting, save
from afn_model.train.plot import Run, curve

PARTS = 8


def draw(stages: dict[str, dict], logs: dict[str, list[dict]], steps: dict[str, int | None], path: Path) -> None:
    """Writes the picture, 1600 pixels wide: held-out scores, losses by axis, rewards with the KL below.

    Args:
        stages: of results.json.
        logs: the rows of every stage that was trained.
        steps: of each of them.
        path: the .png.
    """
    names = {axis for stage in stages.values() for axis in stage["axes"]}
    names |= {axis for rows in logs.values() for row in rows for axis in row.get("losses") or {}}
    looks = {axis: (COLOURS[i % 10], MARKERS[i % 10]) for i, axis in enumerate(sorted(names))}
    with plotting(axes_grid=True, savefig_dpi=100, figure_dpi=100, savefig_bbox=None, font_size=10) as plt:
        figure = plt.figure(figsize=(16, 6.8))
        grid = figure.add_gridspec(
            3, 3, width_ratios=(1.15, 1.3, 1), left=0.04, right=0.995, top=0.97, bottom=0.16, wspace=0.19, hspace=0.3
        )
        scores(figure.add_subplot(grid[:, 0]), stages, looks)
        losses(figure.add_subplot(grid[:, 1]), logs, steps, looks)
        rewards(figure.add_subplot(grid[:2, 2]), figure.add_subplot(grid[2, 2]), logs, steps)
        save(figure, path)


def scores(axes: Any, stages: dict[str, dict], looks: dict[str, tuple[str, str]]) -> None:
    """A line per data axis over the stages."""
    ends = []
    for axis, (colour, marker) in looks.items():
        line = [(x, stage["axes"][axis]) for x, stage in enumerate(stages.values()) if axis in stage["axes"]]
        if line:
            axes.plot(*zip(*line, strict=True), color=colour, marker=marker, markersize=5, clip_on=False)
            ends.append((axis.replace("_", " "), *line[-1], colour))
    words = [f"{name}\n{stage['becomes']}" for name, stage in stages.items()]
    last = len(stages) - 1
    axes.set(xlim=(-0.2, last + 0.28 * max(last, 1)), ylim=(-0.01, 1.01), ylabel="held-out score, 0 to 1")
    axes.set_xticks(range(len(words)), words, rotation=40, ha="right", rotation_mode="anchor")
    axes.set_xlabel("after stage", labelpad=0)
    axes.spines["bottom"].set_bounds(-0.2, last)
    label_ends(axes, ends)


def losses(axes: Any, logs: dict, steps: dict, looks: dict[str, tuple[str, str]]) -> None:
    """Training losses by data axis, all stages end to end. The room of a stage without them takes the labels."""
    from matplotlib.ticker import LogLocator

    run, places = side_by_side(logs, 1.0)
    if not run.has("losses"):
        return empty(axes, "no losses by axis logged yet")
    ends = lines(axes, run, "losses", {axis: colour for axis, (colour, _) in looks.items()})
    last = list({end[0]: end for end in ends}.values())
    axes.set(yscale="log", ylabel="training loss, nats per supervised token (log scale)")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("")
    stage_axis(axes, steps, places, 1.0)
    return label_ends(axes, last)


def rewards(axes: Any, below: Any, logs: dict, steps: dict) -> None:
    """Mean reward of the answers in training by kind, and the KL to the reference."""
    logs = {n: rows for n, rows in logs.items() if any(row.get("reward") is not None for row in rows)}
    if not logs:
        empty(below, "")
        return empty(axes, "no GRPO stage logged yet")
    run, places = side_by_side(logs, 1.75)
    palette = {kind: COLOURS[i % 9] for i, kind in enumerate(run.names("rewards"))}
    ends = lines(axes, run, "rewards", palette)
    curve(axes, run, lambda row: row.get("reward"), INK, None, width=2.4)
    ends += [("all", *end, INK) for end in ending(run, lambda row: row.get("reward"))]
    axes.set(ylim=(-0.05, 1.02), ylabel="mean reward in GRPO, by kind")
    curve(below, run, lambda row: row.get("kl"), INK, None)
    below.set(ylabel="KL, nats")
    below.set_ylim(bottom=0)
    stage_axis(axes, steps, places, 1.75)
    stage_axis(below, steps, places, 1.75)
    axes.set_xticklabels([])
    axes.set_xlabel("")
    return label_ends(axes, ends)


def side_by_side(logs: dict[str, list[dict]], width: float) -> tuple[Run, dict[str, float]]:
    """Rows of all stages, means of ``PARTS`` parts of each, and where each begins: one unit wide, ``width`` apart."""
    places = {name: width * i for i, name in enumerate(logs)}
    rows, at = [], []
    for name, found in logs.items():
        parts: dict[int, list[dict]] = {}
        for row in found:
            parts.setdefault(math.ceil(PARTS * row.get("progress", 1.0)), []).append(row)
        for some in parts.values():
            numbers = {key: mean([row.get(key) for row in some]) for key in ("reward", "kl")}
            groups = {key: means([row.get(key) or {} for row in some]) for key in ("losses", "rewards")}
            rows.append({"stage": name} | numbers | groups)
            at.append(places[name] + mean([row.get("progress", 1.0) for row in some]))
    return Run(rows, at, places), places


def mean(values: list[float | None]) -> float | None:
    """Of those that are there, None where none is."""
    there = [value for value in values if value is not None]
    return sum(there) / len(there) if there else None


def means(groups: list[dict[str, float]]) -> dict[str, float | None]:
    return {name: mean([group.get(name) for group in groups]) for name in {name for group in groups for name in group}}


def ending(run: Run, pick: Callable[[dict], Any]) -> list[tuple[float, float]]:
    """The last point of a curve in every stage."""
    found = {row["stage"]: (at, pick(row)) for row, at in zip(run.rows, run.at, strict=True) if pick(row) is not None}
    return list(found.values())


def lines(axes: Any, run: Run, group: str, colours: dict[str, str]) -> list[tuple[str, float, float, str]]:
    """A curve for every name in a group of columns; returns its words, where it ends in each stage, and its colour."""
    ends = []
    for name, colour in colours.items():

        def pick(row: dict, name: str = name) -> Any:
            return (row.get(group) or {}).get(name)

        curve(axes, run, pick, colour, None)
        ends += [(name.replace("_", " "), *end, colour) for end in ending(run, pick)]
    return ends


def stage_axis(axes: Any, steps: dict, places: dict[str, float], width: float) -> None:
    """Names the stages below, with their steps, and draws where each begins."""
    words = [f"{name}\n{steps[name]} steps" for name in places]
    axes.set_xticks([at + 0.5 for at in places.values()], words)
    axes.set_xlim(0, max(places.values()) + max(width, 1.0))
    axes.set_xlabel(f"way through each stage, in means of {PARTS} parts")
    axes.tick_params(axis="x", length=0, labelsize=9)
    axes.grid(visible=False, axis="x")
    for at in list(places.values())[1:]:
        axes.axvline(at, color=RULE, linewidth=0.8, linestyle=(0, (4, 3)))


def empty(axes: Any, text: str) -> None:
    axes.axis("off")
    axes.text(0.5, 0.5, text, ha="center", va="center", color=GREY, transform=axes.transAxes)


def label_ends(axes: Any, ends: list[tuple[str, float, float, str]]) -> None:
    """Writes each (text, x, y, colour) right of where its line ends, moved up or down until none covers another."""
    box = axes.get_window_extent()
    for end in sorted({round(x, 6) for _, x, _, _ in ends}):
        here = [(text, x, y, colour) for text, x, y, colour in ends if round(x, 6) == end]
        points = [axes.transAxes.inverted().transform(axes.transData.transform((x, y))) for _, x, y, _ in here]
        heights = spread([min(max(y, 0.02), 1.0) for _, y in points], 16 / box.height)
        for (text, x, y, colour), (across, _), at in zip(here, points, heights, strict=True):
            leader = {"arrowstyle": "-", "color": colour, "lw": 1.6, "shrinkA": 1, "shrinkB": 3, "relpos": (0, 0.5)}
            axes.annotate(
                text,
                (x, y),
                xytext=(across + 20 / box.width, at),
                textcoords="axes fraction",
                va="center",
                fontsize=9,
                color=INK,
                arrowprops=leader,
                annotation_clip=False,
            )


def spread(heights: list[float], gap: float) -> list[float]:
    """The nearest heights in [0, 1] in the same order that are ``gap`` apart (least squares)."""
    order = sorted(range(len(heights)), key=heights.__getitem__)
    heaps: list[tuple[float, int]] = []
    for rank, i in enumerate(order):
        heaps.append((heights[i] - rank * gap, 1))
        while len(heaps) > 1 and heaps[-2][0] > heaps[-1][0]:
            (a, m), (b, n) = heaps[-2:]
            heaps[-2:] = [((a * m + b * n) / (m + n), m + n)]
    top = max(0.0, 1 - gap * (len(heights) - 1))
    flat = [min(max(height, 0.0), top) for height, size in heaps for _ in range(size)]
    found = [0.0] * len(heights)
    for rank, i in enumerate(order):
        found[i] = flat[rank] + rank * gap
    return found
