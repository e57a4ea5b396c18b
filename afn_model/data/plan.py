"""What a run trains on and when: the samples of a chunk, how long they are, and which of them share a bin.

A plan is a function of the config, the processor and the chunk's number alone. A chunk is a run of samples of
``Order``; its bins are cut into global batches, and data-parallel rank r of n takes the r-th n-th of each. The first
chunks are small, each twice the one before, so that the first batch does not wait for the planning of a long one.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from afn_model.audio.frames import SAMPLE_RATE, audio_tokens
from afn_model.data.index import Corpus
from afn_model.data.order import Order, Source
from afn_model.data.packing import pack
from afn_model.data.records import Sample, audios_of, parse_sample
from afn_model.files import fingerprint_of
from afn_model.hashing import key
from afn_model.prompt.conversation import Turn
from afn_model.prompt.processor import AFNextProcessor

SLACK = 0.05  # seconds that a recording may be longer than the index says
_TOKENS_PER_SECOND = 25
_FIRST_CHUNK = 1024
_SHORTEST = 0.1  # seconds of audio below which a sample is left out rather than cut


@dataclass(frozen=True)
class DataConfig:
    """What a stage of training reads.

    Args:
        datasets: name → indexed .jsonl file; there may be more than the blend names.
        blend: name → how often each of the dataset's records is seen in an epoch.
        seed: of the order and the packing.
        context: most tokens of a bin.
        bins: bins of a global batch, over all data-parallel ranks; with ``prompts_only``, its samples.
        max_seconds: longest recording; longer ones are cut.
        chunk: samples planned and packed together; chunk c has min(1024 · 2^c, chunk) of them. Its last step may be
            short and its last bin is hardly ever full: some 30 steps' worth of samples or more keep that below 2 %.
            Planning takes about 0.3 ms a sample.
        prompts_only: samples in the order of the stream, neither decoded nor packed, for methods that generate answers.
        bad_share: the loader stops where more of the samples than this cannot be used.
    """

    datasets: dict[str, Path]
    blend: dict[str, float]
    seed: int
    context: int
    bins: int
    max_seconds: float
    chunk: int
    prompts_only: bool = False
    bad_share: float = 0.01

    def __post_init__(self):
        for name in ("context", "bins", "chunk", "max_seconds"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")
        if not 0 <= self.bad_share <= 1:
            raise ValueError(f"bad_share must be from 0 to 1, got {self.bad_share}")

    def first(self, chunk: int) -> int:
        """Global index of a chunk's first sample."""
        small = max(0, math.ceil(math.log2(self.chunk / _FIRST_CHUNK)))
        return _FIRST_CHUNK * (2 ** min(chunk, small) - 1) + max(0, chunk - small) * self.chunk


@dataclass(frozen=True)
class Position:
    """A place in the stream: a step of a chunk."""

    chunk: int = 0
    step: int = 0


class Blend:
    """The datasets that a config blends and the order of their samples.

    Raises:
        ValueError: a dataset that is not there or has no index, a blend that names nothing or gives no samples.
    """

    def __init__(self, config: DataConfig):
        unknown = sorted(set(config.blend) - set(config.datasets))
        if unknown:
            raise ValueError(f"the blend names {', '.join(unknown)}; the datasets are {', '.join(config.datasets)}")
        if not config.blend:
            raise ValueError(f"the blend names none of the datasets {', '.join(config.datasets)}")
        self.names = sorted(config.blend)
        self.corpora = [Corpus(config.datasets[name]) for name in self.names]
        sources = zip(self.names, self.corpora, strict=True)
        self.order = Order(
            tuple(Source(name, len(corpus), config.blend[name]) for name, corpus in sources), config.seed
        )

    def fingerprint(self) -> dict[str, str]:
        """Name of each dataset → SHA-256 of what its index says about it."""
        facts = [json.dumps(asdict(corpus.facts), sort_keys=True) for corpus in self.corpora]
        return {name: fingerprint_of([text]) for name, text in zip(self.names, facts, strict=True)}

    def name(self, source: int, record: int) -> str:
        """The name of a sample in messages."""
        return f"{self.names[source]}[{record}]"

    def sample(self, source: int, record: int) -> Sample:
        """The sample of a record, with the seconds that the index says.

        Raises:
            ValueError: a record that cannot be read or is not one.
        """
        corpus = self.corpora[source]
        return replace(parse_sample(corpus[record], corpus.path.parent), seconds=corpus.seconds(record))


@dataclass(frozen=True)
class DecodeJob:
    """Samples for a worker to decode: [samples] dataset, record, most tokens, most seconds of an audio; bad ones."""

    sources: np.ndarray
    records: np.ndarray
    tokens: np.ndarray
    longest: np.ndarray
    bad: list[tuple[str, str]]


