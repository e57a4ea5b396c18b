"""Fingerprints of what a run depends on (code, weights, settings), and what differs between two of them."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, Field, asdict, fields, replace
from functools import cache
from pathlib import Path
from typing import Any

from afn_model.files import fingerprint, fingerprint_of
from afn_model.train.curriculum import Stage

# Stage settings that change neither what trains nor which samples come when: --allow-changes takes them.
CHANGEABLE = (
    "lr",
    "rates",
    "warmup",
    "schedule",
    "betas",
    "weight_decay",
    "clip",
    "steps",
    "epochs",
    "minutes",
    "bad_share",
    "release_name",
)


def changed(then: dict[str, Any], stage: Stage) -> dict[str, tuple[Any, Any]]:
    """Settings of a stage that are not those of a checkpoint: name → (then, now).

    A field that the checkpoint does not have yet had its default.
    """
    fresh = {f.name: default_of(f) for f in fields(Stage) if f.name not in then}
    then, now = {**as_json(replace(stage, **fresh)), **then}, as_json(stage)
    return {name: (then[name], now.get(name)) for name in then if then[name] != now.get(name)}


def default_of(field: Field) -> Any:
    return field.default if field.default_factory is MISSING else field.default_factory()


def not_allowed(then: dict[str, Any], stage: Stage, allowed: Iterable[str]) -> str:
    """Says which settings changed that may not, and what can be done; "" where none did."""
    found = changed(then, stage)
    wrong = {name: pair for name, pair in found.items() if name not in allowed}
    if not wrong:
        return ""
    remedy = "take another run folder"
    if set(wrong) <= set(CHANGEABLE):
        remedy = f"--allow-changes {','.join(found)} goes on with them, another run folder begins anew"
    return f"{said(wrong)}; {remedy}"


def as_json(stage: Stage) -> dict[str, Any]:
    """A stage's fields as JSON gives them back, without its layout, which changes no result.

    Of its evaluation only what is held back from training counts.
    """
    held = {"share": stage.eval["share"]} if stage.eval.get("share") else {}
    epochs = "inf" if math.isinf(stage.epochs) else stage.epochs
    adapter = Path(stage.adapter).name  # what it holds is part of the start's fingerprint
    return json.loads(json.dumps({**asdict(stage), "layout": {}, "eval": held, "epochs": epochs, "adapter": adapter}))


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


def start_fingerprint(folder: Path, adapter: str = "") -> str:
    """``weights_fingerprint`` of what a stage starts from, and of the adapter that it goes on from."""
    whole = weights_fingerprint(folder)
    return f"{whole} {weights_fingerprint(Path(adapter))}" if adapter else whole


def difference(then: Any, now: Any) -> str:
    """The first three keys whose values differ between two descriptions; "" where none does."""
    if then == now:
        return ""
    if not isinstance(then, dict) or not isinstance(now, dict):
        return f"{then!r} then, {now!r} now"
    keys = [key for key in [*then, *(key for key in now if key not in then)] if then.get(key) != now.get(key)]
    return said({key: (then.get(key), now.get(key)) for key in keys})


def said(changes: Mapping[str, tuple[Any, Any]]) -> str:
    """The first three changes in words."""
    return "; ".join(f"{key} was {old!r:.60}, is {new!r:.60}" for key, (old, new) in list(changes.items())[:3])
