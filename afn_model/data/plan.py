"""What a run trains on and when: the samples of a chunk, how long they are, and which of them share a bin.

A plan is a function of the config, the processor and the chunk's number alone. A chunk is a run of samples of
``Order`` that ends with the epoch at the latest; the bins of an epoch's chunks, one after another, are cut into global
batches, and data-parallel rank r of n takes bins r, r + n, r + 2 n, ... of each. The first chunks are small, each twice
the one before, so that the first batch does not wait for the planning of a long one.

All batches have equally many bins but the last of an epoch, which is what is left. Where it has fewer bins than there
are ranks, the others get empty bins: the loss is a mean over supervised tokens, so a batch of fewer bins is right as it
is, and nothing is repeated or dropped.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from afn_model.audio.frames import SAMPLE_RATE, audio_tokens
from afn_model.data.augment import Augmentation
from afn_model.data.index import Corpus
from afn_model.data.order import Order, Source, cuts
from afn_model.data.packing import pack
from afn_model.data.records import Sample, audios_of, parse_sample
from afn_model.data.speech_checks import check_texts
from afn_model.data.speed import StatesTimesError, sample_at_speed
from afn_model.hashing import key
from afn_model.prompt.conversation import Turn
from afn_model.prompt.processor import AFNextProcessor
from afn_model.storage import shown

SLACK = 0.05  # seconds that a recording, at speed 1, may be longer than the index says
ROUNDED = 1e-3  # seconds that the index, which is in float32, may be off
TOKENS_PER_SECOND = 25
FIRST_CHUNK = 1024  # samples
ON_LONG = ("cut", "drop", "error")
_SHORTEST = 0.1  # seconds of audio below which a sample is left out rather than cut


class TooLong(ValueError):
    """Text that leaves no room in the context."""


class Unwanted(ValueError):
    """A recording longer than it may be, with ``on_long`` drop or error; a text that is wrong at another speed."""


@dataclass(frozen=True)
class DataConfig:
    """What a stage of training reads.

    Args:
        datasets: name → indexed corpus; there may be more than the blend names.
        blend: name → how often each of the dataset's records is seen in an epoch.
        seed: of the order and the packing.
        context: most tokens of a bin.
        bins: bins of a global batch, over all data-parallel ranks; with ``prompts_only``, its samples.
        max_seconds: longest recording.
        chunk: samples planned and packed together at most; chunk c has 1024 · 2^c of them while that is less, and no
            chunk goes on into the next epoch. Bins that do not make a whole step of a chunk are trained on with the
            next one's. Planning takes about 0.3 ms a sample.
        prompts_only: samples in the order of the stream, not packed and without their answers, for methods that
            generate answers.
        bad_share: the loader stops where more of the records than this cannot be used, and more than ten; at 0, where
            any cannot.
        on_long: a sample with a recording longer than ``max_seconds``, or than the context has room for: "cut" cuts
            the recording, "drop" leaves the sample out, "error" stops. Cuts and left out samples are counted.
        records: name → [drawn] int64 numbers of the records that there are; a dataset without has all of its own.
        speeds: name → speed at which a dataset's recordings are played, where that is not 1. Samples whose texts would
            then be wrong are left out, like recordings that are too long.
        augment: noise and rooms for the recordings; None leaves them as they are.
        change: how often the blend has changed before this one.
    """

    datasets: Mapping[str, str | Path]
    blend: dict[str, float]
    seed: int
    context: int
    bins: int
    max_seconds: float
    chunk: int
    prompts_only: bool = False
    bad_share: float = 0.01
    on_long: str = "cut"
    records: Mapping[str, np.ndarray] = field(default_factory=dict)
    speeds: Mapping[str, float] = field(default_factory=dict)
    augment: Augmentation | None = None
    change: int = 0

    def __post_init__(self):
        for name in ("context", "bins", "chunk", "max_seconds"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")
        if not 0 <= self.bad_share <= 1:
            raise ValueError(f"bad_share must be from 0 to 1, got {self.bad_share}")
        if self.on_long not in ON_LONG:
            raise ValueError(f"on_long {self.on_long!r} is none of {', '.join(ON_LONG)}")

    def reblended(self, blend: dict[str, float], change: int) -> DataConfig:
        """The same data after the ``change``-th change of its blend, from 1, in an order of its own from sample 0 on.

        What was read before is not left out, and what was not is not favoured.
        """
        return replace(self, blend=blend, seed=key(self.seed, change), change=change)


@dataclass(frozen=True)
class Position:
    """A place in the stream: where a step begins, in bin ``step`` · bins − ``carried`` of a chunk.

    Args:
        chunk: its number.
        step: of those that end in the chunk or after it.
        carried: bins of the chunk's first step that earlier chunks have left over.
        change: of the blend, whose chunks these are.
    """

    chunk: int = 0
    step: int = 0
    carried: int = 0
    change: int = 0


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
        self.speeds = [config.speeds.get(name, 1.0) for name in self.names]
        self.noise = None if config.augment is None else config.augment.corpus()
        self.chosen = [config.records.get(name) for name in self.names]
        counts = (len(some) if some is not None else len(c) for c, some in zip(self.corpora, self.chosen, strict=True))
        sources = zip(self.names, counts, strict=True)
        self.order = Order(tuple(Source(name, count, config.blend[name]) for name, count in sources), config.seed)
        self._first = cuts(len(self.order), FIRST_CHUNK, config.chunk)  # of the first epoch
        self._later = cuts(len(self.order), config.chunk, config.chunk)

    def span(self, chunk: int) -> range:
        """Global indices of a chunk's samples, all of one epoch."""
        bounds, epoch, number = self._first, 0, chunk
        if chunk >= len(self._first) - 1:
            epoch, number = divmod(chunk - (len(self._first) - 1), len(self._later) - 1)
            bounds, epoch = self._later, epoch + 1
        begin = epoch * len(self.order)
        return range(begin + bounds[number], begin + bounds[number + 1])

    def ends_epoch(self, chunk: int) -> bool:
        """Whether a chunk is an epoch's last."""
        return self.span(chunk).stop % len(self.order) == 0

    @property
    def records(self) -> int:
        """Different records that the blend draws from; with β below 1, over several epochs."""
        return sum(source.records for source in self.order.sources if source.draws)

    def draw(self, index: int) -> tuple[int, int, int]:
        """Dataset, record and visit of the sample at a global index: the v-th time that the record comes, from 0."""
        draw = self.order[index]
        chosen = self.chosen[draw.source]
        return draw.source, draw.record if chosen is None else int(chosen[draw.record]), draw.visit

    def fingerprint(self) -> dict[str, str]:
        """Name of each dataset → SHA-256 of what its index says about it and its tar files, and its speed; of the
        recordings of noise too."""
        found = {}
        for name, corpus, speed in zip(self.names, self.corpora, self.speeds, strict=True):
            found[name] = corpus.fingerprint + (f" at speed {speed:g}" if speed != 1 else "")
        return found if self.noise is None else found | {"recordings of noise": self.noise.fingerprint}

    def name(self, source: int, record: int) -> str:
        """The name of a sample in messages."""
        return f"{self.names[source]}[{record}]"

    def sample(self, source: int, record: int) -> Sample:
        """The sample of a record at the dataset's speed, with the seconds that the index says.

        Raises:
            Unwanted: it states times that would be wrong at that speed.
            ValueError: a record that cannot be read or is not one.
        """
        corpus = self.corpora[source]
        sample = replace(parse_sample(corpus[record], corpus.folder), seconds=corpus.seconds(record))
        try:
            return sample_at_speed(sample, self.speeds[source])
        except StatesTimesError as error:
            raise Unwanted(str(error)) from None