@dataclass(frozen=True)
class ChunkPlan:
    """The bins of a chunk, in the order to train on them.

    Args:
        chunk: its number.
        sources, records: [samples] dataset and record of each sample, bin after bin.
        tokens: [samples] tokens of each at most.
        longest: [samples] seconds that an audio of it may have.
        cu: [bins + 1] bin b holds samples cu[b] to cu[b + 1] − 1.
        step: bins of a global batch.
        bad: names of samples left out, and why.
    """

    chunk: int
    sources: np.ndarray
    records: np.ndarray
    tokens: np.ndarray
    longest: np.ndarray
    cu: np.ndarray
    step: int
    bad: list[tuple[str, str]]

    @property
    def steps(self) -> int:
        """Global steps of the chunk, the last of which may be short."""
        return -(-(len(self.cu) - 1) // self.step)

    def job(self, first: int, end: int) -> DecodeJob:
        """Bins ``first`` to ``end`` − 1 together; those past the last are empty.

        Samples left out are distributed round-robin over the bins: every data-parallel rank reports its share of them.
        """
        bad = [bad for b in range(first, end) for bad in self.bad[b :: self.steps * self.step]]
        first, end = (int(self.cu[min(b, len(self.cu) - 1)]) for b in (first, end))
        part = slice(first, end)
        return DecodeJob(self.sources[part], self.records[part], self.tokens[part], self.longest[part], bad)

    def done(self, step: int) -> int:
        """Samples of the chunk consumed after this step, left out ones included; all of them after the last step."""
        end = (step + 1) * self.step
        turns, rest = divmod(len(self.bad), self.steps * self.step)
        return int(self.cu[min(end, len(self.cu) - 1)]) + turns * end + min(rest, end)


def plan_chunk(blend: Blend, config: DataConfig, processor: AFNextProcessor, chunk: int) -> ChunkPlan:
    """Reads and tokenises the records of a chunk, and packs them by their lengths.

    Args:
        blend: ``Blend(config)``.
        config: what to read.
        processor: counts tokens; nothing is decoded.
        chunk: number of the chunk, from 0.
    """
    kept, bad = [], []
    for index in range(config.first(chunk), config.first(chunk + 1)):
        draw = blend.order[index]
        try:
            tokens, longest = measure(blend.sample(draw.source, draw.record), config, processor)
            kept.append((draw.source, draw.record, tokens, longest))
        except (ValueError, OSError) as error:
            bad.append((blend.name(draw.source, draw.record), str(error)))
    sources, records, tokens = (np.array([row[i] for row in kept], np.int64) for i in range(3))
    longest = np.array([row[3] for row in kept], np.float64)
    if config.prompts_only:
        cu = np.arange(len(kept) + 1)
    else:
        packing = pack(tokens, config.context, seed=key(config.seed, chunk), step=config.bins)
        sources, records, tokens, longest = (x[packing.clips] for x in (sources, records, tokens, longest))
        cu = packing.cu
    return ChunkPlan(chunk, sources, records, tokens, longest, cu, config.bins, bad)


def measure(sample: Sample, config: DataConfig, processor: AFNextProcessor) -> tuple[int, float]:
    """(tokens at most, seconds that each of its audios may have) of a sample.

    Audio is cut to ``config.max_seconds``, and further where it would not fit beside the text.

    Raises:
        ValueError: nothing to learn from, audio of unknown length, text that leaves no room.
    """
    room = min(config.context, processor.max_positions or config.context)
    turns = question(sample.turns) if config.prompts_only else sample.turns
    text = processor.text_tokens(turns, training=not config.prompts_only, add_generation_prompt=config.prompts_only)
    if text > room:
        raise ValueError(f"{text} tokens of text, but the context is {room}")
    if config.prompts_only:
        return text, config.max_seconds
    if not any(turn.role == "assistant" for turn in turns):
        raise ValueError("nothing to learn: no assistant message")
    audios = len(audios_of(sample))
    if not audios:
        return text, config.max_seconds
    if not sample.seconds > 0:
        raise ValueError("the index has no duration of its audio; `afn data index --measure` finds it")
    longest, audio = config.max_seconds, most_tokens(sample, config.max_seconds)
    if text + audio > room:
        longest = min(longest, (room - text - audios) / (_TOKENS_PER_SECOND * audios))
        if longest < _SHORTEST:
            raise ValueError(f"{text} tokens of text leave no room for audio in a context of {room}")
        audio = most_tokens(sample, longest)
    return text + audio, longest


def question(turns: list[Turn]) -> list[Turn]:
    """A conversation up to where the assistant should answer: without its last answer."""
    return turns[:-1] if turns[-1].role == "assistant" else turns


def most_tokens(sample: Sample, longest: float) -> int:
    """The most audio tokens that a sample can have, each of its audios cut to ``longest`` seconds.

    One audio of s seconds: those of min(s + 0.05, longest). Several, mentioned n times in all and each at most m times,
    whose lengths are known only together: 25 · min(m · (s + 0.05 · audios), n · longest) + n.
    """
    mentions = Counter(audios_of(sample))
    count = mentions.total()
    if count == 1:
        return audio_tokens(math.ceil(min(sample.seconds + SLACK, longest) * SAMPLE_RATE))
    seconds = max(mentions.values()) * (sample.seconds + SLACK * len(mentions))
    return math.floor(_TOKENS_PER_SECOND * min(seconds, count * longest)) + count
