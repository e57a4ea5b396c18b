"""Decoding: a job of the plan becomes a micro-batch. Workers keep no state, so that any of them can take any job."""

from __future__ import annotations

import copy
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol, runtime_checkable

import torch
from torch.utils.data import Dataset, get_worker_info

from afn_model.audio.frames import SAMPLE_RATE
from afn_model.data.augment import AugmentedLoad, Augmenter
from afn_model.data.micro_batch import MicroBatch
from afn_model.data.plan import SLACK, Blend, DataConfig, DecodeJob, Unwanted, question, reason, too_long
from afn_model.data.records import Sample, audios_of
from afn_model.data.speech_checks import check_sound
from afn_model.hashing import key, text_key
from afn_model.prompt.batch import IGNORED, Prepared
from afn_model.prompt.processor import AFNextProcessor
from afn_model.prompt.transport import Failure, Parcel
from afn_model.storage import NoAnswerError

_OUTAGES = (10.0, 30.0)  # seconds to wait where storage gives no answer, beside the attempts of each reading
_LEFT_OUT = "the rest is left out"  # what decoding warns of where it cuts a recording


@runtime_checkable
class SampleReader(Protocol):
    """A processor that reads a sample by itself, its answer too, for a method without packed sequences."""

    def read_sample(self, sample: Sample, longest: float, seed: int) -> Prepared:
        """What is trained on of a sample whose recordings may have ``longest`` seconds; ``seed`` is of all draws."""
        ...


class SampleDecoder(Dataset):
    """Decodes jobs; records are parsed and tokenised here once more, since packing needed their lengths before.

    Args:
        blend: the datasets.
        config: what to read.
        processor: of the model; its samples are int16.
    """

    def __init__(self, blend: Blend, config: DataConfig, processor: AFNextProcessor):
        self.blend, self.config, self.processor = blend, config, copy.copy(processor)
        self.processor.max_positions = None  # the plan has already kept each sample within the context
        self.augmenter = None if config.augment is None else Augmenter(config.augment, blend.noise)

    def __getitem__(self, job: DecodeJob) -> Parcel | Failure:
        try:
            with one_thread():
                return Parcel.of(self.decode(job), shared=get_worker_info() is not None)
        except ValueError as error:
            return Failure(str(error))

    def decode(self, job: DecodeJob) -> MicroBatch:
        """The micro-batch of a job.

        Raises:
            NoAnswerError: storage gives no answer, not a minute later either.
        """
        samples, prepared, bad, cut, dropped = [], [], list(job.bad), 0, list(job.dropped)
        each = (job.sources, job.records, job.visits, job.tokens, job.longest)
        for source, record, visit, tokens, longest in zip(*(x.tolist() for x in each), strict=True):
            name = self.blend.name(source, record)
            try:
                sample = self.blend.sample(source, record)
                seed = key(self.config.seed, text_key(self.blend.names[source]), record, visit)
                made, shortened = self.patiently(sample, tokens, longest, seed)
                if shortened and self.config.on_long != "cut":
                    raise Unwanted(too_long("a recording", longest, self.config))
                prepared.append(made)
                samples.append(sample)
                cut += shortened
            except NoAnswerError:  # no fault of the sample: a run that goes on from here has it
                raise
            except Unwanted as error:
                dropped.append((name, str(error)))
            except Exception as error:  # as in planning: one bad sample
                bad.append((name, reason(error)))
        axes = [sample.axis for sample in samples]
        if self.config.prompts_only:
            return MicroBatch(None, samples, axes, bad, cut, dropped, prepared)
        if not samples:
            ids = torch.tensor([self.processor.stop_ids[0]] * 2)
            prepared, axes = [Prepared(ids, torch.full((2,), IGNORED), [])], [""]
        return MicroBatch(self.processor.pack(prepared, ragged=True), samples, axes, bad, cut, dropped)

    def patiently(self, sample: Sample, tokens: int, longest: float, seed: int = 0) -> tuple[Prepared, int]:
        """``prepare``, again where storage gave no answer."""
        for wait in _OUTAGES:
            try:
                return self.prepare(sample, tokens, longest, seed)
            except NoAnswerError:
                time.sleep(wait)
        return self.prepare(sample, tokens, longest, seed)

    def prepare(self, sample: Sample, tokens: int, longest: float, seed: int = 0) -> tuple[Prepared, int]:
        """A sample with its audio, changed as ``seed`` draws it, and how many of its recordings were cut."""
        prompts = self.config.prompts_only
        with warnings.catch_warnings(record=True) as caught:  # warnings would come again in every epoch
            warnings.simplefilter("always")
            turns = question(sample.turns) if prompts else sample.turns
            options: dict[str, Any] = {"training": not prompts, "add_generation_prompt": prompts or None}
            if sample.speed != 1 or self.augmenter is not None:
                options["load_with"] = AugmentedLoad(sample.speed, self.augmenter, seed)
            if isinstance(self.processor, SampleReader):
                prepared = self.processor.read_sample(sample, longest, seed)
            else:
                prepared = self.processor.prepare(turns, **options, max_seconds=longest)
        if not prompts:
            each = dict(zip(audios_of(sample), prepared.clips, strict=True))
            seconds = sum(clip.numel() for clip in each.values()) / SAMPLE_RATE
            if seconds > sample.seconds + SLACK / sample.speed * len(each) or len(prepared.ids) > tokens:
                raise ValueError(f"{seconds:.2f} s of audio, but the index says {sample.seconds:.2f} s")
            if self.processor.text_positions is not None:
                check_sound(turns, prepared.clips)
        return prepared, sum(_LEFT_OUT in str(warning.message) for warning in caught)


@contextmanager
def one_thread() -> Iterator[None]:
    """One thread, as worker processes have: sums are then rounded alike with and without workers."""
    threads = torch.get_num_threads()
    if threads != 1:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        if threads != 1:
            torch.set_num_threads(threads)
