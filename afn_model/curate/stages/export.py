"""Writes what has been curated: records and tar shards that ``afn train`` reads, a data card, and a curriculum.

    export/data/train-skills.jsonl, heldout-skills.jsonl     records, a file for each split and axis, with an index
    export/data/shards/train-007-00000.tar                   recordings
    export/card.md, export/curriculum.yaml                   what is in it; how often each file is seen (β)

Which tar file a recording is in depends on its own digest: a recording that comes or goes changes the tar files of one
of ``shards`` alone.
"""

from __future__ import annotations

import io
import os
import re
import shutil
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch

from afn_model.audio.decode import stream_audio
from afn_model.audio.frames import SAMPLE_RATE
from afn_model.audio.shards import ShardWriter
from afn_model.audio.source import read_source
from afn_model.checks import said, shown, whole
from afn_model.curate import identity
from afn_model.curate.splits import check_heldout, split_of
from afn_model.curate.stage import Context, Dropped, Failed, Kept, Outcome, Resources, Row, Stage
from afn_model.curate.stages.card import WEAK, card, curriculum
from afn_model.curate.stages.licences import check_uses
from afn_model.curate.stages.privacy import mask_text, masked
from afn_model.curate.takedown import read_takedown
from afn_model.data import index, records
from afn_model.files import PARTIAL, put_folder, write_rows, write_text
from afn_model.prompt.questions import CAPTION, TRANSCRIBE

FOLDER = "export"
QUESTIONS = {"transcribe": TRANSCRIBE, "caption": CAPTION}
TAKEN = (
    "axis",
    "task",
    "system",
    "messages",
    "chosen",
    "rejected",
    "rewards",
    "truth",
    "events",
    "weak",
)  # of a product
LONGEST = 7 * 86_400.0
_PLACE = re.compile(r"<sound(?:-\d+)?>")


