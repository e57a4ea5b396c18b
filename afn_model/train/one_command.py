"""A curriculum of one stage for recordings at hand, with settings that follow from them."""

from __future__ import annotations

import copy
import math
import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from afn_model.data.forecast import FEW_STEPS
from afn_model.data.index import Corpus, build
from afn_model.data.order import permute
from afn_model.data.plan import DataConfig, measure, most_tokens
from afn_model.data.records import check, parse_sample
from afn_model.hashing import key
from afn_model.prompt.processor import AFNextProcessor
from afn_model.storage import expand, is_pattern, is_url
from afn_model.train.values import to_yaml

READ = 1_000  # records of a corpus that are tokenised
STEP_OF = 64  # tokens that a context is a multiple of
LARGEST_CONTEXT, LARGEST_BATCH = 8192, 131_072  # tokens
MOST_AUDIO = 300.0  # seconds of a recording
STEPS, SAMPLES = 100, (8, 64)  # optimiser steps aimed at, and samples of one
EVALUATIONS = 10
# Learning rates of methods, with LoRA and without: starting points, not findings.
RATES = {"sft": (1e-4, 1e-5), "dpo": (1e-5, 1e-6)}
EPOCHS = {"sft": 3.0, "dpo": 1.0}


@dataclass(frozen=True)
class Wishes:
    """What a command line says; None is left to the data.

    Args:
        method: sft or dpo.
        lora: rank of adapters of the language model; 0 trains adaptor and language model whole.
        epochs, steps, lr, batch_tokens, context: as of a stage.
        eval: held-out records: a share, or the path of a corpus.
    """

    method: str = "sft"
    lora: int = 0
    epochs: float | None = None
    steps: int | None = None
    lr: float | None = None
    batch_tokens: int | None = None
    context: int | None = None
    eval: str | None = None


@dataclass(frozen=True)
class Measured:
    """Of the records of all corpora: how many there are, their mean and largest tokens, and the longest audio."""

    records: int
    mean: float
    largest: int
    seconds: float


def corpora_of(pattern: str, *, may_index: bool) -> dict[str, str]:
    """Name → absolute path of the corpora that a path or a pattern means; an index is made where there is none.

    Args:
        pattern: of JSON Lines files, or another corpus that ``afn data index`` reads.
        may_index: False on one of several ranks, which must not all write it.

    Raises:
        ValueError: no such file, two of one name, or records that are not valid.
    """
    lines = is_pattern(pattern) and re.search(r"\.jsonl?$", pattern)
    files = expand(pattern) if lines else [pattern]
    if not files:
        raise ValueError(f"--data {pattern}: no such files")
    found: dict[str, str] = {}
    for file in files:
        name = re.sub(r"[^\w-]+", "-", Path(file).name.partition(".")[0]).strip("-") or "data"
        if name in found:
            raise ValueError(f"--data {pattern}: {found[name]} and {file} have one name; write a curriculum for them")
        path = file if is_url(file) or is_pattern(file) else os.path.abspath(file)
        try:
            Corpus(path)
        except ValueError:
            if not may_index:
                raise
            build(path, check=check, measure=True)
        found[name] = path
    return found


def measured(corpora: dict[str, str], processor: AFNextProcessor, method: str) -> Measured:
    """What a stage's sizes follow from, by every duration and the text of at most 1,000 records of each corpus.

    Raises:
        ValueError: no record that the method can use.
    """
    most = DataConfig({}, {}, 0, 1 << 40, 1, math.inf, 1, prompts_only=method != "sft")
    processor_all = _unlimited(processor)
    tokens, records, seconds, why = [], 0, 0.0, "no records"
    for path in corpora.values():
        corpus = Corpus(path)
        total, read = len(corpus), min(len(corpus), READ)
        records += total
        seconds = max([seconds, *(float(part.max()) for part in corpus.all_seconds())])
        for i in range(read):
            number = i if read == total else permute(i, total, key(0))
            try:
                sample = replace(parse_sample(corpus[number], corpus.folder), seconds=corpus.seconds(number))
                text, _, _ = measure(sample, most, processor_all)
                if method != "sft":
                    if not (sample.chosen and sample.rejected):
                        raise ValueError("no pair: chosen and rejected are expected")
                    text += max(_length(processor, sample.chosen), _length(processor, sample.rejected)) + 1
                    text += most_tokens(sample, math.inf) if sample.seconds else 0
                tokens.append((total / read, text))
            except (ValueError, TypeError) as error:
                why = f"{path}[{number}]: {error}"
    if not tokens:
        raise ValueError(f"no record that {method} can learn from: {why}")
    mean = sum(weight * count for weight, count in tokens) / sum(weight for weight, _ in tokens)
    return Measured(records, mean, max(count for _, count in tokens), seconds)


