"""What a run of the stand-ins' recordings must have done, checked against their truth: a line for each guarantee."""

from __future__ import annotations

import json
import math
import sqlite3
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from afn_model.audio.recording import Audio, load
from afn_model.curate import identity
from afn_model.curate.audit import audit
from afn_model.curate.lineage import exported, rows_of
from afn_model.curate.stage import Context, Kept
from afn_model.curate.stages.fetch import digest_of, retrievals
from afn_model.curate.stages.licences import read_policy
from afn_model.curate.stages.privacy import find
from afn_model.curate.stages.quotas import Quotas
from afn_model.curate.stand_ins.heard_words import is_clear
from afn_model.curate.stand_ins.recordings import COPIES, read_made
from afn_model.curate.status import RunFolder

IOU, WORD_ERRORS = 0.9, 0.05
FRAME = 100  # a second
SERVER = "rules"  # as the server calls its model


@dataclass(frozen=True)
class CheckedPromise:
    """A guarantee, and what was checked of it.

    Args:
        guarantee: what is promised.
        checked: what was seen, in numbers.
        holds: whether it is so; None where it could not be checked.
    """

    guarantee: str
    checked: str
    holds: bool | None


@dataclass
class FinishedRun:
    """A run's folder beside the truth of its recordings.

    Args:
        out: folder of the run.
        world: folder of the recordings.
        paid: {request: how often it was answered}.
        faults: {kind: how many were made}.
    """

    out: Path
    world: Path
    paid: Mapping[str, int] = field(default_factory=dict)
    faults: Mapping[str, int] = field(default_factory=dict)

    @cached_property
    def folder(self) -> RunFolder:
        return RunFolder(self.out)

    @cached_property
    def made(self) -> dict[str, dict[str, Any]]:
        """What is true of recordings, by url."""
        return {one["url"]: one for one in read_made(self.world)}

    @cached_property
    def rows(self) -> dict[str, dict[str, Any]]:
        """By url: {"id", "fields": all that was written, "end": "kept" or the stage where it ended, "failed": whether
        it is quarantined, "why"}."""
        found: dict[str, dict[str, Any]] = {}
        for shard in self.folder.shards:
            for row_id, steps in self.folder.history(shard).items():
                row: dict[str, Any] = {"id": row_id, "fields": {}, "end": "kept", "failed": False, "why": ""}
                for stage, line in steps:
                    row["fields"] |= line.get("fields", {})
                    if "fields" not in line:
                        told = line.get("dropped") or line["failed"]
                        row |= {"end": stage, "failed": "failed" in line, "why": told.get("reason") or told["error"]}
                found[row["fields"]["url"]] = row
        return found

    @cached_property
    def records(self) -> list[dict[str, Any]]:
        """All that is exported."""
        return [one for one in exported(self.out) if "messages" in one or "chosen" in one]

    def kind(self, *kinds: str) -> list[str]:
        """Urls of the recordings of some kinds."""
        return [url for url, one in self.made.items() if one["kind"] in kinds and url in self.rows]

    def ended(self, *stages: str) -> set[str]:
        """Urls of the rows that ended at one of some stages."""
        return {url for url, row in self.rows.items() if row["end"] in stages}


def identities(run: FinishedRun) -> CheckedPromise:
    """Ids of recordings and segments are those of their content."""
    sources = [row["fields"] for row in run.rows.values() if "source_id" in row["fields"]]
    wrong = [one["file"] for one in sources if digest_of(run.out / one["file"]) != one["source_id"]]
    segments = [(one["source_id"], part) for one in sources for part in one.get("segments", ())]
    wrong += [part["id"] for of, part in segments if identity.segment_id(of, part["start"], part["end"]) != part["id"]]
    said = f"{len(sources)} recordings and {len(segments):,} segments: their ids are computed again"
    return CheckedPromise("identity is of content", said, bool(sources) and not wrong)


def conservation(run: FinishedRun) -> CheckedPromise:
    """Every row is kept, dropped or quarantined once, at every stage."""
    wrong = audit(run.out)
    ends = defaultdict(int)
    for row in run.rows.values():
        ends["kept" if row["end"] == "kept" else "quarantined" if row["failed"] else "dropped"] += 1
    said = ", ".join(f"{count} {name}" for name, count in sorted(ends.items()))
    return CheckedPromise(
        "every recording ends once", f"{len(run.rows)} recordings: {said}; the audit finds {len(wrong)}", not wrong
    )


def paid_once(run: FinishedRun) -> CheckedPromise:
    """Every answer of the server is kept: none has been asked for twice."""
    answered, kept, faults = sum(run.paid.values()), _replies(run.out), sum(run.faults.values())
    said = f"{answered:,} answers of the server, {kept:,} are kept; {faults} faults of {len(run.faults)} kinds"
    return CheckedPromise("no paid call twice", said, None if not run.paid else answered == kept)


