"""Pools of clips with captions that are told by hand, and writers that answer as they are told."""

from __future__ import annotations

import json

from afn_model.curate import identity
from afn_model.curate.stage import Context
from tests.model.curate.stages.heard import context

WRITER = "afn_model.curate.stand_ins.truth:answer"


def clip(name, *captions, start=5.0):
    """A clip of the recording of a name: each caption is of ten seconds."""
    told = [{"start": 10.0 * at, "end": 10.0 * at + 10, "text": text} for at, text in enumerate(captions)]
    place = {"source_id": identity.of(name), "start": start, "end": start + 10.0 * len(captions)}
    return place | {"captions": told, "annotations": [identity.of("caption", name)]}


def row(name, pool):
    return {"id": identity.of("row", name), "source_id": identity.of(name), "pool": pool}


def pool(own, similar=(), dissimilar=()):
    return {"own": own, "similar": list(similar), "dissimilar": list(dissimilar)}


def rules(out) -> Context:
    """With the writer of the rules, which needs no truth."""
    out.mkdir(exist_ok=True)
    (out / "truth.jsonl").touch()
    return context(out)


def saying(out, data) -> Context:
    """With a writer that always says the same."""
    out.mkdir(exist_ok=True)
    (out / "said.json").write_text(json.dumps(data))
    return context(out, call=f"{__name__}:says", options={"path": str(out / "said.json")})


def says(requests, path):
    with open(path, encoding="utf-8") as file:
        data = json.load(file)
    return [data] * len(requests)
