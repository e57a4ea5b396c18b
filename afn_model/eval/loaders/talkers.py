"""Open formats for what the paper's tables leave out: SegLST and STM (who says what), RTTM and UEM (who speaks when),
JSON Lines and DCASE's tables (which sounds are there when).

Sources: fgnt/meeteval (SegLST), NIST's sclite and md-eval (STM, RTTM, UEM), DCASE task 4 (tables).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from afn_model.audio.recording import Audio, measured_seconds
from afn_model.checks import shown
from afn_model.eval.items import Item, ItemClip
from afn_model.eval.loaders.files import Files, field, read_json, read_lines, read_table

SUFFIXES = (".wav", ".flac", ".mp3", ".ogg")
IGNORED = "ignore_time_segment_in_scoring"  # STM's text of a part that is not scored
Row = dict[str, Any]  # of SegLST: {session_id, speaker, start_time, end_time, words}


def multi_talker(files: Files) -> Iterator[Item]:
    """Sessions of SegLST or STM files, one item each; a session with empty ``words`` alone is one where nobody speaks.

    An item's ``extra`` has ``segments`` (rows of SegLST) and ``seconds`` of the recording; its answer is the transcript
    that is right, speakers numbered in order of appearance.
    """
    rows = [row for path in files.all("segments") for row in (_stm if path.suffix == ".stm" else _seglst)(path)]
    for session, found in _by(rows, "session_id"):
        yield _session(files, session, [row for row in found if row["words"].strip()], spoken=True)


def diarisation(files: Files) -> Iterator[Item]:
    """Sessions of RTTM files; those that a UEM file has beside them may have no turns at all, and are scored in its
    regions. ``extra`` as of ``multi_talker``, and ``regions``; the answer has a line for each turn."""
    rows = [row for path in files.all("turns") for row in _rttm(path)]
    regions = dict[str, list[tuple[float, float]]]()
    for path in sorted(files.folder.glob(str(files.names.get("regions", "*.uem")))):
        for where, (name, _, start, end) in _columns(path, 4):
            regions.setdefault(name, []).append((_number(start, where), _number(end, where)))
    turns = dict(_by(rows, "session_id"))
    if regions and (extra := sorted(set(turns) - set(regions))):
        raise ValueError(f"{files.folder}: {', '.join(extra[:3])} have turns and no region in the UEM files")
    for session in regions or turns:
        yield _session(files, session, turns.get(session, []), spoken=False, regions=regions.get(session))


def event_captions(files: Files) -> Iterator[Item]:
    """Recordings with events: JSON Lines {id, audio, events: [{label, start, end}]}, or DCASE's tables {filename,
    onset, offset, event_label}, in which a recording without events has a row with empty fields.

    An item's choices are all labels of the files; ``extra`` has ``events`` and ``seconds``.
    """
    found = dict[str, tuple[str, list[Row]]]()
    for path in files.all("events"):
        for name, audio, events in (_json_events if path.suffix == ".jsonl" else _dcase)(path):
            found.setdefault(name, (audio, []))[1].extend(events)
    labels = tuple(sorted({event["label"] for _, events in found.values() for event in events}))
    for name, (audio, events) in found.items():
        events.sort(key=lambda event: event["start"])
        path = files.audio(audio, "audio", "wav")
        answer = "\n".join(f"{one['label']}: {one['start']:.3f}-{one['end']:.3f}" for one in events) or "none"
        seconds = _seconds(path, max((one["end"] for one in events), default=0.0))
        yield Item(
            name,
            clips=(ItemClip(path),),
            choices=labels,
            answer=answer,
            references=(answer,),
            groups={"events": str(len(events)) if len(events) < 6 else "6 and more"} if events else {},
            extra={"events": events, "seconds": seconds},
        )


def _session(files: Files, session: str, rows: list[Row], *, spoken: bool, regions: Any = None) -> Item:
    rows = sorted(rows, key=lambda row: row["start_time"])
    order = {row["speaker"]: 0 for row in rows}
    order = {speaker: number for number, speaker in enumerate(order, 1)}
    answer = _transcript(rows, order) if spoken else _times(rows, order)
    tried = [files.audio(session + suffix, "wav", "audio") for suffix in SUFFIXES]
    path = next((one for one in tried if Path(one).is_file()), tried[0])
    ends = [row["end_time"] for row in rows] + [end for _, end in regions or ()]
    overlap = any(b["start_time"] < a["end_time"] for a, b in pairwise(rows) if a["speaker"] != b["speaker"])
    return Item(
        session,
        clips=(ItemClip(path),),
        answer=answer,
        references=(answer,),
        groups={"speakers": str(len(order)), "overlap": "yes" if overlap else "no"} if rows else {},
        extra={"segments": rows, "seconds": _seconds(path, max(ends, default=0.0)), "regions": regions},
    )


def _transcript(rows: Sequence[Row], order: Mapping[str, int]) -> str:
    parts, last = [], None
    for row in rows:
        parts += [f"[Speaker {order[row['speaker']]}]"] * (row["speaker"] != last) + [row["words"].strip()]
        last = row["speaker"]
    return " ".join(parts)


def _times(rows: Sequence[Row], order: Mapping[str, int]) -> str:
    return "\n".join(f"[Speaker {order[row['speaker']]}] {row['start_time']:.3f}-{row['end_time']:.3f}" for row in rows)


def _seconds(path: str, least: float) -> float:
    """Of the recording; of one that is absent or cannot be read, so many."""
    try:
        return measured_seconds(Audio(path))
    except ValueError:
        return least


def _by(rows: Iterable[Row], name: str) -> list[tuple[str, list[Row]]]:
    found = dict[str, list[Row]]()
    for row in rows:
        found.setdefault(row[name], []).append(row)
    return list(found.items())


def _seglst(path: Path) -> Iterator[Row]:
    rows = read_json(path)
    if not isinstance(rows, list):
        raise ValueError(f"{path}: SegLST is a list of segments, got {shown(rows)}")
    for number, row in enumerate(rows, 1):
        where, words = f"{path}, segment {number}", field(row, "words", f"{path}, segment {number}")
        session, speaker = (str(field(row, name, where, (str, int))) for name in ("session_id", "speaker"))
        start, end = (_number(field(row, name, where, (int, float, str)), where) for name in ("start_time", "end_time"))
        yield _segment(session, speaker, start, end, words, where)


def _stm(path: Path) -> Iterator[Row]:
    """``file channel speaker start end <label> words``; what is not scored is left out."""
    for where, (session, _, speaker, start, end, *said) in _columns(path, 5, most=6):
        words = said[0] if said else ""
        if words.startswith("<"):
            words = words.partition(">")[2].strip()
        if words.lower() != IGNORED:
            yield _segment(session, speaker, _number(start, where), _number(end, where), words, where)


def _rttm(path: Path) -> Iterator[Row]:
    """``SPEAKER file channel start duration <NA> <NA> speaker <NA> <NA>``; other types of lines are passed over."""
    for where, (kind, session, _, start, length, *rest) in _columns(path, 8):
        if kind == "SPEAKER":
            begin = _number(start, where)
            yield _segment(session, rest[2], begin, round(begin + _number(length, where), 6), "", where)


def _segment(session: str, speaker: str, start: float, end: float, words: str, where: str) -> Row:
    if not 0 <= start <= end:
        raise ValueError(f"{where}: a segment from {start:g} to {end:g} s; 0 <= start <= end is expected")
    return {"session_id": session, "speaker": speaker, "start_time": start, "end_time": end, "words": words}


def _columns(path: Path, least: int, most: int = 0) -> Iterator[tuple[str, list[str]]]:
    """Fields of each line, the last of ``most`` with all that follows; lines of ``;;`` are comments."""
    for number, line in enumerate(path.read_text("utf-8-sig").splitlines(), 1):
        if not line.strip() or line.startswith(";;"):
            continue
        columns = line.split(None, most - 1) if most else line.split()
        if len(columns) < least:
            raise ValueError(f"{path}, line {number}: {least} fields are expected, got {len(columns)}")
        yield f"{path}, line {number}", columns


def _number(value: Any, where: str) -> float:
    try:
        found = float(value)
    except ValueError:
        found = math.nan
    if not math.isfinite(found):
        raise ValueError(f"{where}: a number of seconds is expected, got {shown(value)}")
    return found


def _json_events(path: Path) -> Iterator[tuple[str, str, list[Row]]]:
    for number, row in enumerate(read_lines(path), 1):
        where = f"{path}, line {number}"
        events = []
        for one in field(row, "events", where, list):
            start, end = (field(one, name, where, (int, float)) for name in ("start", "end"))
            events.append(_event(field(one, "label", where), start, end, where))
        yield str(field(row, "id", where, (str, int))), field(row, "audio", where), events


def _dcase(path: Path) -> Iterator[tuple[str, str, list[Row]]]:
    for number, row in enumerate(read_table(path, sep="\t"), 2):
        where = f"{path}, line {number}"
        name, label = field(row, "filename", where), field(row, "event_label", where)
        start, end = (field(row, column, where) for column in ("onset", "offset"))
        events = [_event(label, _number(start, where), _number(end, where), where)] if label else []
        yield name, name, events


def _event(label: str, start: float, end: float, where: str) -> Row:
    if not 0 <= start <= end:
        raise ValueError(f"{where}: an event from {start:g} to {end:g} s; 0 <= start <= end is expected")
    return {"label": label, "start": float(start), "end": float(end)}
