"""Fingerprints of what a run depends on (code, weights, settings), and what differs between two of them."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

from afn_model.files import fingerprint, fingerprint_of
from afn_model.train.curriculum import Stage


def changed_since(stage: Stage, done: Path) -> str:
    """A note for the screen where a finished stage had other settings than now; "" where it had the same."""
    then, now = json.loads(done.read_text())["stage"], as_json(stage)
    return "" if then == now else f", with other settings: {difference(then, now)}"


def as_json(stage: Stage) -> dict[str, Any]:
    """A stage's fields as JSON gives them back, without its layout, which changes no result."""
    epochs = "inf" if math.isinf(stage.epochs) else stage.epochs
    return json.loads(json.dumps({**asdict(stage), "layout": {}, "epochs": epochs}))


@cache
def code_fingerprint() -> str:
    """SHA-256 over the source of the model, its data and its kernels."""
    import afn_kernels

    roots = Path(__file__).parents[1], Path(afn_kernels.__file__).parent
    files = [(root, file) for root in roots for file in sorted(root.rglob("*.py"))]
    return fingerprint_of(file.relative_to(root).as_posix().encode() + file.read_bytes() for root, file in files)


def weights_fingerprint(folder: Path) -> str:
    """SHA-256 over the names and bytes of a folder's weights."""
    files = sorted(folder.rglob("*.safetensors"))
    return fingerprint_of(f"{file.relative_to(folder)} {fingerprint(file)} " for file in files)


def difference(then: Any, now: Any) -> str:
    """The first three keys whose values differ between two descriptions."""
    if not isinstance(then, dict) or not isinstance(now, dict):
        return f"{then!r} then, {now!r} now"
    keys = [key for key in [*then, *(key for key in now if key not in then)] if then.get(key) != now.get(key)]
    return "; ".join(f"{key} was {then.get(key)!r:.60}, is {now.get(key)!r:.60}" for key in keys[:3])
