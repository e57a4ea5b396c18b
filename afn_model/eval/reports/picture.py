"""One picture of a run: each benchmark's score beside the paper's numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from afn_model.eval.reports.scored import BenchmarkResult, RunFacts, Scores, ends, labels, number, target, why_not
from afn_model.plot_style import COLOURS, GREY, GRID, INK, LOSES, OURS, plotting, save

MOST = 1.5  # what is further from the paper than this is drawn at the edge, with an arrow
LEGEND = {"columnspacing": 1.2, "handletextpad": 0.3, "borderaxespad": 1.8, "borderpad": 0}
AF3, OTHER = COLOURS[2], COLOURS[3]


@dataclass(frozen=True)
class ScoreLine:
    """What is drawn of a benchmark.

    Args:
        label, metric: how it is called, and what its number is.
        value, low, high: the score and its 95 % interval.
        paper, af3, other: numbers to compare with; NaN where there is none.
        lower: smaller is better.
        comparable: nothing but the score differs from the paper's evaluation.
    """

    label: str
    metric: str
    value: float
    low: float
    high: float
    paper: float
    af3: float
    other: float
    lower: bool = False
    comparable: bool = False

    def share(self, value: float) -> float:
        """A number over the paper's, the other way round where lower is better: above 1 is better than the paper."""
        above, below = (self.paper, value) if self.lower else (value, self.paper)
        if not (math.isfinite(above) and math.isfinite(below)):
            return float("nan")
        return above / below if below else math.inf

    def reached(self) -> float:
        """How far the score is from the worse end of its metric's scale to the better one, 0 to 1."""
        low, high = ends(self.metric)
        share = min(max((self.value - low) / (high - low), 0.0), 1.0)
        return 1 - share if self.lower else share


def draw(path: str | Path, scores: Scores, facts: RunFacts) -> Path | None:
    """Draws the scores of a run that are numbers to a PNG; None, and no file, where there is none.

    Raises:
        ValueError: matplotlib is not installed.
    """
    names = labels([result.row for result in scores.benchmarks.values()])
    lines = [_line(result, names[name], scores, facts) for name, result in scores.benchmarks.items()]
    lines = [line for line in lines if math.isfinite(line.value)]
    if not lines:
        return None
    copies = any(name in facts.copies for name in scores.benchmarks)
    title = f"{facts.asking.get('model', {}).get('name', 'A model')}, {facts.variant}"
    title += " · synthetic rows, numbers of no benchmark" if copies else ""
    with plotting() as plt:
        return save(figure_of(plt, lines, title), path)


def _line(result: BenchmarkResult, label: str, scores: Scores, facts: RunFacts) -> ScoreLine:
    row, first = result.row, result.first
    paper, af3, other = (target(row, who) for who in (facts.variant, "af3", "other"))
    low, high = first.interval
    comparable = not why_not(result, facts, scores.tools)
    return ScoreLine(label, row.metric, first.value, low, high, paper, af3, other, row.lower, comparable)


def figure_of(plt: Any, lines: Sequence[ScoreLine], title: str) -> Any:
    """The figure: above, what the paper has a number for, as a share of it; below, what it has none for."""
    known = [line for line in lines if math.isfinite(line.paper) and line.paper > 0]
    rest = [line for line in lines if line not in known]
    parts = [some for some in (known, rest) if some]
    heights = [len(some) + 1.2 for some in parts]
    shape = {"figsize": (9.5, 1.2 + 0.25 * sum(heights)), "height_ratios": heights}
    figure, axes = plt.subplots(len(parts), 1, squeeze=False, layout="constrained", **shape)
    for place, some in zip(axes[:, 0], parts, strict=True):
        (_against if some is known else _alone)(plt, place, some)
    figure.suptitle(title, x=0.01, ha="left", fontweight="bold", fontsize=11)
    return figure


