"""Fingerprints of what a run depends on: code, weights, settings; and what differs between two of them."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

from afn_model.files import fingerprint
from afn_model.train.curriculum import Stage


def changed_since(stage: Stage, done: Path) -> str:
    found, now = json.loads(done.read_text())["stage"], as_json(stage)
    return "" if found == now else f", with other settings: {difference(found, now)}"


def as_json(stage: Stage) -> dict[str, Any]:
    """A stage's fields as JSON gives them back; its layout aside, which changes no result."""
    epochs = "inf" if math.isinf(stage.epochs) else stage.epochs
    return json.loads(json.dumps({**asdict(stage), "layout": {}, "epochs": epochs}))


@cache
def code_fingerprint() -> str:
    """SHA-256 over the source of the model, its data and its kernels."""
    import afn_kernels

    digest = hashlib.sha256()
    for root in (Path(__file__).parents[1], Path(afn_kernels.__file__).parent):
        for file in sorted(root.rglob("*.py")):
            digest.update(file.relative_to(root).as_posix().encode() + file.read_bytes())
    return digest.hexdigest()


def weights_fingerprint(folder: Path) -> str:
    """SHA-256 over the names and bytes of a folder's weights."""
    files = sorted(folder.rglob("*.safetensors"))
    return hashlib.sha256("".join(f"{f.relative_to(folder)} {fingerprint(f)} " for f in files).encode()).hexdigest()


def difference(found: Any, now: Any) -> str:
    """The first few keys that two descriptions do not share."""
    if not isinstance(found, dict) or not isinstance(now, dict):
        return f"{found!r} then, {now!r} now"
    keys = [key for key in [*found, *(key for key in now if key not in found)] if found.get(key) != now.get(key)]
    return "; ".join(f"{key} was {found.get(key)!r:.60}, is {now.get(key)!r:.60}" for key in keys[:3])
