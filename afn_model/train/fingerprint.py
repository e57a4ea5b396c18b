"""Fingerprints of what a run depends on (code, weights, settings), and what differs between two of them."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, Field, asdict, fields, replace
from functools import cache
from pathlib import Path
from typing import Any

from afn_model.files import fingerprint, fingerprint_of, read_json, write_json
from afn_model.train.curriculum import Stage

# Stage settings that change neither what trains nor which samples come when: --allow-changes takes them.
CHANGEABLE = (
    "lr",
    "rates",
    "layer_decay",
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
# Of them, those that may be raised without being asked for: nothing that was done is undone.
RAISABLE = ("epochs", "steps", "minutes")
# A name for reports changes nothing.
FREE = ("release_name",)
SETTLED = 10**9  # ns since a file's last change after which its fingerprint is remembered


def changed(then: dict[str, Any], stage: Stage) -> dict[str, tuple[Any, Any]]:
    """Settings of a stage that are not those of a checkpoint: name → (then, now).

    A field that the checkpoint does not have yet had its default.
    """
    fresh = {f.name: default_of(f) for f in fields(Stage) if f.name not in then}
    then, now = {**as_json(replace(stage, **fresh)), **then}, as_json(stage)
    differ = [name for name in then if name not in FREE and then[name] != now.get(name)]
    return {name: (then[name], now.get(name)) for name in differ}


def raised(name: str, then: Any, now: Any) -> bool:
    """Whether a stage has only been made longer; no number of steps or minutes is endless."""
    old, new = (math.inf if value in (None, "inf") else value for value in (then, now))
    return name in RAISABLE and new > old


def default_of(field: Field) -> Any:
    return field.default if field.default_factory is MISSING else field.default_factory()


def not_allowed(then: dict[str, Any], stage: Stage, allowed: Iterable[str]) -> str:
    """Says which settings changed that may not, and what can be done; "" where none did."""
    found = changed(then, stage)
    wrong = {name: pair for name, pair in found.items() if name not in allowed and not raised(name, *pair)}
    if not wrong:
        return ""
    remedy = "take another run folder"
    if set(wrong) <= set(CHANGEABLE):
        remedy = f"--allow-changes {','.join(wrong)} goes on with them, another run folder begins anew"
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


def weights_fingerprint(folder: Path, known: Path | None = None) -> str:
    """SHA-256 over the names and bytes of a folder's weights.

    Args:
        folder: with safetensors.
        known: a JSON file of fingerprints; those of files that have not changed since are taken from it.
    """
    files = sorted(folder.rglob("*.safetensors"))
    found = remembered(files, known) if known else {file: fingerprint(file) for file in files}
    return fingerprint_of(f"{file.relative_to(folder)} {found[file]} " for file in files)


def remembered(files: Iterable[Path], known: Path) -> dict[Path, str]:
    """The files' fingerprints, which are kept by path, size, time of change and inode."""
    try:
        before = read_json(known)
    except ValueError:
        before = {}
    found, kept = {}, dict(before)
    for file in files:
        key, state = str(file.resolve()), state_of(file)
        if not (isinstance(before.get(key), list) and before[key][:-1] == state):
            kept[key] = [*state, fingerprint(file)]
        found[file] = kept[key][-1]
        # What is written again within a clock's tick would look the same.
        if state_of(file) != state or time.time_ns() - state[1] < SETTLED:
            del kept[key]
    if kept != before:
        write_json(known, kept)
    return found


def state_of(file: Path) -> list[int]:
    stat = file.stat()
    return [stat.st_size, stat.st_mtime_ns, stat.st_ino]


def start_fingerprint(folder: Path, adapter: str = "", known: Path | None = None) -> str:
    """``weights_fingerprint`` of what a stage starts from, and of the adapter that it goes on from."""
    whole = weights_fingerprint(folder, known)
    return f"{whole} {weights_fingerprint(Path(adapter), known)}" if adapter else whole


def difference(then: Any, now: Any) -> str:
    """The first three keys whose values differ between two descriptions; "" where none does."""
    if then == now:
        return ""
    if not isinstance(then, dict) or not isinstance(now, dict):
        return f"{then!r} then, {now!r} now"
    keys = [key for key in [*then, *(key for key in now if key not in then)] if then.get(key) != now.get(key)]
    return said({key: (then.get(key), now.get(key)) for key in keys})


def said(changes: Mapping[str, tuple[Any, Any]]) -> str:
    """The first three changes in words; of tables the entries that differ."""
    flat: dict[str, tuple[Any, Any]] = {}
    for key, (old, new) in changes.items():
        if isinstance(old, dict) and isinstance(new, dict):
            differ = [entry for entry in {**old, **new} if old.get(entry) != new.get(entry)]
            flat |= {f"{key}.{entry}": (old.get(entry), new.get(entry)) for entry in differ}
        else:
            flat[key] = old, new
    return "; ".join(f"{key} was {old!r:.60}, is {new!r:.60}" for key, (old, new) in list(flat.items())[:3])
