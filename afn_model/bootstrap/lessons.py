"""What a base model learns from: medleys of events, and records with written timelines in the place of their audio."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from afn_model.audio.frames import SAMPLE_RATE, audio_tokens, padded_width
from afn_model.bootstrap.fit import Lesson
from afn_model.data.index import Corpus
from afn_model.data.order import Order, Source
from afn_model.prompt.batch import Batch
from afn_model.prompt.processor import AFNextProcessor
from afn_model.world.medley import frame_labels, medley, timeline
from afn_model.world.scene import WORLD, Style

MEDLEYS = 16  # in a batch
MISHEARD = 0.1  # share of audio tokens written wrong in a timeline


class Lessons(IterableDataset):
    """Endless lessons from the synthetic world's training split, a function of the arguments alone.

    Args:
        kind: "medley" (audio full of events, no text) or "written" (records whose audio tokens are replaced by the
            names of what is heard, now and then wrong).
        processor: makes the batches.
        seed: of everything.
        corpora: indexed corpora for the written lessons.
        style: of the medleys; its labels and details are what is heard.
        records: in a batch of written lessons.
    """

    def __init__(
        self,
        kind: str,
        processor: AFNextProcessor,
        seed: int,
        corpora: Sequence[Path] = (),
        *,
        style: Style = WORLD,
        records: int = 10,
    ):
        super().__init__()
        self.make = {"medley": self.medleys, "written": self.written}[kind]
        self.processor, self.seed, self.corpora, self.style, self.records = processor, seed, corpora, style, records

    def __iter__(self) -> Iterator[Lesson]:
        return self.make()

    def batches(self) -> Iterator[Lesson]:
        """The lessons, made ahead of time by a second process."""
        return iter(DataLoader(self, batch_size=None, num_workers=1, prefetch_factor=8))

    def medleys(self) -> Iterator[Lesson]:
        sets = 2 if self.style.details else 1
        for first in itertools.count(0, MEDLEYS):
            clips = [medley(self.seed, "train", i, style=self.style) for i in range(first, first + MEDLEYS)]
            heard = [
                torch.stack(frame_labels(clip.events, audio_tokens(len(clip.pcm)), labels=self.style.labels), dim=1)
                for clip in clips
            ]
            pcm = [torch.from_numpy(clip.pcm).float() / 32768 for clip in clips]
            yield Lesson(audio_batch(pcm), torch.cat(heard)[:, :sets])

    def written(self) -> Iterator[Lesson]:
        corpora = [Corpus(path) for path in self.corpora]
        order = Order(tuple(Source(str(c.path), c.facts.records) for c in corpora), self.seed)
        numbers = {name: i for i, name in enumerate((".", *self.style.labels, *self.style.details))}
        # A name that the tokenizer cuts up is written by its first piece.
        ids = torch.tensor([self.processor.tokenizer.encode(name).ids[0] for name in numbers])
        generator = torch.Generator().manual_seed(self.seed)
        for first in itertools.count(0, self.records):
            talks, heard = [], []
            for index in range(first, first + self.records):
                draw = order[index]
                talk, names = silent(corpora[draw.source][draw.record], details=bool(self.style.details))
                talks.append(talk)
                heard += [numbers[name] for name in names]
            batch = self.processor(talks, training=True)
            yield written(batch, torch.tensor(heard, dtype=torch.int64), ids, self.processor.sound_id, generator)


def audio_batch(clips: list[Tensor]) -> Batch:
    """Clips of at most one window [n] each, without text."""
    samples = torch.tensor([len(clip) for clip in clips])
    pcm = torch.zeros(len(clips), padded_width(int(samples.max())))
    for row, clip in zip(pcm, clips, strict=True):
        row[: len(clip)] = clip
    no_text, one_each = torch.empty(0, dtype=torch.int64), torch.ones(len(clips), dtype=torch.int64)
    return Batch(no_text, torch.zeros(1, dtype=torch.int32), pcm, samples, one_each)


def written(batch: Batch, heard: Tensor, names: Tensor, sound_id: int, generator: torch.Generator) -> Lesson:
    """The batch with every audio token replaced by the name of what is heard, some of them wrong.

    Args:
        batch: with its audio.
        heard: [N] index into ``names`` of every audio token.
        names: [1 + labels] token ids, first that of silence.
        sound_id: id of the audio placeholder.
        generator: of the mistakes.
    """
    wrong = torch.rand(len(heard), generator=generator) < MISHEARD
    anything = torch.randint(0, len(names), heard.shape, generator=generator)
    rows = (batch.input_ids == sound_id).nonzero().squeeze(1)
    input_ids = batch.input_ids.index_copy(0, rows, names[torch.where(wrong, anything, heard)])
    return Lesson(replace(batch, input_ids=input_ids, pcm=None), heard[:, None])


def silent(record: dict, *, details: bool = True) -> tuple[list[dict], list[str]]:
    """The record's messages with silence for its recordings, and what should be heard in every audio token."""
    lengths = record.get("duration") or []
    clips = [torch.zeros(round(s * SAMPLE_RATE)) for s in (lengths if isinstance(lengths, list) else [lengths])]
    names = [
        name
        for number, clip in enumerate(clips)
        for name in timeline(record, audio=number, frames=audio_tokens(len(clip)), details=details)
    ]
    rest, messages = iter(clips), []
    for message in record["messages"]:
        parts = []
        for number, piece in enumerate(split_sounds(message["content"])):
            parts += [{"type": "audio", "audio": next(rest), "sampling_rate": SAMPLE_RATE}] if number else []
            parts += [{"type": "text", "text": piece}] if piece else []
        messages.append({"role": message["role"], "content": parts})
    return messages, names


def split_sounds(text: str) -> list[str]:
    """The text around each placeholder; the line break after a recording that stands alone goes, as in a prompt."""
    for number in range(1, 10):
        text = text.replace(f"<sound-{number}>", "<sound>")
    return text.replace("<sound>\n", "<sound>").split("<sound>")
