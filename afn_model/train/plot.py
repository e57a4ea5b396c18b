"""Plots of a run: losses by data axis, rewards by kind, throughput, learning rate and gradient norm."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from afn_model.plot_style import COLOURS, GREY, INK, RULE, plotting, save
from afn_model.train.log import is_evaluation, read_rows


@dataclass(frozen=True)
class Run:
    """Log rows of all stages in order; ``at`` is each row's step, counted on from stage to stage."""

    rows: list[dict[str, Any]]
    at: list[float]
    starts: dict[str, float]

    def series(self, pick: Callable[[dict], Any]) -> tuple[list[float], list[float]]:
        """Steps and values; a gap (NaN) where a row has no such number, and between stages."""
        x, y, stage = [], [], None
        for row, at in zip(self.rows, self.at, strict=True):
            if stage not in (None, row["stage"]):
                x.append(at - 0.5)
                y.append(math.nan)
            stage, value = row["stage"], pick(row)
            if value is None and is_evaluation(row):  # a held-out evaluation between two rows of training
                continue
            x.append(at)
            y.append(math.nan if value is None else float(value))
        return x, y

    @property
    def held_out(self) -> Run:
        """The held-out evaluations alone."""
        pairs = [(row, at) for row, at in zip(self.rows, self.at, strict=True) if is_evaluation(row)]
        return Run([row for row, _ in pairs], [at for _, at in pairs], self.starts)

    def has(self, name: str) -> bool:
        """Whether any row has a number or a group of that name."""
        return any(row.get(name) not in (None, {}) for row in self.rows)

    def names(self, group: str) -> list[str]:
        """Every name in a group of columns such as losses."""
        return sorted({name for row in self.rows for name in row.get(group) or {}})


def read_run(run: Path) -> Run:
    """The logs of a run, its stages in the curriculum's order, or else in the order they were last written.

    Raises:
        ValueError: no such folder, no log in it, or a log that cannot be read.
    """
    if not run.is_dir():
        raise ValueError(f"{run}: no such folder")
    files = {file.parent.name: file for file in sorted(run.glob("*/log.jsonl"), key=lambda f: f.stat().st_mtime)}
    order = [name for name in stage_order(run) if name in files]
    logged = through({name: read_rows(files[name]) for name in order + [x for x in files if x not in order]})
    if not logged.rows:
        raise ValueError(f"{run}: no stage in it has a log.jsonl with rows")
    return logged


def through(stages: dict[str, list[dict[str, Any]]]) -> Run:
    """Rows of several stages one after another; a stage without rows is left out."""
    rows, at, starts, offset = [], [], {}, 0.0
    for name, logged in stages.items():
        if logged:
            starts[name] = offset
            rows += [{**row, "stage": name} for row in logged]
            at += [offset + row["step"] for row in logged]
            offset = at[-1] + 1
    return Run(rows, at, starts)


def stage_order(run: Path) -> list[str]:
    """Names of the stages as RUN/curriculum.yaml lists them, [] where it does not say."""
    try:
        import yaml
    except ImportError:
        return []
    try:
        return list(yaml.safe_load((run / "curriculum.yaml").read_text("utf-8"))["stages"])
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError):
        return []


def plot(run: str | Path, out: str | Path | None = None) -> list[Path]:
    """Draws what a run has logged so far.

    Args:
        run: its folder, with a log.jsonl in each stage's folder.
        out: folder for the pictures; RUN/plots if None.

    Returns:
        The files: losses.png, throughput.png, optimiser.png, and rewards.png where there are rewards.

    Raises:
        ValueError: no such folder, no logs in it, or no matplotlib.
    """
    logged = read_run(Path(run))
    folder = Path(run) / "plots" if out is None else Path(out)
    files = []
    with plotting(axes_grid=True) as plt:
        folder.mkdir(parents=True, exist_ok=True)
        for name, draw in (
            ("losses", losses),
            ("rewards", rewards),
            ("throughput", throughput),
            ("optimiser", optimiser),
        ):
            figure = draw(logged, plt)
            if figure is not None:
                files.append(save(figure, folder / f"{name}.png"))
    return files


def losses(run: Run, plt: Any) -> Any:
    """Loss of all tokens, and of each data axis."""
    # Samples without an axis are logged as those of the axis "all"; where there are no others, that is the whole loss.
    axes_names = run.names("losses")
    if axes_names == ["all"] and run.has("loss"):
        axes_names = []
    if not run.has("loss") and not axes_names:
        return None
    figure, (axes,) = panels(plt, run, 1, height=4.2)
    for number, name in enumerate(axes_names):
        colour = COLOURS[number % len(COLOURS)]
        label = "without an axis" if name == "all" else name.replace("_", " ")
        curve(axes, run, lambda row, name=name: (row.get("losses") or {}).get(name), colour, label)
    curve(axes, run, lambda row: None if row.get("reward") is not None else row.get("loss"), INK, "all", width=2.0)
    if run.has("eval_loss"):
        curve(axes, run.held_out, lambda row: row.get("eval_loss"), GREY, "held out", width=2.0)
    axes.set(title="Loss by data axis", ylabel="cross-entropy per supervised token, nats")
    axes.set_ylim(bottom=0)
    return finish(figure, [axes], run)


