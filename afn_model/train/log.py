"""The log of a run: JSON lines, sampled answers, a line of text on the screen, a progress bar."""

from __future__ import annotations

import contextlib
import json
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from afn_model.files import write_text
from afn_model.train.eval_settings import METRICS
from afn_model.train.flops import peak

BAR = "{desc} {percentage:3.0f}%|{bar}|{postfix}"
HIDDEN = ("stage", "step", "progress", "seconds", "left_s")  # columns that are no curve of their own


class RunLog:
    """Writes RUN/<stage>/log.jsonl, a row per log step, and shows it.

    Args:
        folder: of the run.
        stage: its name.
        show: print a line for a row, and a progress bar where stderr is a terminal.
        from_step: first step that is still to come; rows that an interrupted run wrote from there on are dropped.
        every: steps between printed lines.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        stage: str,
        show: bool = True,
        from_step: int = 0,
        every: int = 1,
    ):
        self.stage, self.show, self.every = stage, show, every
        home = Path(folder) / stage
        home.mkdir(parents=True, exist_ok=True)
        self.path, self.bad_path, self.answers_path = (home / f"{name}.jsonl" for name in ("log", "bad", "answers"))
        for path in (self.path, self.answers_path):
            keep_rows(path, lambda row: row["step"] < from_step)
        self.bad_names, self.bad_read = set(), 0
        self.file = self.path.open("a", encoding="utf-8")
        self.bar, self.said = None, None
        if show and sys.stderr.isatty():
            from tqdm import tqdm

            self.bar = tqdm(total=100, bar_format=BAR, desc=stage, leave=False, file=sys.stderr)

    def __call__(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Adds a row: ``step`` and whatever was measured; ``stage``, ``left_s`` and ``bad`` are filled in.

        Returns:
            The row as it is written.
        """
        row = {"stage": self.stage, **row}
        if "left_s" not in row and "seconds" in row:
            row["left_s"] = time_left(row.get("progress", 0.0), row["seconds"])
        row["bad"] = self.count_bad()
        row = plain(row)
        with named(self.path):
            self.file.write(json.dumps(row, allow_nan=False) + "\n")
            self.file.flush()
        if self.bar is not None:
            self.bar.set_postfix_str(f"{clock(row.get('left_s'))} left", refresh=False)
            self.bar.update(100 * row.get("progress", 0.0) - self.bar.n)
        if self.show and (row["step"] // self.every != self.said or is_evaluation(row)):
            self.said = row["step"] // self.every
            self.say(line(row))
        return row

    def row(self, **columns: Any) -> None:
        """The same with names for columns."""
        self(columns)

    def bad(self, samples: Iterable[tuple[str, str]]) -> None:
        """Writes samples that could not be used, (name, reason), each once, to RUN/<stage>/bad.jsonl."""
        self.count_bad()
        fresh = [x for x in dict(samples).items() if x[0] not in self.bad_names]
        if fresh:
            with named(self.bad_path), self.bad_path.open("a", encoding="utf-8") as file:
                # A killed run may have left half a line: end it, so that the next one is whole.
                file.write("\n" if file.tell() > self.bad_read else "")
                for name, reason in fresh:
                    file.write(json.dumps({"name": name, "reason": reason}) + "\n")

    def answers(self, step: int, samples: Iterable[Mapping[str, Any]]) -> None:
        """Adds answers that a step has sampled, a row for each prompt, to RUN/<stage>/answers.jsonl."""
        rows = [json.dumps(plain({"step": step, **sample}), ensure_ascii=False) + "\n" for sample in samples]
        if rows:
            with named(self.answers_path), self.answers_path.open("a", encoding="utf-8", errors="replace") as file:
                file.write("".join(rows))

    def count_bad(self) -> int:
        """Number of distinct samples named in bad.jsonl so far, by this rank and the others."""
        if self.bad_path.is_file():
            with self.bad_path.open("rb") as file:
                file.seek(self.bad_read)
                whole, end, _ = file.read().rpartition(b"\n")
            self.bad_read += len(whole + end)
            for text in whole.splitlines():
                with contextlib.suppress(ValueError, KeyError, TypeError):
                    self.bad_names.add(json.loads(text)["name"])
        return len(self.bad_names)

    def say(self, text: str) -> None:
        """Prints a line without tearing the progress bar."""
        if self.bar is None:
            print(text, flush=True)
        else:
            self.bar.write(text, file=sys.stdout)

    def close(self) -> None:
        with contextlib.suppress(OSError):  # what could not be written has been said
            self.file.close()
        if self.bar is not None:
            self.bar.close()

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class Meter:
    """Sums what the steps since the last row did.

    Args:
        device: whose peak and memory count.
        ranks: devices that share the work; the size of the process group if None.
    """

    def __init__(self, device: torch.device | str = "cpu", ranks: int | None = None):
        self.device = torch.device(device)
        if ranks is None:
            spread = torch.distributed.is_available() and torch.distributed.is_initialized()
            ranks = torch.distributed.get_world_size() if spread else 1
        one = peak(self.device)
        self.peak = None if one is None else ranks * one
        self.clear()

    def clear(self) -> None:
        self.sums = dict.fromkeys(("tokens", "supervised", "audio_seconds", "flops", "wait_s", "step_s"), 0.0)

    def step(
        self,
        *,
        tokens: float,
        supervised: float = 0,
        audio_seconds: float = 0,
        wait_s: float = 0,
        step_s: float,
        flops: float = 0,
    ) -> None:
        """Counts one step.

        Args:
            tokens, supervised, audio_seconds, flops: of all ranks together.
            wait_s: seconds this rank waited for data.
            step_s: seconds the step took, the wait included.
        """
        given = (tokens, supervised, audio_seconds, flops, wait_s, step_s)
        for name, value in zip(self.sums, given, strict=True):
            self.sums[name] += float(value)

    def row(self) -> dict[str, Any]:
        """Columns of a row; the sums start again from zero.

        Returns:
            tokens and supervised (since the last row), tokens_per_s, audio_hours_per_s, mfu (0 to 1, None where the
            peak is not known), data_wait (share of the time, 0 to 1), memory_gb (most that was allocated since the last
            row; on a CPU the process's largest resident set ever).
        """
        s = self.sums
        seconds = max(s["step_s"], 1e-9)
        self.clear()
        return {
            "tokens": int(s["tokens"]),
            "supervised": int(s["supervised"]),
            "tokens_per_s": s["tokens"] / seconds,
            "audio_hours_per_s": s["audio_seconds"] / 3600 / seconds,
            "mfu": s["flops"] / seconds / self.peak if self.peak else None,
            "data_wait": min(s["wait_s"] / seconds, 1.0),
            "memory_gb": memory(self.device) / 1e9,
        }


def memory(device: torch.device) -> float:
    """Peak bytes allocated on a GPU since the last call; on a CPU the process's largest resident set ever."""
    if device.type == "cuda":
        most = torch.cuda.max_memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        return most
    import resource

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else 1024 * most


def is_evaluation(row: Mapping[str, Any]) -> bool:
    """Whether a row is of a held-out evaluation."""
    return any(name.startswith("eval_") for name in row)


def by_axis(totals: Mapping[str, tuple[float, float]]) -> dict[str, float]:
    """Mean losses by data axis from (sum over tokens, tokens); an axis without tokens is left out."""
    return {axis: float(total) / float(count) for axis, (total, count) in sorted(totals.items()) if count > 0}


def time_left(progress: float, seconds: float) -> float | None:
    """Seconds left at the pace so far; None before the first progress."""
    return seconds * (1 - progress) / progress if progress > 0 else None


def clock(seconds: float | None) -> str:
    """0:42, 5:03, 2:05:03 or 3 d 04 h; ? where it is not known."""
    if seconds is None or not math.isfinite(seconds):
        return "?"
    whole = round(seconds)
    if whole >= 48 * 3600:
        return f"{whole // 86400} d {whole % 86400 // 3600:02} h"
    minutes = f"{whole % 3600 // 60:02}" if whole >= 3600 else f"{whole // 60}"
    return f"{f'{whole // 3600}:' if whole >= 3600 else ''}{minutes}:{whole % 60:02}"


def line(row: Mapping[str, Any]) -> str:
    """A row in one line of text; what was not measured is left out."""
    parts = [f"{row['stage']} step {row['step']:>6}"]
    if row.get("progress") is not None:
        parts.append(f"{row['progress']:4.0%}")
    for key, text in (
        ("loss", "loss {:.4f}"),
        ("reward", "reward {:.3f}"),
        ("eval_loss", "held-out loss {:.4f}"),
        ("eval_reward", "held-out reward {:.3f}"),
        ("eval_accuracy", "accuracy {:.3f}"),
        ("eval_reward_margin", "margin {:.3f}"),
        ("eval_mel_distance", "mel distance {:.2f} dB"),
        *((f"eval_{name}", f"{name} {{:.3f}}") for name in METRICS),
        ("tokens_per_s", "{:,.0f} tokens/s"),
        ("audio_hours_per_s", "{:.3g} h audio/s"),
        ("mfu", "MFU {:.1%}"),
        ("data_wait", "data wait {:.1%}"),
        ("memory_gb", "{:.2f} GB"),
    ):
        value = row.get(key)
        if value is not None and (value or key != "audio_hours_per_s"):
            # A mean of advantages is some -1e-9, which would be shown as -0.0000.
            parts.append(text.format(round(value, 4) + 0.0 if key == "loss" else value))
    for key, text in (("eval_held", "held-out losses"), ("blend_before", "blend"), ("blend", "now")):
        if key in row:
            parts.append(f"{text} " + ", ".join(f"{name} {value:.3g}" for name, value in sorted(row[key].items())))
    parts += [f"{row[key]:,} {key}" for key in ("cut", "dropped", "bad") if row.get(key)]
    if "left_s" in row:
        parts.append(f"{clock(row['left_s'])} left")
    return "  ".join(parts)


def flat(row: Mapping[str, Any], before: str = "") -> Iterable[tuple[str, float]]:
    """Names and numbers of a row; ``losses`` {music: x} gives losses/music."""
    for name, value in row.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{before}{name}/")
        elif isinstance(value, int | float) and name not in HIDDEN:
            yield before + name, value


def plain(value: Any) -> Any:
    """What JSON can hold: tensors to numbers, numbers that are not finite to None."""
    if isinstance(value, Mapping):
        return {str(name): plain(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    if isinstance(value, str | bool | int) or value is None:
        return value
    number = float(value)
    return number if math.isfinite(number) else None


@contextlib.contextmanager
def named(path: Path) -> Iterator[None]:
    """Within it, an error of the operating system names the file: one of a write (a full disk) does not by itself."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            raise OSError(error.errno, error.strerror, str(path)) from None
        raise


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Rows of a JSON-lines file, [] where there is none; an unfinished last line is no row.

    Raises:
        ValueError: another line that cannot be read.
    """
    if not path.is_file():
        return []
    whole, _, _ = path.read_text("utf-8", errors="replace").rpartition("\n")
    rows = []
    for number, text in enumerate(whole.splitlines(), 1):
        try:
            rows.append(json.loads(text))
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, line {number}: {error}") from None
    return rows


def keep_rows(path: Path, wanted: Callable[[dict[str, Any]], bool]) -> None:
    """Keeps the complete rows that are wanted; the file is replaced atomically."""
    if path.is_file():
        kept = "".join(json.dumps(row) + "\n" for row in read_rows(path) if wanted(row))
        if kept.encode() != path.read_bytes():
            write_text(path, kept)