@dataclass(frozen=True)
class Export(Stage):
    """Makes records of what stages have written about recordings, and puts the recordings that they name into shards.

    A product is a record that lacks its recording: {"axis", "task", "audios": [{"segment"} or {"start", "end"} or {}],
    "messages", "rewards", "truth", "events"}; of another recording "source_id" is said too, or its segment. Those with
    "weak", which can be answered without hearing, have a file of their own. A product whose recording is not exported,
    is in the other split, or that is no record, is counted and left out.
    ``exported`` = {"split", "shard", "records": their ids}; a row without records is dropped.

    Args:
        products: fields that hold lists of products.
        texts: {field: "transcribe" or "caption"}: fields that hold texts of parts, [{"segment" or "start" and "end",
            "text"}] or one of the whole recording; each becomes a question with the text as its answer.
        counts: more fields that the data card counts by.
        audio: "flac" at 16 kHz, mono; or "original", the bytes that were fetched.
        needs: uses (train, annotations, audio) that a licence must allow.
        heldout: share of the recordings that is held out, by the hash of ``split_by``.
        split_by: field whose equal values stay together, such as source_id or cluster.
        segments: whether products name segments.
        mask: whether personal data in texts is masked, and what ``privacy`` says is silenced.
        shards: groups of tar files of each split.
        shard_bytes: of a tar file, at most.
        weights: {axis: β} of the curriculum, 1 where none is given.
    """

    name: ClassVar[str] = "export"
    writes: ClassVar[tuple[str, ...]] = ("exported",)
    drops: ClassVar[bool] = True
    whole: ClassVar[bool] = True
    resources: ClassVar[Resources] = Resources(seconds=3.0)

    products: tuple[str, ...] = ()
    texts: Mapping[str, str] = field(default_factory=dict)
    counts: tuple[str, ...] = ()
    audio: str = "flac"
    needs: tuple[str, ...] = ("train",)
    heldout: float = 0.01
    split_by: str = "source_id"
    segments: bool = True
    mask: bool = True
    shards: int = 16
    shard_bytes: int = 1 << 30
    weights: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self):
        if not self.products and not self.texts:
            raise ValueError("products or texts name the fields that records are made of")
        if wrong := [kind for kind in self.texts.values() if kind not in QUESTIONS]:
            raise ValueError(f"texts are {' or '.join(QUESTIONS)}, got {shown(wrong[0])}")
        if self.audio not in ("flac", "original"):
            raise ValueError(f"audio is flac or original, got {shown(self.audio)}")
        check_heldout(self.heldout)
        check_uses(self.needs)
        whole(self.shards, "shards", 1, 1000)
        whole(self.shard_bytes, "shard_bytes", 1 << 16, 1 << 40)

    @property
    def reads(self) -> tuple[str, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        own = ["url", "title", "channel", "about", "file", "source_id", "seconds", "uses", self.split_by]
        own += ["segments"] * self.segments + ["privacy"] * self.mask
        return tuple(dict.fromkeys([*own, *self.products, *self.texts, *self.counts]))

    def run(self, rows: Sequence[Row], context: Context) -> list[Outcome]:
        found: dict[str, Outcome] = {}
        for row in rows:
            denied = [use for use in self.needs if row["uses"].get(use) is not True]
            if denied:
                found[row["id"]] = Dropped(f"licence denies {denied[0]}", str(row["uses"].get("licence", "")))
        left = sorted((row for row in rows if row["id"] not in found), key=lambda row: row["source_id"])
        folder = context.out / f"{PARTIAL}{FOLDER}"
        shutil.rmtree(folder, ignore_errors=True)  # of a run that was killed
        found |= self._write(left, folder, context)
        put_folder(folder, context.out / FOLDER)
        for corpus in sorted((context.out / FOLDER / "data").glob("*.jsonl")):
            index.build(corpus)
        return [found[row["id"]] for row in rows]

    def _write(self, rows: Sequence[Row], folder: Path, context: Context) -> dict[str, Outcome]:
        data, found, taken = folder / "data", dict[str, Outcome](), read_takedown(context.out)
        data.mkdir(parents=True)
        tallies = {row["id"]: Counter[str]() for row in rows}
        heard = Exportable(rows)
        made = {row["id"]: list(self._records(row, heard, tallies[row["id"]])) for row in rows}
        named = {audio["source_id"] for listed in made.values() for one in listed for audio in one["audios"]}
        paths = self._audio([row for row in rows if row["source_id"] in named], data, context.out, found)
        lines: dict[str, list[dict[str, Any]]] = defaultdict(list)
        exported: list[tuple[Row, list[dict[str, Any]]]] = []
        seen: set[str] = set()
        for row in (row for row in rows if row["id"] not in found):
            ids, kept = [], []
            for record in made[row["id"]]:
                located = self._located(record, paths)
                if located is None:
                    tallies[row["id"]]["products without their recording"] += 1
                elif located["id"] in seen:
                    tallies[row["id"]]["products twice"] += 1
                else:
                    seen.add(located["id"])
                    ids.append(located["id"])
                    kept.append(located)
                    name = f"{located['axis'] or 'other'}{WEAK if located.get('weak') else ''}"
                    lines[f"{self._split(row)}-{name}"].append(located)
            tally = dict(sorted(tallies[row["id"]].items()))
            if ids:
                shard = paths.get(row["source_id"], "").partition("#")[0]
                told = {"split": self._split(row), "shard": shard, "records": ids}
                found[row["id"]] = Kept({"exported": told}, {"records": len(ids), **tally})
                exported.append((row, kept))
            else:
                found[row["id"]] = Dropped("no records", ", ".join(f"{n} {what}" for what, n in tally.items()))
        for name, listed in sorted(lines.items()):
            write_rows(data / f"{name}.jsonl", listed)
        axes = sorted(name.removeprefix("train-") for name in lines if name.startswith("train-"))
        write_text(
            folder / "card.md", card(exported, self.counts, len(taken.rows) + len(taken.sources), context.annotators)
        )
        if axes:
            write_text(folder / "curriculum.yaml", curriculum(axes, self.weights, lines))
        return found

    def _records(self, row: Row, heard: Exportable, tally: Counter[str]) -> Iterator[dict[str, Any]]:
        """The records of a row; in "audios" the recordings stand by source id, start and end."""
        for product, name in self._products(row):
            if not isinstance(product, Mapping):
                tally["products malformed"] += 1
                continue
            parts = [heard.part(audio, row) for audio in product.get("audios") or [{}]]
            audios = [part for part in parts if part is not None]
            if len(audios) < len(parts):
                tally["products without their recording"] += 1
                continue
            if len({self._split(heard.rows[audio["source_id"]]) for audio in audios} | {self._split(row)}) > 1:
                tally["products across the split"] += 1
                continue
            record = {key: product[key] for key in TAKEN if product.get(key)}
            if self.mask and (found := masked(record))[1]:
                record = found[0]
                tally["texts masked"] += found[1]
            record = {"axis": "", "task": "", **record, "audios": audios}
            if "messages" in record:
                record["messages"] = with_sounds(record["messages"], len(audios))
            record = {"id": identity.of("record", name, row["source_id"], record), "source": _origin(row), **record}
            record["duration"] = [round(audio["end"] - audio["start"], 3) for audio in audios]
            record |= {"split": self._split(row), "lineage": _lineage(row, product, name)}
            try:
                checked = {**record, "audios": [{**one, "path": one["source_id"]} for one in audios]}
                records.check({key: one for key, one in checked.items() if key != "duration"})
                check_sounds(record.get("messages", ()), len(audios))
            except (ValueError, TypeError, AttributeError):
                tally["products malformed"] += 1
                continue
            yield record

    def _products(self, row: Row) -> Iterator[tuple[Any, str]]:
        for name in self.products:
            listed = row.get(name)
            yield from ((one, name) for one in (listed if isinstance(listed, (list, tuple)) else []))
        for name, kind in self.texts.items():
            given = row.get(name)
            for one in given if isinstance(given, (list, tuple)) else [given]:
                told = one if isinstance(one, Mapping) else {"text": one}
                text = told.get("text")
                if isinstance(text, str) and text.strip():
                    where = {key: told[key] for key in ("segment", "start", "end") if key in told}
                    messages = [
                        {"role": "user", "content": f"<sound>\n{QUESTIONS[kind]}"},
                        {"role": "assistant", "content": text.strip()},
                    ]
                    yield {"axis": "skills", "task": kind, "audios": [where], "messages": messages, **_made(told)}, name

    def _split(self, row: Row) -> str:
        return split_of(row, self.split_by, self.heldout)

    def _audio(self, rows: Sequence[Row], data: Path, out: Path, found: dict[str, Outcome]) -> dict[str, str]:
        """Writes recordings into shards: source id -> path in records; one that cannot be read has failed."""
        groups: dict[str, list[Row]] = defaultdict(list)
        for row in rows:
            groups[f"{self._split(row)}-{int(row['source_id'][:8], 16) % self.shards:03d}"].append(row)
        paths: dict[str, str] = {}
        for prefix, listed in sorted(groups.items()):
            with ShardWriter(data / "shards", prefix, self.shard_bytes, relative_to=data) as shards:
                for row in listed:
                    if row["source_id"] in paths:
                        continue
                    try:
                        name, audio = self._encoded(row, out)
                    except (ValueError, OSError) as error:
                        found[row["id"]] = Failed(said(error).replace(f"{out}{os.sep}", ""))
                        continue
                    paths[row["source_id"]] = shards.add(name, audio)
        return paths

    def _encoded(self, row: Row, out: Path) -> tuple[str, bytes]:
        """(name, bytes) of a recording as it is exported. What is silenced is never exported as it was."""
        path, silences = out / row["file"], row["privacy"]["silences"] if self.mask else []
        if self.audio == "original" and not silences:
            return path.name, path.read_bytes()
        return f"{row['source_id']}.flac", flac(path, row["file"], silences)

    def _located(self, record: dict[str, Any], paths: Mapping[str, str]) -> dict[str, Any] | None:
        if any(audio["source_id"] not in paths for audio in record["audios"]):
            return None
        audios = [
            {"path": paths[one["source_id"]], "start": one["start"], "end": one["end"]} for one in record["audios"]
        ]
        return {**record, "audios": audios, "duration": round(sum(record["duration"]), 3)}


def flac(path: Path, name: str, silences: Sequence[Sequence[float]] = ()) -> bytes:
    """A recording as FLAC, 16 kHz, mono, 16 bits, with silence in [start, end] in seconds; block by block.

    Raises:
        ValueError: it cannot be decoded.
    """
    import soundfile

    made, at = io.BytesIO(), 0
    with (
        warnings.catch_warnings(),
        soundfile.SoundFile(made, "w", SAMPLE_RATE, 1, format="FLAC", subtype="PCM_16") as file,
    ):
        warnings.simplefilter("ignore")
        for block in stream_audio(read_source(path, name), max_seconds=LONGEST, dtype=torch.int16):
            block = block.clone() if silences else block
            for start, end in silences:
                first, last = int(start * SAMPLE_RATE) - at, -int(-end * SAMPLE_RATE) - at
                block[max(0, first) : max(0, last)] = 0
            at += len(block)
            file.write(block.numpy())
    return made.getvalue()


def with_sounds(messages: Any, count: int) -> Any:
    """Messages with a place for each recording: in front of the first question, where they have none."""
    if not isinstance(messages, list) or any(_places(messages, "user")):
        return messages
    made = list(messages)
    for place, one in enumerate(made):
        if isinstance(one, Mapping) and one.get("role") == "user" and isinstance(one.get("content"), str):
            made[place] = {**one, "content": "<sound>\n" * count + one["content"]}
            break
    return made


def check_sounds(messages: Sequence[Mapping[str, Any]], count: int) -> None:
    """
    Raises:
        ValueError: other texts than a user's have places of recordings, as an annotator may write them, or the user's
            are not one for each recording.
    """
    places = _places(messages, "user")
    if len(_places(messages)) > len(places) or len(places) != count or len(set(places) - {"<sound>"}) not in (0, count):
        raise ValueError("a place for each recording, in what the user says")


def _places(messages: Sequence[Any], role: str = "") -> list[str]:
    """The places of recordings in texts of one role, or of all."""
    told = [one for one in messages if isinstance(one, Mapping) and role in ("", one.get("role"))]
    return [place for one in told for place in _PLACE.findall(str(one.get("content")))]


class Exportable:
    """What products may name: recordings by source id, and their segments."""

    def __init__(self, rows: Sequence[Row]):
        self.rows = {row["source_id"]: row for row in rows}
        self.segments = {one["id"]: (row, one) for row in rows for one in row.get("segments") or []}

    def part(self, audio: Any, row: Row) -> dict[str, Any] | None:
        """{"source_id", "start", "end"} of what a product of a row hears; None where there is no such thing."""
        told = audio if isinstance(audio, Mapping) else {"segment": audio}
        of = self.rows.get(told["source_id"]) if "source_id" in told else row
        if "segment" in told:
            of, told = self.segments.get(told["segment"], (None, told))
        if of is None:
            return None
        start, end = told.get("start", 0.0), min(told.get("end", of["seconds"]), of["seconds"])
        return {"source_id": of["source_id"], "start": start, "end": end} if start < end else None


def _origin(row: Row) -> str:
    """Where a recording is from: the host of its address, or its channel."""
    host = row["url"].partition("://")[2].partition("/")[0].rpartition("@")[2].partition(":")[0]
    return host or row.get("channel") or "local"


def _made(text: Mapping[str, Any]) -> dict[str, Any]:
    """How a text was made, as products say it."""
    names = [*([text["annotation"]] if "annotation" in text else []), *text.get("annotations", ())]
    told = {"annotator": text.get("model"), "prompt": text.get("prompt"), "annotations": names}
    return {key: value for key, value in told.items() if value}


def _lineage(row: Row, product: Mapping[str, Any], name: str) -> dict[str, Any]:
    """What a record comes from."""
    about, told = row.get("about") or {}, {"url": row["url"], "source_id": row["source_id"], "product": name}
    told |= {
        "licence": row["uses"].get("licence", ""),
        "channel": row.get("channel") or "",
        "title": mask_text(row.get("title") or "")[0],
    }
    told |= {key: about[key] for key in ("rights_holder", "consent", "page") if about.get(key)}
    told |= {key: product[key] for key in ("annotator", "prompt", "annotations") if product.get(key)}
    flags = (row.get("privacy") or {}).get("flags")
    return told | ({"flags": flags} if flags else {})