def rewards(run: Run, plt: Any) -> Any:
    """Mean reward by kind in the stages that have one; below it what shows whether the policy drifts."""
    stages = {name: [row for row in run.rows if row["stage"] == name] for name in run.starts}
    run = through({n: rows for n, rows in stages.items() if any(row.get("reward") is not None for row in rows)})
    if not run.rows:
        return None
    drift = [(n, text) for n, text in (("kl", "KL, nats"), ("entropy", "entropy, nats")) if run.has(n)]
    drift += [(n, text) for n, text in (("mismatch", "mismatch, nats"), ("length", "length, tokens")) if run.has(n)]
    figure, axes = panels(plt, run, 1 + len(drift), height=3.2, others=1.5)
    for number, name in enumerate(run.names("rewards")):
        colour = COLOURS[number % len(COLOURS)]
        curve(axes[0], run, lambda row, name=name: (row.get("rewards") or {}).get(name), colour, name.replace("_", " "))
    curve(axes[0], run, lambda row: row.get("reward"), INK, "all", width=2.0)
    if run.has("eval_reward"):
        curve(axes[0], run.held_out, lambda row: row.get("eval_reward"), GREY, "held out", width=2.0)
    axes[0].set(title="Reward by kind", ylabel="mean reward, 0 to 1", ylim=(-0.02, 1.02))
    for panel, (name, text), colour in zip(axes[1:], drift, COLOURS, strict=False):
        curve(panel, run, lambda row, name=name: row.get(name), colour, None)
        panel.set_ylabel(text)
    return finish(figure, axes, run)


def throughput(run: Run, plt: Any) -> Any:
    """Tokens and audio per second, use of the device, and the share of time spent waiting for data."""
    columns = [
        ("tokens_per_s", "tokens / s", 1),
        ("audio_hours_per_s", "audio seconds / s", 3600),
        ("mfu", "MFU, %", 100),
        ("data_wait", "waiting for data, %", 100),
        ("memory_gb", "memory, GB", 1),
    ]
    columns = [row for row in columns if run.has(row[0])]
    return stacked(run, plt, "Throughput", columns) if columns else None


def optimiser(run: Run, plt: Any) -> Any:
    """Learning rate, and the norm of the gradient before it is clipped."""
    columns = [row for row in (("lr", "learning rate", 1), ("grad_norm", "gradient norm", 1)) if run.has(row[0])]
    return stacked(run, plt, "Optimiser", columns, log=True) if columns else None


def stacked(run: Run, plt: Any, title: str, columns: list[tuple[str, str, float]], log: bool = False) -> Any:
    """A panel for each column: its name, its label, and a factor. A log scale ends four decades below the largest."""
    figure, axes = panels(plt, run, len(columns), height=2.0, others=2.0)
    for panel, (name, text, factor), colour in zip(axes, columns, COLOURS, strict=False):
        curve(panel, run, lambda row, n=name, f=factor: None if row.get(n) is None else f * row[n], colour, None)
        panel.set_ylabel(text)
        values = [factor * row[name] for row in run.rows if (row.get(name) or 0) > 0]
        if log and values:
            panel.set(yscale="log", ylim=(max(min(values), 1e-4 * max(values)) / 1.5, 1.5 * max(values)))
        else:
            panel.set_ylim(bottom=0)
    axes[0].set_title(title)
    return finish(figure, axes, run)


def panels(plt: Any, run: Run, count: int, height: float, others: float = 0.0) -> tuple[Any, list[Any]]:
    """Panels under each other that share the axis of steps, wider where there are many stages."""
    heights = [height] + [others] * (count - 1)
    width = min(7.5 + 0.7 * len(run.starts), 14)
    figure, axes = plt.subplots(
        count, 1, sharex=True, squeeze=False, figsize=(width, sum(heights) + 0.6), height_ratios=heights
    )
    return figure, list(axes[:, 0])


def curve(axes: Any, run: Run, pick: Callable[[dict], Any], colour: str, label: str | None, width: float = 1.4) -> None:
    """A line through the rows; a number that stands between two gaps is a dot."""
    x, y = run.series(pick)
    if all(math.isnan(value) for value in y):
        return
    axes.plot(x, y, color=colour, label=label, linewidth=width)
    gap = [True, *map(math.isnan, y), True]
    alone = [n for n in range(len(y)) if gap[n : n + 3] == [True, False, True]]
    axes.plot([x[n] for n in alone], [y[n] for n in alone], ".", color=colour, markersize=5)


def finish(figure: Any, axes: list[Any], run: Run) -> Any:
    """Where each stage begins, its name at the top, and the legend beside the picture."""
    from matplotlib.ticker import FuncFormatter

    for panel in axes:
        for start in list(run.starts.values())[1:]:
            panel.axvline(start - 0.5, color=RULE, linewidth=0.8, linestyle=(0, (4, 3)))
    for name, start in run.starts.items():
        axes[0].annotate(
            name,
            (max(start - 0.5, 0), 1),
            xycoords=("data", "axes fraction"),
            xytext=(0, 4),
            textcoords="offset points",
            rotation=30 if len(run.starts) > 3 else 0,
            fontsize=8,
            color=GREY,
        )
    axes[0].set_title(axes[0].get_title(loc="left"), pad=34 if len(run.starts) > 3 else 18)
    if axes[0].get_legend_handles_labels()[1]:
        axes[0].legend(loc="upper left", bbox_to_anchor=(1.01, 1))
    for panel in axes:
        if panel.get_yscale() == "linear":
            panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))
    axes[-1].xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes[-1].set_xlabel("optimiser step" + (", through all stages" if len(run.starts) > 1 else ""))
    axes[-1].set_xlim(left=0, right=max(run.at[-1], 1))
    figure.align_ylabels()
    return figure
