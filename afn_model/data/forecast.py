"""What a stage will read, before it begins: samples, tokens and optimiser steps, and what is left out or cut."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from afn_model.data.index import Corpus
from afn_model.data.order import Source, permute
from afn_model.data.packing import pack
from afn_model.data.plan import ROUNDED, DataConfig, TooLong, Unwanted, measure
from afn_model.data.records import audios_of, parse_sample
from afn_model.data.speed import StatesTimesError, sample_at_speed
from afn_model.hashing import key
from afn_model.prompt.processor import AFNextProcessor

READ = 2_000  # records of a dataset that are tokenised; of larger ones evenly drawn
FEW_STEPS = 20  # optimiser steps below which a stage hardly learns


@dataclass(frozen=True)
class Forecast:
    """The size of a stage. Durations are counted over every record; tokens and steps are estimated.

    Args:
        records, records_with_audio, hours: of the datasets that the blend draws from, each record once.
        samples_per_epoch: by the weights of the blend.
        tokens_per_epoch: estimated, after cutting and dropping.
        steps_per_epoch: optimiser steps, estimated.
        epochs: that the stage runs, where a number of steps ends it earlier too; infinite where only a clock ends it.
        samples, tokens, optimiser_steps: of the whole stage; of one epoch where only a clock ends it.
        step_size, step_unit: what a whole step holds: ``batch_tokens`` "tokens", or ``batch_prompts`` "prompts".
        max_audio: seconds that a recording may have.
        on_long: what happens to longer ones: "cut", "drop" or "error".
        long_records: records longer than that; of one with several recordings the mean counts.
        long_share, lost_share: their share of the records with audio; the share of all seconds beyond ``max_audio``.
        too_long: estimated records whose text does not fit the context.
        no_duration: records with audio of which the index has no duration: they cannot be used.
        invalid: estimated other records that cannot be used.
    """

    records: int
    records_with_audio: int
    hours: float
    samples_per_epoch: int
    tokens_per_epoch: int
    steps_per_epoch: int
    epochs: float
    samples: int
    tokens: int
    optimiser_steps: int
    step_size: int
    step_unit: str
    max_audio: float
    on_long: str
    long_records: int
    long_share: float
    lost_share: float
    too_long: int
    no_duration: int
    invalid: int

    def __str__(self) -> str:
        """Lines to read before the first step, without the warnings."""
        lines = [
            f"{self.records:,} records, {self.records_with_audio:,} with audio, {self.hours:,.2f} hours",
            f"an epoch: {self.samples_per_epoch:,} samples, about {self.tokens_per_epoch:,} tokens, "
            f"{_many(self.steps_per_epoch, 'step')} of up to {self.step_size:,} {self.step_unit}",
        ]
        if math.isfinite(self.epochs):
            each = self.samples / self.optimiser_steps
            lines.append(
                f"the stage: {self.epochs:,.3g} epochs, {self.samples:,} samples, about {self.tokens:,} tokens, "
                f"{_many(self.optimiser_steps, 'optimiser step')} of about {each:,.3g} samples"
            )
        return "\n".join(lines)

    @property
    def warnings(self) -> list[str]:
        """One line for each thing that is likely not to be meant."""
        found = []
        if self.optimiser_steps < FEW_STEPS and math.isfinite(self.epochs):
            remedy = "batch_tokens" if self.step_unit == "tokens" else "batch_prompts"
            found.append(
                f"only {_many(self.optimiser_steps, 'optimiser step')}: a model hardly learns in fewer than "
                f"{FEW_STEPS}; lower {remedy} ({self.step_size:,}) or raise epochs ({self.epochs:,.3g})"
            )
        if self.long_records:
            what = {"cut": "are cut to it", "drop": "are left out", "error": "end the run"}[self.on_long]
            found.append(
                f"{self.long_records:,} records ({self.long_share:.1%} of those with audio) are longer than max_audio "
                f"{self.max_audio:g} s and {what}: {self.lost_share:.1%} of all seconds lie beyond it"
            )
        if self.no_duration:
            found.append(
                f"{self.no_duration:,} records with audio have no duration and cannot be used; "
                "`afn data index --measure` finds it"
            )
        if self.too_long:
            found.append(f"about {self.too_long:,} records have more text than the context has room for")
        if self.invalid:
            found.append(f"about {self.invalid:,} records cannot be used; `afn data index` says why")
        return found


@dataclass
class _Part:
    """What one dataset was found to be: counts of its records and seconds, and the lengths of those that were read."""

    draws: int
    records: int
    with_audio: int
    seconds: float
    long: int
    lost: float
    lengths: np.ndarray  # [read and usable] tokens
    unusable: Counter  # of the records: "no duration", "too long", "dropped", "invalid"

    @property
    def kept(self) -> float:
        """Usable samples of an epoch."""
        return self.draws * max(0.0, 1 - self.unusable.total() / self.records)


def forecast(
    corpora: Mapping[str, Corpus | str | Path],
    weights: Mapping[str, float],
    processor: AFNextProcessor,
    *,
    context: int,
    max_audio: float,
    epochs: float = 1.0,
    steps: int | None = None,
    batch_tokens: int = 0,
    batch_prompts: int = 0,
    chunk: int = 65_536,
    on_long: str = "cut",
    speeds: Mapping[str, float] | None = None,
) -> Forecast:
    """How long a stage is, from the index and at most 2,000 records of each dataset.

    Args:
        corpora: name → dataset; there may be more than the weights name.
        weights: name → β of the blend.
        processor: counts the tokens of text.
        context, max_audio, epochs, steps, chunk, on_long: as of a stage.
        batch_tokens: tokens of an optimiser step, a multiple of ``context``; or
        batch_prompts: prompts of one, for GRPO.
        speeds: name → speed at which a dataset's recordings are played, where that is not 1.

    Raises:
        ValueError: a dataset that is not there, has no index, or changed since; a blend without samples.
    """
    drop = "drop" if on_long == "drop" else "cut"
    config = DataConfig({}, {}, 0, context, 1, max_audio, chunk, prompts_only=batch_prompts > 0, on_long=drop)
    opened = {name: _opened(corpora[name]) for name, weight in weights.items() if weight > 0}
    config = replace(config, speeds=speeds or {})
    parts = [_part(Source(name, len(c), weights[name]), c, config, processor) for name, c in opened.items()]
    samples = sum(part.draws for part in parts)
    if not samples:
        raise ValueError(f"the blend gives no samples: {dict(weights)}")
    lengths = _pooled(parts)
    kept = sum(part.kept for part in parts)
    tokens = kept * float(lengths.mean()) if len(lengths) else 0.0
    bins = kept if batch_prompts else kept * len(pack(lengths, context, seed=0)) / max(len(lengths), 1)
    share = bins / samples / (batch_prompts or max(batch_tokens // context, 1))  # of a step, of one sample
    each = max(1, math.ceil(samples * share - 1e-9))
    whole = math.inf if math.isinf(epochs) else math.ceil(epochs * each - 1e-9)
    taken = int(min(whole, steps or (each if math.isinf(whole) else whole)))
    run = epochs if taken == whole or steps is None else taken / each
    times = run if math.isfinite(run) else 1.0
    with_audio, seconds = sum(part.with_audio for part in parts), sum(part.seconds for part in parts)
    long = sum(part.long for part in parts)
    unusable = sum((part.unusable for part in parts), Counter())
    return Forecast(
        records=sum(part.records for part in parts),
        records_with_audio=with_audio,
        hours=seconds / 3600,
        samples_per_epoch=samples,
        tokens_per_epoch=round(tokens),
        steps_per_epoch=each,
        epochs=run,
        samples=round(times * samples),
        tokens=round(times * tokens),
        optimiser_steps=taken,
        step_size=batch_prompts or batch_tokens,
        step_unit="prompts" if batch_prompts else "tokens",
        max_audio=max_audio,
        on_long=on_long,
        long_records=long,
        long_share=long / with_audio if with_audio else 0.0,
        lost_share=sum(part.lost for part in parts) / seconds if seconds else 0.0,
        too_long=unusable["too long"],
        no_duration=unusable["no duration"],
        invalid=unusable["invalid"],
    )


def _many(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def _opened(corpus: Corpus | str | Path) -> Corpus:
    return corpus if isinstance(corpus, Corpus) else Corpus(corpus)


def _part(source: Source, corpus: Corpus, config: DataConfig, processor: AFNextProcessor) -> _Part:
    total, lengths, unusable, recordings = len(corpus), [], Counter(), {}
    speed = config.speeds.get(source.name, 1.0)
    read = min(total, READ)
    for i in range(read):
        record = i if total == read else permute(i, total, key(0))
        try:
            sample = replace(parse_sample(corpus[record], corpus.folder), seconds=corpus.seconds(record))
            sample = sample_at_speed(sample, speed)
            several = len(dict.fromkeys(audios_of(sample)))
            if several:
                recordings[record] = several
            if several and not sample.seconds:
                continue
            lengths.append(measure(sample, config, processor)[0])
        except TooLong:
            unusable["too long"] += 1
        except (Unwanted, StatesTimesError):
            unusable["dropped"] += 1
        except Exception:  # as in planning: whatever a record makes anything raise
            unusable["invalid"] += 1
    unusable = Counter({kind: round(count * total / read) for kind, count in unusable.items()})
    unusable["no duration"] = corpus.facts.unmeasured
    mean = sum(recordings.values()) / len(recordings) if recordings else 1.0
    with_audio, seconds, long, lost, at = unusable["no duration"], 0.0, 0, 0.0, 0
    for durations in corpus.all_seconds():
        many = np.full(len(durations), mean)
        if total == read:
            many = np.array([recordings.get(at + i, 1) for i in range(len(durations))], np.float64)
        durations = durations / speed
        beyond = durations - config.max_seconds * many
        with_audio, seconds = with_audio + int((durations > 0).sum()), seconds + float(durations.sum())
        long, lost = long + int((beyond > ROUNDED).sum()), lost + float(beyond[beyond > ROUNDED].sum())
        at += len(durations)
    return _Part(source.draws, total, with_audio, seconds, long, lost, np.array(lengths, np.int64), unusable)


def _pooled(parts: Sequence[_Part]) -> np.ndarray:
    """Lengths of the datasets in the proportion in which an epoch draws them: all of a small epoch's, each once."""
    most = min(1.0, 10 * READ / max(sum(part.kept for part in parts), 1.0))
    return np.concatenate([np.resize(p.lengths, round(most * p.kept) if len(p.lengths) else 0) for p in parts])
