"""What rank 0 finds out for all ranks before anything is trained: finished stages, missing files, what will be done."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import TypeVar

from afn_distributed import process as processes
from afn_distributed.process import Process
from afn_model.data.check import missing_recordings
from afn_model.data.index import Corpus
from afn_model.data.plan import Blend
from afn_model.files import read_json
from afn_model.prompt.processor import AFNextProcessor
from afn_model.scoring.own import OwnReward
from afn_model.train.checkpoint import finished
from afn_model.train.curriculum import Curriculum, Stage
from afn_model.train.eval_settings import EvalSettings
from afn_model.train.fingerprint import changed, difference, not_allowed, said
from afn_model.train.grpo_settings import GRPOSettings
from afn_model.train.held_records import check_held_out, held_fingerprint, held_out, held_sets
from afn_model.train.outlook import outlook
from afn_model.train.reblend import Reblend
from afn_model.train.validate import data_config, heard
from afn_model.train.values import made

DONE = "done.json"
MOST_NAMED = 20  # missing recordings
POLL = 0.25  # seconds
T = TypeVar("T")


class Refused(ValueError):
    """What rank 0 has raised, on the other ranks: said once is enough."""


def agreed(process: Process, work: Callable[[], T]) -> T:
    """What ``work`` returns on rank 0, on every rank; an error there ends all of them.

    The other ranks ask the store whether rank 0 is done: a collective would time out before it has looked at all files
    of large corpora.

    Raises:
        ValueError, OSError: of ``work``, on rank 0.
        Refused: the same on the other ranks.
    """
    found, error, store = None, None, process.store
    call = 0 if store is None else store.add(f"agreed/{process.rank}", 1)
    if process.rank == 0:
        try:
            found = work()
        except (ValueError, OSError) as caught:
            error = caught
        finally:
            if store is not None:
                store.set(f"agreed/call/{call}", "")
    elif store is not None:
        while not store.check([f"agreed/call/{call}"]):
            time.sleep(POLL)
    found, text = processes.broadcast_object((found, None if error is None else str(error)))
    if error is not None:
        raise error
    if text is not None:
        raise Refused(text)
    return found


def together(process: Process, work: Callable[[], T]) -> T:
    """What ``work`` returns on this rank; an error on one rank ends all of them, and is said once.

    Raises:
        ValueError, OSError: of ``work``, on the first rank that has one, with its number where that is not 0.
        Refused: the same on the other ranks.
    """
    found, error = None, None
    try:
        found = work()
    except (ValueError, OSError) as caught:
        error = caught
    texts = processes.gather_objects(None if error is None else str(error)) if process.world_size > 1 else [error]
    first = next((rank for rank, text in enumerate(texts) if text is not None), None)
    if first is None:
        return found  # pyright: ignore[reportReturnType]
    if process.rank == first and error is not None:
        raise error if first == 0 else ValueError(f"rank {first}: {error}") from error
    raise Refused(f"rank {first}: {texts[first]}")


def announce(text: str, show: bool = True) -> None:
    if show:
        print(text, flush=True)


def warn(what: str, found: Sequence[str], *, strict: bool) -> None:
    """Warns of what is found.

    Raises:
        ValueError: something is, and ``strict``.
    """
    if found and strict:
        raise ValueError(f"{what}: {'; '.join(found)}")
    for text in found:
        warnings.warn(f"{what}: {text}", stacklevel=2)


def finished_stages(
    stages: Sequence[Stage], out: Path, allowed: Collection[str] = (), curriculum: Curriculum | None = None
) -> set[str]:
    """Names of the stages that are finished with the settings of now.

    Args:
        stages: to look for.
        out: run folder.
        allowed: settings that may have changed.
        curriculum: of the stages, to compare seed and datasets too.

    Raises:
        ValueError: one is finished with other settings, another seed or other data; settings that may change need a
            checkpoint to go on from; one is finished that starts from one that would now go on.
    """
    done, longer = set(), set()
    for stage in stages:
        file = out / stage.name / DONE
        if not file.is_file():
            continue
        facts = read_json(file)
        if curriculum is not None:
            seeds = {"seed": facts.get("seed")}, {"seed": curriculum.seed}
            data = Blend(data_config(curriculum, stage)).fingerprint() | held_fingerprint(curriculum, stage)
            data = facts.get("data"), data
            if wrong := difference(*seeds) or difference(*data):
                raise ValueError(f"{file.parent}: finished with other data: {wrong}; take another run folder")
        then = facts.get("stage", {})
        if wrong := not_allowed(then, stage, allowed):
            raise ValueError(f"{file.parent}: finished with other settings: {wrong}")
        found = changed(then, stage)
        if stage.start.stage in longer:
            what = f"{stage.start.stage} as it was, which would now go on"
            raise ValueError(f"{file.parent}: started from {what}: move this folder away, or take another run folder")
        if not found:
            done.add(stage.name)
            continue
        if not finished(file.parent / "checkpoints"):
            wrong = f"finished with other settings ({said(found)}), and there is no checkpoint to go on from"
            raise ValueError(f"{file.parent}: {wrong}; remove the folder to begin the stage anew")
        longer.add(stage.name)
    return done


def importable(stage: Stage) -> None:
    """ValueError where a function of one's own that a stage may ask cannot be imported."""
    settings = made(GRPOSettings, stage.grpo, f"stage {stage.name}: grpo")
    for function in dict.fromkeys(settings.functions):
        try:
            OwnReward(function).check(settings.reward_timeout)
        except ValueError as error:
            raise ValueError(f"stage {stage.name}: {error}") from None


