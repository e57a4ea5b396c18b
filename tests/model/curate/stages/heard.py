"""A recording with known events, and annotators that know them, as stages get them."""

import json

import numpy as np
import soundfile

from afn_model.curate import identity
from afn_model.curate.annotators import annotators_of
from afn_model.curate.plan import Plan
from afn_model.curate.stage import Context

EVENTS = (
    ("word", "seven", 1.0, 1.5, "man", "a"),
    ("sound", "bell", 3.0, 4.0, "", ""),
    ("word", "yes", 9.7, 10.5, "woman", "b"),  # its middle is in the second segment
    ("word", "no", 12.0, 12.4, "man", "a"),
    ("sound", "siren", 20.5, 22.0, "", ""),
)
TRUTH = "afn_model.curate.stand_ins.truth:answer"


def row(out, events=EVENTS, seconds=25.0, name="x"):
    """A row up to segments, of a recording that is written, with its truth beside it."""
    (out / "recordings").mkdir(parents=True, exist_ok=True)
    source = identity.of(name)
    rng = np.random.default_rng(int(source[:8], 16))
    soundfile.write(out / f"recordings/{source}.flac", rng.normal(0, 0.1, round(16_000 * seconds)), 16_000)
    listed = [dict(zip(("kind", "label", "start", "end", "voice", "speaker"), one, strict=True)) for one in events]
    with (out / "truth.jsonl").open("a") as file:
        file.write(json.dumps({"source_id": source, "events": listed}) + "\n")
    spans = [{"kind": "speech", "start": one[2], "end": one[3]} for one in events if one[0] == "word"]
    grid = [(at, min(at + 10.0, seconds)) for at in (0.0, 10.0, 20.0) if at < seconds]
    segments = [{"id": identity.segment_id(source, *one), "start": one[0], "end": one[1], "spans": []} for one in grid]
    told = {"file": f"recordings/{source}.flac", "source_id": source, "seconds": seconds}
    return {"id": identity.of("row", name), **told, "spans": spans, "segments": segments}


def with_captions(name, captions):
    """A row with segments of ten seconds and their captions."""
    source, seconds = identity.of(name), 10.0 * len(captions)
    grid = [(10.0 * at, 10.0 * at + 10.0) for at in range(len(captions))]
    segments = [{"id": identity.segment_id(source, *one), "start": one[0], "end": one[1]} for one in grid]
    merged = [
        {"segment": one["id"], "text": text, "annotation": f"a{one['start']:g}"}
        for one, text in zip(segments, captions, strict=True)
    ]
    told = {"source_id": source, "file": f"recordings/{source}.flac", "seconds": seconds}
    return {"id": identity.of("row", name), **told, "segments": segments, "merged": merged}


def context(out, names=("captioner", "transcriber", "diariser", "writer"), **told):
    """With annotators that know the truth, or those that ``told`` describes."""
    annotator = told or {"call": TRUTH, "options": {"truth": str(out / "truth.jsonl")}}
    return Context(out, "0", annotators_of(Plan("p", (), annotators=dict.fromkeys(names, annotator)), out, "0"))