@dataclass(frozen=True)
class DecodeJob:
    """Samples for a worker to decode: [samples] dataset, record, visit, most tokens, most seconds of an audio.

    ``bad`` and ``dropped`` are (name, reason) of samples that the plan left out.
    """

    sources: np.ndarray
    records: np.ndarray
    visits: np.ndarray
    tokens: np.ndarray
    longest: np.ndarray
    bad: list[tuple[str, str]] = field(default_factory=list)
    dropped: list[tuple[str, str]] = field(default_factory=list)

    @staticmethod
    def of(jobs: Sequence[DecodeJob]) -> DecodeJob:
        """Several jobs as one; without any, an empty one."""
        kinds = dict.fromkeys(("sources", "records", "visits", "tokens"), np.int64) | {"longest": np.float64}
        joined = {
            name: np.concatenate([np.zeros(0, dtype), *(getattr(job, name) for job in jobs)])
            for name, dtype in kinds.items()
        }
        bad, dropped = ([one for job in jobs for one in getattr(job, name)] for name in ("bad", "dropped"))
        return DecodeJob(**joined, bad=bad, dropped=dropped)


@dataclass(frozen=True)
class ChunkPlan:
    """The bins of a chunk, in the order to train on them.

    Args:
        chunk: its number.
        sources, records, visits: [samples] dataset, record and visit of each sample, bin after bin.
        tokens: [samples] tokens of each at most.
        longest: [samples] seconds that an audio of it may have.
        supervised: [samples] tokens of each that the loss counts.
        cu: [bins + 1] bin b holds samples cu[b] to cu[b + 1] − 1.
        step: bins of a global batch; whole steps come first, each of bins of like cost, then what is left.
        bad: names of samples that cannot be used, and why.
        dropped: names of samples left out because a recording is too long, and how long.
        error: what ends the run, "" where nothing does.
    """

    chunk: int
    sources: np.ndarray
    records: np.ndarray
    visits: np.ndarray
    tokens: np.ndarray
    longest: np.ndarray
    supervised: np.ndarray
    cu: np.ndarray
    step: int
    bad: list[tuple[str, str]]
    dropped: list[tuple[str, str]] = field(default_factory=list)
    error: str = ""

    @property
    def bins(self) -> int:
        """Bins of the chunk."""
        return len(self.cu) - 1

    def after(self, carried: int) -> ChunkPlan:
        """The plan behind so many bins that other chunks have left over, fewer than a step's.

        The bins that complete their step come first, taken from those that are left over here: all but one of this
        chunk's whole steps stay together, with their bins of like cost.
        """
        head, rest = self.step - carried, self.bins % self.step
        if not carried or self.bins <= head:
            return self
        whole, left = np.arange(self.bins - rest), np.arange(self.bins - rest, self.bins)
        if rest < head:  # one step is cut in two, and its second part is left over
            left = np.concatenate((left, whole[: self.step]))
            whole = whole[self.step :]
        return self._in_order(np.concatenate((left[:head], whole, left[head:])))

    def _in_order(self, bins: np.ndarray) -> ChunkPlan:
        part = np.concatenate([np.arange(self.cu[b], self.cu[b + 1]) for b in bins])
        names = ("sources", "records", "visits", "tokens", "longest", "supervised")
        moved = {name: getattr(self, name)[part] for name in names}
        return replace(self, **moved, cu=np.concatenate(([0], np.cumsum(np.diff(self.cu)[bins]))))

    def job(self, bins: range) -> DecodeJob:
        """Some bins together.

        Samples left out are distributed round-robin over the bins: every data-parallel rank reports its share of them.
        """
        bad, dropped = (
            [one for b in bins for one in left_out[b :: self.bins]] for left_out in (self.bad, self.dropped)
        )
        part = np.concatenate([np.arange(0), *(np.arange(self.cu[b], self.cu[b + 1]) for b in bins)])
        each = (getattr(self, name)[part] for name in ("sources", "records", "visits", "tokens", "longest"))
        return DecodeJob(*each, bad, dropped)

    def supervised_in(self, b: int) -> int:
        """Tokens of a bin that the loss counts."""
        return int(self.supervised[self.cu[b] : self.cu[b + 1]].sum())

    def done(self, bins: int) -> int:
        """Samples consumed with the first ``bins`` bins, left out ones included; all of them with all bins."""
        consumed = int(self.cu[bins])
        for left_out in (self.bad, self.dropped):
            turns, rest = divmod(len(left_out), self.bins)
            consumed += turns * bins + min(rest, bins)
        return consumed


