"""The held-out records of a stage: which they are, and that none of their recordings is trained on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from afn_model.data.heldout import check_apart, evenly, split
from afn_model.data.index import Corpus
from afn_model.train.curriculum import Curriculum, Stage
from afn_model.train.eval_settings import eval_settings
from afn_model.train.validate import heard


def held_out(curriculum: Curriculum, stage: Stage) -> dict[str, Any] | None:
    """Datasets, blend and numbers of a stage's held-out records, as ``DataConfig`` takes them; None without any.

    Recordings are heard as they are, and those of a file that the blend has several times, at other speeds, once.

    Raises:
        ValueError: a corpus that is not there or not indexed, or of whose records none can be held back; ``data`` that
            has a speed.
    """
    settings = eval_settings(stage.eval, f"stage {stage.name}: eval", stage.method)
    if settings is None:
        return None
    if settings.data is not None:
        check_speed(curriculum, settings.data, f"stage {stage.name}: eval")
        name = settings.data if settings.data in curriculum.datasets else "eval"
        file = curriculum.datasets.get(settings.data, settings.data)
        corpora = {name: Corpus(file)}
        numbers = {name: np.arange(len(corpora[name]))}
    else:
        files: dict[str | Path, str] = {}
        for name in sorted(stage.blend, key=lambda name: name in curriculum.speeds):
            files.setdefault(curriculum.datasets[name], name)
        corpora = {name: Corpus(file) for file, name in files.items()}
        numbers = {name: split(c, settings.share, curriculum.seed)[1] for name, c in corpora.items()}
    total = sum(map(len, numbers.values()))
    most = {name: -(-len(some) * settings.samples // total) for name, some in numbers.items()}
    records = {name: evenly(some, most[name]) for name, some in numbers.items()}
    datasets = {name: corpus.path for name, corpus in corpora.items()}
    return {"datasets": datasets, "blend": dict.fromkeys(datasets, 1.0), "records": records}


def check_speed(curriculum: Curriculum, data: str, what: str) -> None:
    """ValueError where held-out data are a dataset that is played at another speed."""
    if data in curriculum.speeds:
        raise ValueError(f"{what}: dataset {data} has a speed, but held-out recordings are heard as they are")


def held_sets(curriculum: Curriculum, stage: Stage) -> dict[str, Corpus]:
    """Of each dataset the held-out set that the stage's blend follows; none without ``reblend``.

    Raises:
        ValueError: a corpus that is not there or not indexed, or has a speed.
    """
    held = stage.reblend.get("held", {})
    for name, file in held.items():
        check_speed(curriculum, file, f"stage {stage.name}: reblend: {name}")
    return {name: Corpus(curriculum.datasets.get(file, file)) for name, file in sorted(held.items())}


def held_fingerprint(curriculum: Curriculum, stage: Stage) -> dict[str, str]:
    """What ``Blend.fingerprint`` says of datasets, of the held-out sets that the stage's blend follows."""
    return {f"{name}, held out": corpus.fingerprint for name, corpus in held_sets(curriculum, stage).items()}


def check_held_out(curriculum: Curriculum, stage: Stage) -> None:
    """Looks for held-out recordings in what a stage trains on.

    Raises:
        ValueError: some are there, or there are no held-out records.
    """
    settings = eval_settings(stage.eval, f"stage {stage.name}: eval", stage.method)
    found = held_out(curriculum, stage)
    apart = {f"reblend: {name}": corpus for name, corpus in held_sets(curriculum, stage).items()}
    if settings is not None and found is not None and settings.data is not None:
        apart["eval"] = Corpus(*found["datasets"].values())
    trained = {name: Corpus(curriculum.datasets[name]) for name in heard(curriculum, stage)} if apart else {}
    for what, corpus in apart.items():
        try:
            check_apart(trained, corpus)
        except ValueError as error:
            raise ValueError(f"stage {stage.name}: {what}: {error}") from None
