"""The table of benchmarks: one row for each, as data in ``benchmarks/*.yaml``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import Any

import yaml

FOLDER = Path(__file__).parent / "benchmarks"
VARIANTS = ("instruct", "think", "captioner")
SUITES = ("paper", "demo", "beyond")


@dataclass(frozen=True)
class BenchmarkRow:
    """A row of the table.

    Args:
        name: key, also the folder of its files in the data folder.
        title: as the paper calls it.
        row: of the paper's tables as docs/evaluation.md counts them, 1 to 25; None where the paper does not have it.
        version, split: of the items that the paper's number is about.
        loader: a key of ``loaders.LOADERS``.
        files: name -> path or pattern inside the benchmark's folder; several under one name are tried in turn.
        sha256: path -> hash of the file as published, where it is known.
        items: how many the official split has, which ``source`` or the files themselves say; None where no document
            that was read says it: without a count no number is comparable with the paper's.
        options: of the loader, such as the label to ask for.
        prompt: a key of ``prompts.PROMPTS``: the one that the released models know.
        official_prompt: that of the benchmark's authors, where it differs; ``--prompt official`` uses it.
        language: source and target of a translation, such as "en-zh".
        generation: settings of the answer, as a line of a batch says them: max_tokens, temperature.
        scorers: each {"name", "rule", options...}; ``rules.RULES`` has the rules. The first one is what the paper's
            number is compared with; "official" is the authors' rule, "strict" ours.
        metric: what the number is: "accuracy %", "WER %", "BLEU", "CIDEr", "1-10".
        lower: smaller is better.
        groups: sub-scores of the report.
        targets: {"instruct", "think", "captioner", "af3": number or {sub-score: number}, "other": {"who", "value"}}.
        judge: model of the paper's judge; "" for none.
        licence: of the data.
        where: how to get the files, in a sentence.
        hidden: answers of the split are not public.
        private: the files are not public.
        source: where the rule was read, owner/name@commit path, and behind "items" where the count was.
        unknown: what of the paper's protocol is not published: reasons why a number is not "reproduced".
        notes: sentences for the report.
        suites: of ``SUITES``.
    """

    name: str
    title: str
    loader: str
    prompt: str
    scorers: tuple[dict[str, Any], ...]
    metric: str
    row: int | None = None
    version: str = ""
    split: str = "test"
    files: dict[str, Any] = field(default_factory=dict)
    sha256: dict[str, str] = field(default_factory=dict)
    items: int | None = None
    options: dict[str, Any] = field(default_factory=dict)
    official_prompt: str = ""
    language: str = ""
    generation: dict[str, Any] = field(default_factory=dict)
    lower: bool = False
    groups: tuple[str, ...] = ()
    targets: dict[str, Any] = field(default_factory=dict)
    judge: str = ""
    licence: str = ""
    where: str = ""
    hidden: bool = False
    private: bool = False
    source: str = ""
    unknown: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    suites: tuple[str, ...] = ("paper", "demo")


@cache
def benchmarks() -> dict[str, BenchmarkRow]:
    """All rows by name. In a file, what stands under ``common`` holds for its rows, and a row's ``parts`` are rows of
    their own, ``row-part``, that say what differs."""
    found: dict[str, BenchmarkRow] = {}
    for path in sorted(FOLDER.glob("*.yaml")):
        for row in _rows(yaml.safe_load(path.read_text("utf-8")) or {}):
            if row["name"] in found:
                raise ValueError(f"{path.name}: {row['name']} is in the table twice")
            found[row["name"]] = _benchmark(row, path.name)
    return dict(sorted(found.items(), key=lambda pair: (pair[1].row or 99, pair[0])))


def _rows(table: dict[str, Any]) -> list[dict[str, Any]]:
    common, rows = table.pop("common", {}), []
    for name, row in table.items():
        parts = row.pop("parts", None)
        whole = common | row
        if parts is None:
            rows.append({"name": name} | whole)
        else:
            rows += [{"name": f"{name}-{part}"} | whole | changes for part, changes in parts.items()]
    return rows


def _benchmark(row: dict[str, Any], where: str) -> BenchmarkRow:
    known = {one.name: one for one in fields(BenchmarkRow)}
    if unknown := sorted(set(row) - set(known)):
        raise ValueError(f"{where}: {row['name']} has unknown fields: {', '.join(unknown)}")
    given: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in row.items()}
    return BenchmarkRow(**given)


def chosen(names: Sequence[str]) -> list[BenchmarkRow]:
    """Rows of suites and names, in the order of the paper; a name such as "librispeech" means all of its parts.

    Raises:
        ValueError: a name that is neither.
    """
    rows, found = benchmarks(), dict[str, BenchmarkRow]()
    for name in names:
        some = [row for row in rows.values() if name in row.suites or name in (row.name, f"row-{row.row}")]
        some = some or [row for row in rows.values() if row.name.startswith(f"{name}-")]
        if not some:
            raise ValueError(f"{name}: no such suite or benchmark; there are {', '.join([*SUITES, *rows])}")
        found |= {row.name: row for row in some}
    return [row for key, row in rows.items() if key in found]
