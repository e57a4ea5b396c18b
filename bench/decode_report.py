"""The tables of docs/audio.md from what python -m bench.decode and bench.fuzz_audio wrote.

python -m bench.decode_report
"""

from __future__ import annotations

import json
from pathlib import Path

from afn_model.files import write_text

ROOT = Path(__file__).parents[1]
RESULTS, DOCUMENT = ROOT / "bench/results/cpu", ROOT / "docs/audio.md"
BEGIN, END = "<!-- tables: python -m bench.decode_report -->", "<!-- end of tables -->"


def latest(file: Path) -> dict:
    """The last record of a file of JSON lines."""
    return json.loads(file.read_text("utf-8").splitlines()[-1])


def table(head: str, rows: list[list]) -> list[str]:
    return [
        f"| {head} |",
        "|---" * (head.count("|") + 1) + "|",
        *(f"| {' | '.join(map(str, row))} |" for row in rows),
        "",
    ]


def tables(decode: dict, fuzz: dict) -> str:
    """Markdown of the records."""
    versions, costs = decode["versions"], decode["costs"]
    whole = {name: sum(row[name] == "whole" for row in decode["odd"]) for name in ("av", "soundfile")}
    odd = [[row["file"], f"{row['seconds']:g}", row["av"], row["soundfile"]] for row in decode["odd"]]
    speed = [
        [row["format"], f"{row['kbit_s']:,}", *(f"{row[name]:,}" if name in row else "" for name in CALLS)]
        for row in decode["speed"]
    ]
    costs = [[name, versions[name], cost["import_ms"], cost["installed_mb"]] for name, cost in costs.items()]
    outcomes = [
        [name, *(counts.get(outcome, 0) for outcome in ("read", "warned", "refused"))]
        for name, counts in fuzz["outcomes"].items()
    ]
    return "\n".join(
        [
            f"× real time on one core, 48 kHz stereo to 16 kHz mono ({_where(decode)}).",
            "",
            *table("format | kbit/s | decode alone | decode and resample | soundfile and the same resampling", speed),
            *table("package | version | import, ms | installed, MB", costs),
            f"Odd files, of which {whole['av']} of {len(odd)} are played whole, and by soundfile {whole['soundfile']}.",
            "",
            *table("file | seconds | ours (FFmpeg) | soundfile", odd),
            f"{fuzz['files']} damaged files of nine formats: {fuzz['crashes']} crashes, {fuzz['hangs']} hangs, no "
            f"samples that are not finite, no silence; the slowest took {fuzz['slowest_s']:.2f} s ({_where(fuzz)}).",
            "",
            *table("format | read | read, with a warning | refused", outcomes),
        ]
    )


CALLS = ("decode", "load", "soundfile")


def _where(record: dict) -> str:
    return f"{record['machine']}, {record['date'][:10]}, load {record['load']}"


def write_document() -> None:
    """Puts the tables into the document."""
    text = DOCUMENT.read_text("utf-8")
    before, after = text.partition(BEGIN)[0], text.partition(END)[2]
    made = tables(latest(RESULTS / "decode.jsonl"), latest(RESULTS / "fuzz_audio.jsonl"))
    write_text(DOCUMENT, f"{before}{BEGIN}\n\n{made}\n{END}{after}")


if __name__ == "__main__":
    write_document()
