"""What is looked at before a stage trains: its settings, what it starts from, and whether all is as it was."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, fields
from functools import cache
from pathlib import Path
from typing import Any

from afn_model.data.index import fingerprint
from afn_model.data.plan import Blend, Feed
from afn_model.train.curriculum import Curriculum, Stage, known
from afn_model.train.grpo import GRPOSettings
from afn_model.train.judge import Endpoint

MODEL = "model"


def check(curriculum: Curriculum, stage: Stage, world: int, sharing: int = 1) -> None:
    """Finds before the first stage what a later one would stumble over.

    Raises:
        ValueError: datasets that are not there or not indexed, steps that the ranks cannot share, settings of GRPO that
            do not exist or are out of range.
    """
    Blend(feed_of(curriculum, stage))
    if world % sharing:
        raise ValueError(f"stage {stage.name}: {world} ranks cannot be cut into groups of {sharing} for a sequence")
    if stage.bins % (world // sharing):
        many = f"{world} ranks" if sharing == 1 else f"{world // sharing} groups of {sharing} ranks"
        raise ValueError(f"stage {stage.name}: {stage.bins} sequences or prompts of a step for {many}")
    if stage.cache_encoder and world > 1:
        raise ValueError(f"stage {stage.name}: cache_encoder is for one rank, and there are {world}")
    known(stage.grpo, (f.name for f in fields(GRPOSettings)), f"stage {stage.name}: grpo")
    judge = stage.grpo.get("judge") or {}
    known(judge, (f.name for f in fields(Endpoint)), f"stage {stage.name}: judge")
    try:
        GRPOSettings(**stage.grpo)
        if judge:
            Endpoint(**judge)
    except (TypeError, ValueError) as error:
        raise ValueError(f"stage {stage.name}: {error}") from None


def changed_since(stage: Stage, done: Path) -> str:
    found, now = json.loads(done.read_text())["stage"], as_json(stage)
    return "" if found == now else f", with other settings: {difference(found, now)}"


def feed_of(curriculum: Curriculum, stage: Stage) -> Feed:
    return Feed(
        datasets=curriculum.datasets,
        blend=stage.blend,
        seed=curriculum.seed,
        context=stage.context,
        bins=stage.bins,
        max_seconds=stage.max_audio,
        chunk=stage.chunk,
        prompts=stage.method == "grpo",
    )


def as_json(stage: Stage) -> dict[str, Any]:
    """A stage's fields as JSON gives them back; its layout aside, which changes no result."""
    epochs = "inf" if math.isinf(stage.epochs) else stage.epochs
    return json.loads(json.dumps({**asdict(stage), "layout": {}, "epochs": epochs}))


def start_folder(stage: Stage, base: Path, out: Path) -> Path:
    """The model a stage starts from.

    Raises:
        ValueError: the earlier stage has not got that far.
    """
    if stage.start.stage == "base":
        return base
    folder = out / stage.start.stage / (MODEL if stage.start.at == 1 else f"{MODEL}-at-{stage.start.at:g}")
    if not (folder / "config.json").is_file():
        raise ValueError(f"stage {stage.name} starts from {stage.start}, but there is no model in {folder}")
    return folder


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
