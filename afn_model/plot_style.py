"""One look for every picture: palette, axes, saving."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from afn_model.files import atomic_path

# Paul Tol's muted scheme, which people with any colour vision can tell apart, and a brown for the tenth.
COLOURS = ("#117733", "#cc6677", "#332288", "#ddcc77", "#88ccee", "#882255", "#44aa99", "#999933", "#aa4499", "#994f00")
OURS, LOSES = COLOURS[0], "#b3261e"
INK, GREY, RULE, GRID = "#1f2933", "#5b6770", "#9aa5b1", "#e8ebee"
MARKERS = "osD^vP*Xhd<>p"
STYLE = {
    "axes.axisbelow": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "font.size": 9,
    "grid.color": GRID,
    "legend.frameon": False,
    "lines.linewidth": 1.4,
    "savefig.bbox": "tight",
    "savefig.dpi": 150,
}


def pyplot() -> Any:
    """matplotlib.pyplot, drawing to files without a display.

    Raises:
        ValueError: matplotlib is not installed.
    """
    try:
        import matplotlib
    except ImportError:
        raise ValueError("pictures need matplotlib: pip install matplotlib") from None
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


@contextmanager
def plotting(**changes: Any) -> Iterator[Any]:
    """``pyplot`` in the house's style inside the block; ``changes`` are rcParams with "_" for ".".

    Raises:
        ValueError: matplotlib is not installed.
    """
    plt = pyplot()
    with plt.rc_context(STYLE | {name.replace("_", "."): value for name, value in changes.items()}):
        yield plt


def save(figure: Any, path: str | Path) -> Path:
    """Writes a figure to a file, atomically, and closes it."""
    with atomic_path(path) as temporary:
        figure.savefig(temporary)
    pyplot().close(figure)
    return Path(path)
