"""Statistics of a corpus: counts, hours, lengths, and what packing saves over padding, as text and pictures."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path

import numpy as np

from afn_model.data.index import Corpus
from afn_model.data.order import permute
from afn_model.data.packing import pack
from afn_model.data.plan import most_tokens
from afn_model.data.records import Sample, parse_sample
from afn_model.hashing import key
from afn_model.plot_style import COLOURS, RULE, plotting, save
from afn_model.prompt.processor import AFNextProcessor

NONE = "(none)"
CHARACTERS = 4  # of a text token, where no model counts them
_TURN = 5  # tokens that the prompt puts around a turn
_EDGES = (0, 1, 2, 5, 10, 20, 30, 60, 300, 600, 1800, np.inf)  # seconds
_BAR = 40


@dataclass
class Stats:
    """Counts over one corpus or several.

    Args:
        files: the corpora.
        records, hours: of all of them.
        looked_at: records read for the rest, spread evenly at random where there are more.
        axes, tasks, sources: records of each.
        seconds, tokens: [looked_at − bad] of every good record, audio in seconds and all tokens.
        counted: whether a tokenizer counted the text's tokens; else they are estimated from its characters.
        bad: (name, reason) of records that are not valid.
    """

    files: list[str]
    records: int
    hours: float
    looked_at: int
    axes: Counter
    tasks: Counter
    sources: Counter
    seconds: np.ndarray
    tokens: np.ndarray
    counted: bool
    bad: list[tuple[str, str]] = field(default_factory=list)


def collect(files: Sequence[str | Path], processor: AFNextProcessor | None = None, most: int = 100_000) -> Stats:
    """Reads the records of indexed corpora, at most ``most`` of each.

    Args:
        files: .jsonl files with an index.
        processor: counts tokens; estimated from the text's characters if None.
        most: records to read of each.

    Raises:
        ValueError: no index, or a corpus that has changed.
    """
    corpora = [Corpus(file) for file in files]
    counts, looked_at, seconds, tokens, bad = (Counter(), Counter(), Counter()), 0, [], [], []
    for corpus in corpora:
        total = len(corpus)
        for i in range(min(most, total)):
            record = i if total <= most else permute(i, total, key(0))
            looked_at += 1
            try:
                parsed = parse_sample(corpus[record], corpus.folder)
                length = _text_tokens(parsed, processor)
            except (ValueError, OSError) as error:
                bad.append((f"{os.path.basename(corpus.path)}[{record}]", str(error)))
                continue
            parsed = replace(parsed, seconds=corpus.seconds(record))
            for counter, name in zip(counts, (parsed.axis, parsed.task, parsed.source), strict=True):
                counter[name or NONE] += 1
            seconds.append(parsed.seconds)
            tokens.append(length + (most_tokens(parsed, np.inf) if parsed.seconds else 0))
    facts = [corpus.facts for corpus in corpora]
    records, hours = sum(f.records for f in facts), sum(f.seconds for f in facts) / 3600
    lengths = np.array(seconds, np.float64), np.array(tokens, np.int64)
    names = [str(file) for file in files]
    return Stats(names, records, hours, looked_at, *counts, *lengths, processor is not None, bad)


def _text_tokens(sample: Sample, processor: AFNextProcessor | None) -> int:
    if processor is not None:
        return processor.text_tokens(sample.turns, training=True)
    characters = sum(len(part) for turn in sample.turns for part in turn.parts if isinstance(part, str))
    return -(-characters // CHARACTERS) + _TURN * len(sample.turns)


@dataclass(frozen=True)
class Padding:
    """Useful share of the tokens of a context, by packing and by padding every batch to its longest clip.

    ``saved`` is the share of padding's tokens that packing does not compute: a packed bin is computed at its own
    length, however much room it leaves. ``cut`` are the clips cut to the context.
    """

    context: int
    clips: int
    cut: int
    batch: int
    padded: float
    packed: float

    @property
    def saved(self) -> float:
        return 1 - self.padded


def padding(tokens: np.ndarray, context: int, batch: int = 16, seed: int = 0) -> Padding:
    """Packs clips into bins of a context, and pads batches of them as they come in the same random order.

    Args:
        tokens: [clips] tokens of each.
        context: most tokens of a bin; what is longer is cut to it both ways.
        batch: clips padded together.
        seed: of the order.
    """
    if not len(tokens):
        raise ValueError("no clips to pack")
    lengths = np.random.default_rng(seed).permutation(np.minimum(tokens, context))
    rows = np.maximum.reduceat(lengths, np.arange(0, len(lengths), batch))
    sizes = np.full(len(rows), batch)
    sizes[-1] = len(lengths) - batch * (len(rows) - 1)
    useful = int(lengths.sum())
    packed = pack(lengths, context, seed=seed, buffer=max(len(lengths), 1)).used
    cut = int((tokens > context).sum())
    return Padding(context, len(lengths), cut, batch, useful / int((rows * sizes).sum()), packed)


def histogram(seconds: np.ndarray) -> list[tuple[str, int]]:
    """Records by seconds of audio: (label, count) of every bar, without empty ones at the ends."""
    bars = [("no audio", int((seconds == 0).sum()))]
    for low, high in pairwise(_EDGES):
        label = f"over {_time(low)}" if high == np.inf else f"{_time(low)} to {_time(high)}"
        bars.append((label, int(((seconds > low) & (seconds <= high)).sum())))
    full = [i for i, (_, count) in enumerate(bars) if count]
    return bars[full[0] : full[-1] + 1] if full else []


def _time(seconds: float) -> str:
    return f"{seconds:g} s" if seconds < 60 else f"{seconds / 60:g} min"


def text(stats: Stats, rows: Sequence[Padding]) -> str:
    """The statistics to read."""
    lines = [f"{stats.records:,} records, {stats.hours:,.2f} hours of audio"]
    if stats.looked_at < stats.records:
        lines.append(f"the rest is from {stats.looked_at:,} of them, drawn evenly")
    if stats.bad:
        named = "; ".join(f"{name}: {reason}" for name, reason in stats.bad[:3])
        lines.append(f"{len(stats.bad):,} bad: {named}")
    for title, counter in (("axis", stats.axes), ("task", stats.tasks), ("source", stats.sources)):
        lines += ["", title, *_bars(counter.most_common())]
    lines += ["", "seconds of audio", *_bars(histogram(stats.seconds))]
    if len(stats.tokens):
        quantiles = np.quantile(stats.tokens, (0.5, 0.9, 0.99)).astype(int)
        how = "" if stats.counted else f" (text estimated at {CHARACTERS} characters a token)"
        named = zip(("half", "90 %", "99 %"), quantiles, strict=True)
        said = ", ".join(f"{share} up to {count:,}" for share, count in named)
        lines += ["", f"tokens{how}: {said}, longest {stats.tokens.max():,}"]
    if rows:
        head = f"{'context':>9}  {'clips cut':>9}  {'padded':>7}  {'packed':>7}  {'saved':>7}"
        lines += ["", f"useful tokens, padding {rows[0].batch} clips to the longest or packing", head]
        lines += [f"{r.context:>9,}  {r.cut:>9,}  {r.padded:>7.2%}  {r.packed:>7.2%}  {r.saved:>7.2%}" for r in rows]
    return "\n".join(lines)


def _bars(rows: Sequence[tuple[str, int]]) -> list[str]:
    if not rows:
        return []
    width, most = max(len(label) for label, _ in rows), max(count for _, count in rows)
    return [f"  {label:<{width}}  {count:>9,}  {'█' * round(_BAR * count / most)}" for label, count in rows]


def as_json(stats: Stats, rows: Sequence[Padding]) -> dict:
    """The statistics as plain data."""
    return {
        "files": stats.files,
        "records": stats.records,
        "hours": stats.hours,
        "looked_at": stats.looked_at,
        "bad": stats.bad,
        "axes": dict(stats.axes),
        "tasks": dict(stats.tasks),
        "sources": dict(stats.sources),
        "seconds": dict(histogram(stats.seconds)),
        "tokens": {"sum": int(stats.tokens.sum()), "counted": stats.counted},
        "padding": [vars(row) | {"saved": row.saved} for row in rows],
    }


def draw(stats: Stats, rows: Sequence[Padding], folder: str | Path) -> list[Path]:
    """Writes ``lengths.png`` and ``padding.png``; returns their paths.

    Raises:
        ValueError: matplotlib is not installed, or there is nothing to draw.
    """
    if not len(stats.tokens):
        raise ValueError("no valid record to draw")
    folder = Path(folder)
    with plotting() as plt:
        folder.mkdir(parents=True, exist_ok=True)
        figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout="tight")
        with_audio = stats.seconds[stats.seconds > 0]
        for panel, values, label in ((axes[0], with_audio, "seconds of audio"), (axes[1], stats.tokens, "tokens")):
            if len(values):
                low, high = max(values.min(), 0.1), max(values.max(), 0.2)
                panel.hist(values, bins=np.geomspace(low * 0.99, high * 1.01, 40), color=COLOURS[0])
            panel.set(xscale="log", xlabel=label, ylabel="records")
        lengths = save(figure, folder / "lengths.png")
        figure, panel = plt.subplots(figsize=(1.5 + 1.6 * max(len(rows), 1), 4), layout="tight")
        at = np.arange(len(rows))
        for offset, name, colour in ((-0.2, "padded", RULE), (0.2, "packed", COLOURS[0])):
            bars = panel.bar(at + offset, [100 * getattr(row, name) for row in rows], 0.38, label=name, color=colour)
            panel.bar_label(bars, fmt="%.1f", fontsize=8)
        panel.set_xticks(at, [f"{row.context:,}" for row in rows])
        panel.set(xlabel="context (tokens)", ylabel="useful tokens (%)", ylim=(0, 118))
        panel.legend(ncols=2, loc="upper left")
        return [lengths, save(figure, folder / "padding.png")]
