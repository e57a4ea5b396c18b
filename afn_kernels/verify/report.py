"""What a run of ``verify`` found, as rows and as a table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Report:
    """What ``verify`` found; ``print`` shows it as a table.

    Args:
        device: where it ran.
        size: of its shapes.
        rows: one for each implementation of each check, then one of the times where they were taken: ``op``, ``check``,
            ``impl``, ``status`` ("ok", "failed", "skipped", "timed"), ``reason``, ``error`` (max|x − float64| /
            max|float64|), ``used`` (error ÷ budget) and ``seconds`` by kind of call and implementation.
        file: where ``impl="auto"`` finds it; "" where nothing was kept.
    """

    device: str
    size: str
    rows: tuple[Mapping[str, Any], ...]
    file: str = ""

    @property
    def failed(self) -> tuple[Mapping[str, Any], ...]:
        return tuple(row for row in self.rows if row["status"] == "failed")

    def __str__(self) -> str:
        lines = [f"verify on {self.device}, {self.size} shapes", HEAD]
        for row in self.rows:
            lines += _times(row) if row["status"] == "timed" else [_line(row)]
        counts = {status: sum(row["status"] == status for row in self.rows) for status in ("ok", "failed", "skipped")}
        lines.append(", ".join(f"{count} {status}" for status, count in counts.items()))
        lines += [f"impl='auto' follows {self.file}"] if self.file else []
        return "\n".join(lines)


HEAD = f"  {'op':<21}{'check':<40}{'impl':<11}{'result':<9}{'error':>9}{'budget':>8}"


def _line(row: Mapping[str, Any]) -> str:
    found = f"  {row['op']:<21}{row['check'][:39]:<40}{row['impl']:<11}{row['status']:<9}"
    if "error" in row:
        found += f"{row['error']:9.1e}{row['used']:8.2f}"
    return f"{found}  {row.get('reason', '')}".rstrip()


def _times(row: Mapping[str, Any]) -> list[str]:
    found = []
    for what, seconds in row["seconds"].items():
        order = sorted(seconds, key=seconds.__getitem__)
        times = ", ".join(f"{name} {_short(seconds[name])}" for name in order)
        found += [f"    fastest first, {what}: {times}"] if times else []
    return found


def _short(seconds: float) -> str:
    return f"{1e6 * seconds:.1f} µs" if seconds < 1e-3 else f"{1e3 * seconds:.2f} ms"