def prepare(curriculum: Curriculum, stages: Sequence[Stage], base: Path, *, show: bool, strict: bool) -> None:
    """Says of every stage what it will do, and looks for what it needs.

    Raises:
        ValueError: recordings that are not there, a context that the model has no positions for, a reward function that
            cannot be imported, or with ``strict`` a warning.
    """
    if not stages:
        return
    processor = AFNextProcessor.from_pretrained(base)
    for stage in stages:
        most = processor.max_positions
        if most is not None and stage.context > most:
            raise ValueError(f"stage {stage.name}: context {stage.context} is more than the model's {most} positions")
        if stage.method == "grpo":
            importable(stage)
    names = dict.fromkeys(name for stage in stages for name in heard(curriculum, stage))
    corpora = {name: Corpus(curriculum.datasets[name]) for name in names}
    held = {stage.name: found for stage in stages if (found := held_out(curriculum, stage)) is not None}
    corpora |= {name: Corpus(file) for found in held.values() for name, file in found["datasets"].items()}
    for stage in stages:
        corpora |= {f"{stage.name}, {name}, held out": corpus for name, corpus in held_sets(curriculum, stage).items()}
    missing = missing_recordings(corpora)
    if missing:
        more = f"; and {len(missing) - MOST_NAMED:,} more" if len(missing) > MOST_NAMED else ""
        raise ValueError(f"{len(missing):,} recordings are missing: {'; '.join(missing[:MOST_NAMED])}{more}")
    for stage in stages:
        check_held_out(curriculum, stage)
        found = outlook(curriculum, stage, processor)
        for line in found.lines:
            announce(f"{stage.name}: {line}", show)
        if stage.name in held:
            count, every = (
                sum(map(len, held[stage.name]["records"].values())),
                stage.eval.get("every", EvalSettings.every),
            )
            announce(f"{stage.name}: held out: {count:,} records, evaluated every {every:,} steps", show)
        if stage.reblend:
            rule, every = stage.reblend["rule"], stage.reblend.get("every", Reblend.every)
            announce(f"{stage.name}: blend: measured by held-out losses every {every:,} steps, rule {rule}", show)
        warn(stage.name, found.warnings, strict=strict)


def cores() -> int:
    """CPU cores for each rank of this machine; more workers would only wait for each other."""
    here = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, here // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))
