"""A base model for the world: its tokenizer, and lessons for the short start of encoder and language model."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch.utils.data import DataLoader, IterableDataset

from afn_model.audio.frames import SAMPLE_RATE, audio_tokens
from afn_model.bootstrap.fit import Lesson
from afn_model.bootstrap.lessons import audio_batch, written
from afn_model.data.index import Corpus
from afn_model.data.order import Order, Source
from afn_model.prompt.processor import AFNextProcessor
from afn_model.world.build import DETAILS, LABELS, frame_labels, medley, texts, timeline
from afn_model.world.scene import world_bank

CLIPS = 16  # medleys in a batch
RECORDS = 10  # records in a batch of written timelines


class WorldLessons(IterableDataset):
    """Endless lessons from the world's training split.

    Args:
        kind: "medley" (audio full of events, no text) or "written" (records whose audio tokens are replaced by the
            names of what is heard, now and then wrong).
        processor: makes the batches.
        seed: of everything.
        corpora: indexed corpora for the written lessons.
    """

    def __init__(self, kind: str, processor: AFNextProcessor, seed: int, corpora: Sequence[Path] = ()):
        super().__init__()
        self.make = {"medley": self.medleys, "written": self.written}[kind]
        self.processor, self.seed, self.corpora = processor, seed, corpora

    def __iter__(self) -> Iterator[Lesson]:
        return self.make()

    def feed(self) -> Iterator[Lesson]:
        """The lessons, made ahead of time by a second process."""
        return iter(DataLoader(self, batch_size=None, num_workers=1, prefetch_factor=8))

    def medleys(self) -> Iterator[Lesson]:
        bank = world_bank("train")
        for first in itertools.count(0, CLIPS):
            clips = [medley(self.seed, "train", i, bank=bank) for i in range(first, first + CLIPS)]
            labels = [frame_labels(clip.events, audio_tokens(len(clip.pcm))) for clip in clips]
            heard = torch.cat([torch.stack(sets, dim=1) for sets in labels])
            yield Lesson(audio_batch([torch.from_numpy(clip.pcm).float() / 32768 for clip in clips]), heard)

    def written(self) -> Iterator[Lesson]:
        corpora = [Corpus(path) for path in self.corpora]
        order = Order(tuple(Source(str(c.path), c.facts.records) for c in corpora), self.seed)
        names = {name: 1 + i for i, name in enumerate((*LABELS, *DETAILS))} | {".": 0}
        ids = torch.tensor([self.processor.tokenizer.encode(name).ids[0] for name in names_in_order(names)])
        generator = torch.Generator().manual_seed(self.seed)
        for first in itertools.count(0, RECORDS):
            talks, heard = [], []
            for index in range(first, first + RECORDS):
                draw = order[index]
                talk, frames = silent(corpora[draw.source][draw.record])
                talks.append(talk)
                heard += [names[name] for name in frames]
            batch = self.processor(talks, training=True)
            yield written(batch, torch.tensor(heard, dtype=torch.int64), ids, self.processor.sound_id, generator)


def names_in_order(names: dict[str, int]) -> list[str]:
    return sorted(names, key=names.__getitem__)


def silent(record: dict) -> tuple[list[dict], list[str]]:
    """The record's messages with silence for its recordings, and what should be heard in every audio token."""
    lengths = record.get("duration") or []
    clips = [torch.zeros(round(s * SAMPLE_RATE)) for s in (lengths if isinstance(lengths, list) else [lengths])]
    frames = [n for i, c in enumerate(clips) for n in timeline(record, audio=i, frames=audio_tokens(len(c)))]
    rest, messages = iter(clips), []
    for message in record["messages"]:
        parts = []
        for number, piece in enumerate(split_sounds(message["content"])):
            parts += [{"type": "audio", "audio": next(rest), "sampling_rate": SAMPLE_RATE}] if number else []
            parts += [{"type": "text", "text": piece}] if piece else []
        messages.append({"role": message["role"], "content": parts})
    return messages, frames


def split_sounds(text: str) -> list[str]:
    """The text around each placeholder; the line break after a recording that stands alone goes, as in a prompt."""
    for number in range(1, 10):
        text = text.replace(f"<sound-{number}>", "<sound>")
    return text.replace("<sound>\n", "<sound>").split("<sound>")


def tokenizer_texts(seed: int) -> list[str]:
    """What a tokenizer for the world learns from, in a random order."""
    found = texts()
    random.Random(seed).shuffle(found)
    return found