def one_stage(corpora: dict[str, str], processor: AFNextProcessor, wishes: Wishes, ranks: int = 1) -> dict[str, Any]:
    """The curriculum, as its YAML has it.

    The context holds the longest sample, up to 8,192 tokens or the model's positions. A step has as many samples as
    make about 100 steps of the stage, from 8 to 64 and up to 131,072 tokens; at least one sequence for each rank.

    Raises:
        ValueError: no record to learn from.
    """
    found = measured(corpora, processor, wishes.method)
    positions = processor.max_positions or LARGEST_CONTEXT
    context = wishes.context or min(_up(found.largest, STEP_OF), LARGEST_CONTEXT, positions)
    rate = wishes.lr or RATES[wishes.method][0 if wishes.lora else 1]
    epochs = wishes.epochs or EPOCHS[wishes.method]
    samples = found.records * epochs
    if wishes.steps is not None and wishes.epochs is None:
        epochs = math.inf
    least, most = SAMPLES
    each = min(max(samples / (wishes.steps or STEPS), least), most)
    if samples / each < FEW_STEPS:  # a small corpus: rather small steps than few
        each = max(samples / FEW_STEPS, 1)
    stage: dict[str, Any] = {"method": "dpo"} if wishes.method == "dpo" else {}
    stage |= {"trains": "language_model" if wishes.lora else ["adaptor", "language_model"]}
    if wishes.lora:
        stage["lora"] = {"rank": wishes.lora, "alpha": 2 * wishes.lora}
    stage |= {"max_audio": float(max(1, min(math.ceil(found.seconds), MOST_AUDIO))), "context": context}
    if wishes.method == "sft":
        tokens = min(each * min(found.mean, context), LARGEST_BATCH)
        stage["batch_tokens"] = wishes.batch_tokens or max(1, int(tokens / context / ranks)) * ranks * context
        steps = samples * min(found.mean, context) / stage["batch_tokens"]
    else:
        stage["batch_prompts"] = max(1, round(each / ranks)) * ranks
        steps = samples / stage["batch_prompts"]
    stage |= {"epochs": epochs} | ({} if wishes.steps is None else {"steps": wishes.steps})
    stage |= {"lr": rate, "blend": dict.fromkeys(corpora, 1)}
    if wishes.eval is not None:
        every = max(1, round((wishes.steps or steps) / EVALUATIONS))
        stage["eval"] = {**_held(wishes.eval), "every": every, "keep_best": True}
    name = "dpo" if wishes.method == "dpo" else "lora" if wishes.lora else "finetune"
    return {"seed": 0, "datasets": dict(corpora), "stages": {name: stage}}


def yaml_of(curriculum: dict[str, Any]) -> str:
    """Its YAML, with a line on what to do with it."""
    head = "# Made by afn train --data; edit it and run: afn train THIS_FILE --base DIR --out RUN\n"
    return head + to_yaml(curriculum)


def _held(text: str) -> dict[str, Any]:
    try:
        return {"share": float(text)}
    except ValueError:
        return {"data": text if is_url(text) else os.path.abspath(text)}


def _up(count: int, to: int) -> int:
    return max(-(-count // to) * to, 4 * to)


def _length(processor: AFNextProcessor, text: str) -> int:
    return len(processor.tokenizer.encode(text, add_special_tokens=False))


def _unlimited(processor: AFNextProcessor) -> AFNextProcessor:
    other = copy.copy(processor)
    other.max_positions = None
    return other