def _against(plt: Any, axes: Any, lines: Sequence[ScoreLine]) -> None:
    ours = [line.share(value) for line in lines for value in (line.value, line.low, line.high)]
    theirs = [line.share(value) for line in lines for value in (line.af3, line.other)]
    low = max(0.0, min([share for share in ours if share <= MOST] + [0.9]) - 0.04)
    high = max([share for share in [*ours, *theirs] if share <= MOST] + [1.08]) + 0.04
    axes.set_xlim(low, high)
    axes.axvspan(low, 1, color=LOSES, alpha=0.05, linewidth=0)
    axes.axvline(1, color=INK, linewidth=1.2)
    for place, line in enumerate(lines):
        reach = sorted(min(max(line.share(end), low), high) for end in (line.low, line.high) if math.isfinite(end))
        axes.plot([low, high], [place, place], color=GRID, linewidth=0.8, zorder=1)
        for value, colour, marker in ((line.af3, AF3, "D"), (line.other, OTHER, "s")):
            _mark(axes, line.share(value), place, colour=colour, marker=marker, size=26, filled=True)
        share = line.share(line.value)
        colour = LOSES if share < 1 and not (reach and reach[-1] >= 1) else OURS
        if len(reach) == 2:
            axes.plot(reach, [place, place], color=colour, linewidth=2.2, alpha=0.45, solid_capstyle="butt", zorder=3)
        _mark(axes, share, place, colour=colour, marker="o", size=48, filled=line.comparable)
        _beside(axes, place, f"{number(line.value, line.metric)}  /  {number(line.paper, line.metric)}")
    axes.annotate("score  /  paper", (1.01, 1), (0, 3), "axes fraction", "offset points", fontsize=8, color=GREY)
    _rows(axes, lines)
    axes.set_xlabel("← worse      share of the paper's number, its inverse where lower is better (↓)      better →")
    _legend(plt, axes, lines)


def _mark(axes: Any, share: float, place: int, *, colour: str, marker: str, size: int, filled: bool) -> None:
    low, high = axes.get_xlim()
    if math.isnan(share):
        return
    edge = 0.01 * (high - low)
    at, shape = (low + edge, "<") if share < low else (high - edge, ">") if share > high else (share, marker)
    face = colour if filled else "white"
    axes.scatter(at, place, marker=shape, s=size, facecolor=face, edgecolor=colour, zorder=4, clip_on=False)


def _alone(plt: Any, axes: Any, lines: Sequence[ScoreLine]) -> None:
    for place, line in enumerate(lines):
        axes.barh(place, line.reached(), color=OURS, alpha=0.45, height=0.6)
        _beside(axes, place, number(line.value, line.metric))
    _rows(axes, lines)
    axes.set_xlim(0, 1)
    axes.set_xlabel("without a number of the paper: how far the score is from the worse end of its metric's scale")


def _beside(axes: Any, place: int, text: str) -> None:
    axes.text(1.01, place, text, transform=axes.get_yaxis_transform(), va="center", fontsize=8, color=INK)


def _rows(axes: Any, lines: Sequence[ScoreLine]) -> None:
    axes.set_yticks(range(len(lines)), [f"{line.label} · {line.metric}{' ↓' if line.lower else ''}" for line in lines])
    axes.set_ylim(len(lines) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.xaxis.set_major_formatter(lambda x, _: f"{100 * x:.0f} %")


def _legend(plt: Any, axes: Any, lines: Sequence[ScoreLine]) -> None:
    def dot(colour: str, label: str, marker: str, face: str) -> Any:
        return plt.Line2D([], [], marker=marker, linestyle="", color=colour, mfc=face, label=label)

    handles = [plt.Line2D([], [], color=INK, label="the paper")]
    if any(line.comparable for line in lines):
        handles.append(dot(INK, "comparable with it", "o", INK))
    if not all(line.comparable for line in lines):
        handles.append(dot(INK, "not comparable: see report.md", "o", "white"))
    if any(math.isfinite(line.af3) for line in lines):
        handles.append(dot(AF3, "Audio Flamingo 3", "D", AF3))
    if any(math.isfinite(line.other) for line in lines):
        handles.append(dot(OTHER, "best other", "s", OTHER))
    axes.legend(handles=handles, loc="lower left", bbox_to_anchor=(0, 1), ncols=len(handles), **LEGEND)
