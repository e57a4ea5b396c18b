"""Loss curves as a PNG."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


def loss_curves(path: Path, series: dict[str, list[tuple[float, float]]], boundaries: dict[str, float]) -> None:
    """Draws each named loss against time, smoothed, with a line where each stage begins.

    Args:
        path: of the PNG.
        series: loss name → (seconds, value) points in order.
        boundaries: stage name → second it began.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(9, 4.5), dpi=120)
    ends = [*list(boundaries.values())[1:], float("inf")]
    for number, (name, points) in enumerate(series.items()):
        label = name
        # One line per stage: a loss that a stage does not have leaves a gap.
        for start, end in zip(boundaries.values(), ends, strict=True):
            seconds, values = zip(
                *[point for point in points if start <= point[0] < end] or [(None, None)], strict=True
            )
            if seconds[0] is not None:
                axes.plot(seconds, values, color=f"C{number}", alpha=0.25, linewidth=0.8)
                axes.plot(seconds, moving_average(values), color=f"C{number}", label=label)
                label = None
    for number, (name, second) in enumerate(boundaries.items()):
        axes.axvline(second, color="0.6", linewidth=0.8)
        height = 1.01 + 0.04 * (number % 3)
        axes.text(second, height, f" {name}", transform=axes.get_xaxis_transform(), fontsize=8, color="0.3")
    axes.set(xlabel="training time (s)", ylabel="loss (nats)", yscale="log")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path)
    plt.close(figure)


def moving_average(values: Sequence[float], decay: float = 0.95) -> list[float]:
    """Exponential moving average, corrected for its start."""
    out, total, weight = [], 0.0, 0.0
    for value in values:
        total, weight = decay * total + (1 - decay) * value, decay * weight + (1 - decay)
        out.append(total / weight)
    return out