def plan_chunk(blend: Blend, config: DataConfig, processor: AFNextProcessor, chunk: int) -> ChunkPlan:
    """Reads and tokenises the records of a chunk, and packs them by their lengths.

    Args:
        blend: ``Blend(config)``.
        config: what to read.
        processor: counts tokens; nothing is decoded.
        chunk: number of the chunk, from 0.
    """
    kept, bad, dropped = [], [], []
    for index in blend.span(chunk):
        source, record, visit = blend.draw(index)
        name = blend.name(source, record)
        try:
            tokens, longest, supervised = measure(blend.sample(source, record), config, processor)
            kept.append((source, record, visit, tokens, supervised, longest))
        except Unwanted as error:
            dropped.append((name, str(error)))
        except Exception as error:  # whatever a record makes anything raise, it is one bad sample
            bad.append((name, reason(error)))
    each = [np.array([row[i] for row in kept], np.int64) for i in range(5)]
    each.append(np.array([row[5] for row in kept], np.float64))
    if config.prompts_only:
        cu = np.arange(len(kept) + 1)
    else:
        packing = pack(each[3], config.context, seed=key(config.seed, chunk), step=config.bins)
        each, cu = [x[packing.clips] for x in each], packing.cu
    sources, records, visits, tokens, supervised, longest = each
    error = ": ".join(dropped[0]) if dropped and config.on_long == "error" else ""
    left_out = {"bad": bad, "dropped": dropped, "error": error}
    return ChunkPlan(chunk, sources, records, visits, tokens, longest, supervised, cu, config.bins, **left_out)


