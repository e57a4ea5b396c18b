"""What was in a step of training: the samples of its micro-batches, by the loader's plan alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from afn_model.data.loader import Loader
from afn_model.data.plan import DecodeJob
from afn_model.prompt.conversation import Turn

SHOWN = 60  # characters of a text


def rows_of(loader: Loader, jobs: Sequence[DecodeJob]) -> list[dict[str, Any]]:
    """A row for each sample of a step, in the order of training.

    Args:
        loader: of the stage.
        jobs: of the step, from ``Loader.planned``.

    Returns:
        sequence (number of the micro-batch), dataset, record (its number), id, tokens (at most), seconds of audio (cut
        ones as long as they may be), asked and answered (texts, shortened); a sample that is left out has ``left_out``,
        the reason, in place of what comes after its record.
    """
    rows = []
    for number, job in enumerate(jobs):
        draws = zip(*(x.tolist() for x in (job.sources, job.records, job.tokens, job.longest)), strict=True)
        for source, record, tokens, longest in draws:
            sample = loader.blend.sample(source, record)
            said = [words_of(turn) for turn in sample.turns if turn.role == "assistant"] or [sample.chosen]
            asked = [words_of(turn) for turn in sample.turns if turn.role == "user"]
            row = {"sequence": number, "dataset": loader.blend.names[source], "record": record, "id": sample.id}
            row |= {"tokens": tokens, "seconds": round(min(sample.seconds, longest), 3)}
            rows.append(row | {"asked": shorter(asked[-1] if asked else ""), "answered": shorter(said[-1])})
        for name, why in (*job.bad, *job.dropped):
            dataset, _, record = name.rpartition("[")
            rows.append({"sequence": number, "dataset": dataset, "record": int(record.rstrip("]")), "left_out": why})
    return rows


def text_of(rows: Sequence[dict[str, Any]], stage: Any) -> str:
    """The rows to read, sequence by sequence, after a line that counts them."""
    used = [row for row in rows if "left_out" not in row]
    numbers = sorted({row["sequence"] for row in rows})
    tokens, seconds = sum(row["tokens"] for row in used), sum(row["seconds"] for row in used)
    unit = "micro-batch" if not stage.packed else "sequence"
    lines = [
        f"{len(used):,} samples in {_many(len(numbers), unit)}, at most {tokens:,} tokens, {seconds:,.1f} s of audio"
    ]
    for number in numbers:
        some = [row for row in rows if row["sequence"] == number]
        own = sum(row.get("tokens", 0) for row in some)
        room = f" of {stage.context:,}" if stage.packed else ""
        lines.append(f"\n{unit} {number}: at most {own:,}{room} tokens")
        for row in some:
            name = f"  {row['dataset']}[{row['record']}]"
            if "left_out" in row:
                lines.append(f"{name}  left out: {row['left_out']}")
            else:
                size = f"{row['tokens']:,} tokens, {row['seconds']:.1f} s"
                lines.append(f"{name}  {row['id']}  {size}  {row['asked']!r} → {row['answered']!r}")
    return "\n".join(lines)


def words_of(turn: Turn) -> str:
    """A turn without its recordings."""
    return "".join(part for part in turn.parts if isinstance(part, str))


def shorter(text: str) -> str:
    """A text in one line of at most 60 characters."""
    line = " ".join(text.split())
    return line if len(line) <= SHOWN else f"{line[: SHOWN - 1]}…"


def _many(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 'es' if what.endswith('ch') else 's'}"