def lineage(run: FinishedRun) -> CheckedPromise:
    """Each record names its recording, licence and annotations, all of which are there; and the way back."""
    known, missing = set(_kept(run.out, "id")), list[str]()
    fetched = retrievals(run.out)
    fetched.update()
    for one in run.records:
        told = one["lineage"]
        there = {name: told.get(name) for name in ("url", "source_id", "licence", "product")}
        missing += [one["id"] for value in there.values() if not value]
        missing += [one["id"] for name in told.get("annotations") or [""] if name not in known]
        missing += [one["id"]] * (told["url"] not in fetched.found)
    some = [one["id"] for one in run.records[:: max(1, len(run.records) // 5)]]
    back = rows_of(run.folder, some)
    right = {one["id"]: {run.rows[one["lineage"]["url"]]["id"]} for one in run.records}
    missing += [name for name in some if not right[name] <= back[name]]
    used = {name for one in run.records for name in one["lineage"].get("annotations", ())}
    said = f"{len(run.records):,} records with url, licence and {len(used):,} annotations; {len(some)} traced back"
    return CheckedPromise("lineage both ways", said, bool(run.records) and not missing)


def licences(run: FinishedRun) -> CheckedPromise:
    """What a licence denies is not exported."""
    policy = read_policy()
    denied = [
        url
        for url, one in run.made.items()
        if not policy.uses(one["licence"], "commercial")["train"] and url in run.rows
    ]
    urls = {one["lineage"]["url"] for one in run.records}
    leaked = urls & set(denied)
    said = f"{len(denied)} denied, {len(leaked)} of them in the export of {len(urls)} recordings"
    right = all(run.rows[url]["end"] in ("licences", "probe") for url in denied)
    return CheckedPromise("licence policy", said, bool(denied) and not leaked and right)


def duplicates(run: FinishedRun) -> CheckedPromise:
    """Copies are found, each once, and nothing else is."""
    nets = ("exact-duplicates", "near-duplicates", "near-texts")
    pairs = [(url, run.made[url]["of"]) for url in run.kind(*COPIES)]
    found, right, missed = run.ended(*nets), set[str](), 0
    for pair in pairs:
        gone = [url for url in pair if url in found]
        missed += len(gone) != 1
        right |= set(gone)
    precision, recall = len(right) / max(1, len(found)), 1 - missed / max(1, len(pairs))
    by = ", ".join(f"{len(run.ended(net))} by {net}" for net in nets)
    said = f"{len(pairs)} copies ({by}): precision {precision:.2f}, recall {recall:.2f}"
    return CheckedPromise("duplicates", said, bool(pairs) and precision == recall == 1)


def contamination(run: FinishedRun) -> CheckedPromise:
    """Clips of a benchmark are found, and nothing else is."""
    planted, found = set(run.kind("benchmark")), run.ended("decontaminate", "decontaminate-texts")
    right = len(planted & found)
    precision, recall = right / max(1, len(found)), right / max(1, len(planted))
    said = f"{len(planted)} clips: precision {precision:.2f}, recall {recall:.2f}"
    return CheckedPromise("decontamination", said, bool(planted) and precision == recall == 1)


def privacy(run: FinishedRun) -> CheckedPromise:
    """What was said of a number is neither in texts nor in the sound of the export, and no embedding is."""
    urls, silenced, loud = run.kind("private"), 0, 0
    for url in urls:
        for start, end in run.rows[url]["fields"].get("privacy", {}).get("silences", ()):
            name = f"{run.rows[url]['fields']['source_id']}."
            paths = (audio["path"] for one in run.records for audio in one["audios"] if name in audio["path"])
            if (path := next(paths, None)) is None:
                continue
            path = f"{run.out / 'export/data'}/{path}"
            silenced += 1
            loud += bool(load(Audio(path, start=start, end=end)).abs().max() > 0)
    texts = [json.dumps(one["messages"], ensure_ascii=False) for one in run.records if "messages" in one]
    told = sum(len(find(text)) for text in texts)
    vectors = sum(_has_vector(one) for one in run.records)
    said = (
        f"{silenced} spans silenced, {loud} of them heard; {told} numbers in {len(texts):,} texts; {vectors} embeddings"
    )
    return CheckedPromise("privacy", said, bool(urls) and silenced > 0 and not loud + told + vectors)


def quotas(run: FinishedRun) -> CheckedPromise:
    """No channel has more than its share, and with fewer recordings nobody goes who stayed with more."""
    stage = next(one for one in run.folder.stages if one["stage"] == "quotas")
    share = stage["parameters"]["channel_share"]
    reached = [{"id": row["id"], **row["fields"]} for row in run.rows.values() if "contaminated_texts" in row["fields"]]
    stays = {row["id"] for row in run.rows.values() if row["end"] in ("kept", "export")}
    seconds = defaultdict[str, float](float)
    for one in reached:
        seconds[one["channel"]] += one["seconds"] * (one["id"] in stays)
    most = max(seconds.values(), default=0.0) / max(1e-9, sum(seconds.values()))
    limited = Quotas(limits={"channel": {"*": max(seconds.values(), default=0.0) / 7200}})
    context = Context(run.out, seed=run.folder.told["seed"])
    all_of, some = (
        {row["id"] for row, one in zip(rows, limited.run(rows, context), strict=True) if isinstance(one, Kept)}
        for rows in (reached, reached[::2])
    )
    moved = (all_of & {one["id"] for one in reached[::2]}) - some
    said = f"the largest of {len(seconds)} channels has {most:.0%} of at most {share:.0%}; {len(moved)} moved by others"
    return CheckedPromise("quotas, and who is drawn", said, most <= share + 1e-9 and not moved)


def speech_found(run: FinishedRun) -> CheckedPromise:
    """Speech is where it is by the truth."""
    inside = around = 0
    for url, row in run.rows.items():
        if "spans" in row["fields"]:
            count = int(row["fields"]["seconds"] * FRAME)
            true = _frames([one for one in run.made[url]["events"] if one["kind"] == "word"], count)
            found = _frames([one for one in row["fields"]["spans"] if one["kind"] == "speech"], count)
            inside, around = inside + int((true & found).sum()), around + int((true | found).sum())
    share = inside / max(1, around)
    return CheckedPromise(
        "speech is found", f"intersection over union {share:.3f} of {around / FRAME:,.0f} s", share > IOU
    )


def words_heard(run: FinishedRun) -> CheckedPromise:
    """Words that were heard are those that were said."""
    wrong = said = recordings = 0
    for url, row in run.rows.items():
        events = run.made[url]["events"]
        if "transcript" in row["fields"] and is_clear(events):
            heard = row["fields"]["transcript"]["text"].split()
            true = [one["label"] for one in events]
            wrong, said, recordings = wrong + edits(true, heard), said + len(true), recordings + 1
    share = wrong / max(1, said)
    return CheckedPromise(
        "words are heard", f"word error {share:.2%} of {said} words in {recordings} recordings", share < WORD_ERRORS
    )


# In the order of the guarantees' list, of those that a finished folder shows.
CHECKS: tuple[Callable[[FinishedRun], CheckedPromise], ...] = (
    identities, paid_once, conservation, lineage, licences, duplicates, contamination, privacy, quotas, speech_found,
    words_heard,
)  # fmt: skip


def edits(true: Sequence[str], heard: Sequence[str]) -> int:
    """Words that are wrong, left out or put in: Levenshtein's distance."""
    row = list(range(len(heard) + 1))
    for place, word in enumerate(true, 1):
        before, row[0] = row[0], place
        for other, told in enumerate(heard, 1):
            before, row[other] = row[other], min(before + (word != told), row[other] + 1, row[other - 1] + 1)
    return row[-1]


def table(findings: Iterable[CheckedPromise]) -> str:
    """Findings as a table in Markdown."""
    marks = {True: "holds", False: "**does not hold**", None: "not checked"}
    lines = [f"| {one.guarantee} | {one.checked} | {marks[one.holds]} |" for one in findings]
    return "\n".join(["| guarantee | what was checked | |", "|---|---|---|", *lines])


def _kept(out: Path, column: str) -> Iterator[str]:
    """A column of every reply that is kept."""
    for path in sorted((out / "cache").rglob("*.sqlite")):
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as file:
            yield from (value for (value,) in file.execute(f"SELECT {column} FROM replies"))


def _replies(out: Path) -> int:
    """Replies of the server that are kept, repairs too."""
    found = (reply for record in _kept(out, "record") for reply in json.loads(record)["replies"])
    return sum(reply.get("model") == SERVER for reply in found)


def _has_vector(value: Any) -> bool:
    """Whether somewhere in a record there is a long list of numbers."""
    if isinstance(value, list) and len(value) >= 32 and all(isinstance(one, float) for one in value):
        return True
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return any(map(_has_vector, inside))


def _frames(spans: Sequence[Mapping[str, Any]], count: int) -> np.ndarray:
    found = np.zeros(count, bool)
    for one in spans:
        found[math.floor(one["start"] * FRAME) : math.ceil(one["end"] * FRAME)] = True
    return found