def reason(error: Exception) -> str:
    """Why a sample is bad, in one line; an error that nothing here raises by itself is given its name."""
    kind = "" if isinstance(error, (ValueError, OSError)) else f"{type(error).__name__}: "
    return kind + shown(" ".join(str(error).split()))


def measure(sample: Sample, config: DataConfig, processor: AFNextProcessor) -> tuple[int, float, int]:
    """(tokens at most, seconds that each of its audios may have, tokens that the loss counts) of a sample.

    Audio is cut to ``config.max_seconds``, and further where it would not fit beside the text. Of several recordings
    the index has the sum alone: the decoder finds those that are too long.

    Raises:
        TooLong: text that leaves no room.
        Unwanted: one recording, too long, and ``config.on_long`` is not "cut".
        ValueError: nothing to learn from, audio of unknown length; for a speech decoder, what ``check_texts`` raises.
    """
    room = min(config.context, processor.max_positions or config.context)
    turns = question(sample.turns) if config.prompts_only else sample.turns
    if config.prompts_only:
        text, supervised = processor.text_tokens(turns, add_generation_prompt=True), 0
    else:
        text, supervised = processor.text_and_supervised(turns)
    if processor.text_positions is not None:
        check_texts(turns, text, processor)
    if text > room:
        raise TooLong(f"{text} tokens of text, but the context is {room}")
    if config.prompts_only:
        _keep_short(sample, config.max_seconds, config)
        return text, config.max_seconds, supervised
    if not any(turn.role == "assistant" for turn in turns):
        raise ValueError("nothing to learn: no assistant message")
    audios = len(audios_of(sample))
    if not audios:
        return text, config.max_seconds, supervised
    if not sample.seconds > 0:
        raise ValueError("the index has no duration of its audio; `afn data index --measure` finds it")
    longest, audio = config.max_seconds, most_tokens(sample, config.max_seconds)
    if text + audio > room:
        longest = min(longest, (room - text - audios) / (TOKENS_PER_SECOND * audios))
        if longest < _SHORTEST:
            raise TooLong(f"{text} tokens of text leave no room for audio in a context of {room}")
        audio = most_tokens(sample, longest)
    _keep_short(sample, longest, config)
    return text + audio, longest, supervised


def _keep_short(sample: Sample, longest: float, config: DataConfig) -> None:
    one = len(set(audios_of(sample))) == 1
    if config.on_long != "cut" and one and sample.seconds > longest + ROUNDED:
        raise Unwanted(too_long(f"a recording of {sample.seconds:.2f} s", longest, config))


def too_long(what: str, longest: float, config: DataConfig) -> str:
    """What is said of a recording that is longer than it may be."""
    limit = f"max_audio, {longest:g} s" if longest == config.max_seconds else f"the {longest:.2f} s its context has"
    return f"{what} is longer than {limit} (on_long: {config.on_long})"


def question(turns: list[Turn]) -> list[Turn]:
    """A conversation up to where the assistant should answer: without its last answer.

    Raises:
        ValueError: nothing but answers.
    """
    asked = list(turns)
    while asked and asked[-1].role == "assistant":
        asked.pop()
    if not asked:
        raise ValueError("nothing is asked")
    return asked


def most_tokens(sample: Sample, longest: float) -> int:
    """The most audio tokens that a sample can have, each of its audios cut to ``longest`` seconds.

    One audio of s seconds: those of min(s + 0.05, longest). Several, mentioned n times in all and each at most m times,
    whose lengths are known only together: 25 · min(m · (s + 0.05 · audios), n · longest) + n. At another speed it is
    0.05 / speed.
    """
    mentions = Counter(audios_of(sample))
    count = mentions.total()
    if count == 1:
        return audio_tokens(math.ceil(min(sample.seconds + SLACK / sample.speed, longest) * SAMPLE_RATE))
    seconds = max(mentions.values()) * (sample.seconds + SLACK / sample.speed * len(mentions))
    return math.floor(TOKENS_PER_SECOND * min(seconds, count * longest)) + count
