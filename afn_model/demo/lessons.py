"""What the demo's model learns from: clips with questions, medleys of events, and written timelines."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from afn_model.audio import audio_tokens, padded_width
from afn_model.data.scenes import LABELS, QUESTIONS, Example, example, frame_labels, medley, outline
from afn_model.data.words import load_bank
from afn_model.processor import AFNextProcessor, Batch

CLIPS = 16  # clips in a batch
BUCKET = 8  # batches drawn together and sorted by length, so that a batch holds clips of about one length
MISHEARD = 0.1  # share of audio tokens written wrong in a timeline


@dataclass
class Lesson:
    """A training batch, and what is heard in each of its audio tokens: 0 for nothing, else 1 + index in ``LABELS``."""

    batch: Batch
    heard: Tensor


class Lessons(IterableDataset):
    """Endless lessons from the training split, a function of kind and seed alone.

    Args:
        kind: "medley" (audio full of events, no text), "written" (dialogues whose audio tokens are replaced by the
            names of what is heard, now and then wrong) or "spoken" (dialogues with their recordings).
        processor: makes the batches.
        seed: of clips, dialogues and mistakes.
    """

    def __init__(self, kind: str, processor: AFNextProcessor, seed: int):
        super().__init__()
        self.make = {"medley": self.medleys, "written": self.written, "spoken": self.spoken}[kind]
        self.processor, self.seed, self.bank = processor, seed, load_bank("train")

    def __iter__(self) -> Iterator[Lesson]:
        return self.make()

    def feed(self) -> Iterator[Lesson]:
        """The lessons, made ahead of time by a second process."""
        return iter(DataLoader(self, batch_size=None, num_workers=1, prefetch_factor=8))

    def medleys(self) -> Iterator[Lesson]:
        for first in itertools.count(0, CLIPS):
            clips = [medley(self.seed, "train", i, bank=self.bank) for i in range(first, first + CLIPS)]
            samples = torch.tensor([len(clip.pcm) for clip in clips])
            pcm = torch.zeros(CLIPS, padded_width(int(samples.max())))
            for row, clip in zip(pcm, clips, strict=True):
                row[: len(clip.pcm)] = clip.pcm
            no_text = torch.empty(0, dtype=torch.int64)
            windows = torch.ones(CLIPS, dtype=torch.int64)
            yield Lesson(Batch(no_text, torch.zeros(1, dtype=torch.int32), pcm, samples, windows), heard(clips))

    def spoken(self) -> Iterator[Lesson]:
        rng = random.Random(self.seed)
        for first in itertools.count(0, CLIPS * BUCKET):
            order = sorted(range(first, first + CLIPS * BUCKET), key=lambda i: outline(self.seed, "train", i)[1])
            for bucket in rng.sample(range(BUCKET), BUCKET):
                rows = order[bucket * CLIPS : (bucket + 1) * CLIPS]
                clips = [example(self.seed, "train", i, bank=self.bank) for i in rows]
                talks = [conversation(clip, dialogue(clip, rng)) for clip in clips]
                yield Lesson(self.processor(talks, training=True), heard(clips))

    def written(self) -> Iterator[Lesson]:
        generator = torch.Generator().manual_seed(self.seed)
        # A label that the tokenizer cuts up is written by its first piece.
        names = torch.tensor([self.processor.tokenizer.encode(label).ids[0] for label in (".", *LABELS)])
        for lesson in self.spoken():
            wrong = torch.rand(len(lesson.heard), generator=generator) < MISHEARD
            anything = torch.randint(0, len(names), lesson.heard.shape, generator=generator)
            rows = (lesson.batch.input_ids == self.processor.sound_id).nonzero().squeeze(1)
            written = names[torch.where(wrong, anything, lesson.heard)]
            input_ids = lesson.batch.input_ids.index_copy(0, rows, written)
            yield Lesson(replace(lesson.batch, input_ids=input_ids, pcm=None), lesson.heard)


def heard(clips: list[Example]) -> Tensor:
    """The label of every audio token of the clips, one after another."""
    return torch.cat([frame_labels(clip, audio_tokens(len(clip.pcm))) for clip in clips])


def conversation(clip: Example, turns: list[tuple[str, str]]) -> list[dict]:
    """The messages of a clip: its recording, then questions and answers; an empty answer is left to the model."""
    messages = []
    for number, (question, answer) in enumerate(turns):
        sound = [{"type": "audio", "audio": clip.pcm, "sampling_rate": 16_000}] if number == 0 else []
        messages.append({"role": "user", "content": [*sound, {"type": "text", "text": question}]})
        if answer:
            messages.append({"role": "assistant", "content": answer})
    return messages


def dialogue(clip: Example, rng: random.Random) -> list[tuple[str, str]]:
    """The clip's own question and answer, then what else can be asked about its events, in any order."""
    more = []
    for event in clip.events:
        kind, name = ("speech", "word") if event.kind == "word" else ("sound", event.label)
        if event is not clip.events[0] or clip.kind == "onset":
            more.append((rng.choice(QUESTIONS[kind]), event.label))
        if event is not clip.events[0] or clip.kind != "onset":
            more.append((rng.choice(QUESTIONS["onset"]).format(name), f"{event.start:.1f} s"))
    rng.shuffle(more)
    return [(clip.question, clip.answer), *more]
