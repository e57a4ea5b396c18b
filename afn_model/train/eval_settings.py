"""What a stage says of its held-out evaluation; values alone, no tensors."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from afn_model.checks import is_number, is_whole
from afn_model.train.methods import METHODS, VOICE
from afn_model.train.values import known, mapping, shown

METRICS = ("exact", "f1", "wer", "cer", "score")
LOWER = ("loss", "wer", "cer", "mel_distance", "frames", "end")  # of these a smaller one is better


@dataclass(frozen=True)
class EvalSettings:
    """A held-out evaluation of a stage, every so many steps and after the last.

    Of SFT it finds the loss, of DPO also accuracy and margin, of GRPO the reward of greedy answers, of codec the mel
    distance, of talker the loss and its two parts.

    Args:
        data: a dataset of the curriculum, or the path of an indexed corpus; or
        share: of the records of every dataset of the blend that is held back from training, with all records of the
            same recordings.
        every: optimiser steps between evaluations.
        samples: records that an evaluation takes at most, evenly drawn and always the same.
        metrics: scores of greedy answers: exact, f1, wer, cer against the record's last answer, score by its truth.
        max_new_tokens: longest answer; of GRPO that of its own settings, if not given.
        best: what the best evaluation is decided by: loss, or one of ``metrics``; of DPO also accuracy or
            reward_margin, of GRPO reward in place of loss, of codec mel_distance, of talker also frames or end.
        patience: evaluations without a better one after which the stage ends.
        keep_best: the checkpoint of the best one is kept and becomes the stage's model.
    """

    data: str | None = None
    share: float = 0.0
    every: int = 100
    samples: int = 200
    metrics: tuple[str, ...] = ()
    max_new_tokens: int = 96
    best: str = "loss"
    patience: int | None = None
    keep_best: bool = False

    def better(self, value: float, than: float | None) -> bool:
        """Whether an evaluation's value is better than the best so far; a number that is not finite never is."""
        if not math.isfinite(value):
            return False
        return than is None or (value < than if self.best in LOWER else value > than)


def eval_settings(raw: Mapping[str, Any], what: str, method: str = "sft") -> EvalSettings | None:
    """The settings of the ``eval`` of a stage of a method, None where it is empty.

    Raises:
        ValueError: an unknown field, a value out of range, neither ``data`` nor ``share``, or both.
    """
    raw = mapping(raw, what)
    if not raw:
        return None
    known(raw, (f.name for f in fields(EvalSettings)), what)
    given = {key: value for key, value in raw.items() if value is not None}

    def need(condition: bool, key: str, expected: str) -> None:
        if not condition:
            raise ValueError(f"{what}: {key} is {shown(given.get(key))}; {expected} is expected")

    data, share = given.get("data"), given.get("share", 0)
    need(data is None or (isinstance(data, str) and bool(data)), "data", "a dataset's name or a path")
    need(is_number(share) and 0 <= share < 1, "share", "a share from 0 to below 1")
    if (data is None) == (not share):
        raise ValueError(f"{what}: give either data, held-out records of their own, or share, to hold some back")
    for key in ("every", "samples", "max_new_tokens", "patience"):
        need(key not in given or (is_whole(given[key]) and given[key] >= 1), key, "a whole number from 1")
    metrics = given.get("metrics", [])
    listed = isinstance(metrics, (list, tuple)) and all(isinstance(m, str) and m in METRICS for m in metrics)
    need(listed, "metrics", f"a list of {', '.join(METRICS)}")
    need(not metrics or METHODS[method].model != VOICE, "metrics", f"none, since {method} answers nothing,")
    own = METHODS[method].measured
    need(given.get("best", own[0]) in (*own, *metrics), "best", f"{', '.join(own)} or one of the metrics")
    need(isinstance(given.get("keep_best", False), bool), "keep_best", "true or false")
    return EvalSettings(**{"best": own[0], **given, "metrics": tuple(dict.fromkeys(metrics))})
