"""What the demo's base model learns from: medleys of events, and written timelines."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from afn_model.audio.frames import audio_tokens, padded_width
from afn_model.bootstrap.fit import Lesson
from afn_model.prompt.batch import Batch
from afn_model.prompt.processor import AFNextProcessor
from afn_model.world.corpus import dialogue
from afn_model.world.mixer import LABELS, Example, example, frame_labels, medley, outline
from afn_model.world.words import load_bank

CLIPS = 16  # clips in a batch
BUCKET = 8  # batches drawn together and sorted by length, so that a batch holds clips of about one length
MISHEARD = 0.1  # share of audio tokens written wrong in a timeline


class Lessons(IterableDataset):
    """Endless lessons from the training split, a function of kind and seed alone.

    Args:
        kind: "medley" (audio full of events, no text) or "written" (dialogues whose audio tokens are replaced by the
            names of what is heard, now and then wrong).
        processor: makes the batches.
        seed: of clips, dialogues and mistakes.
    """

    def __init__(self, kind: str, processor: AFNextProcessor, seed: int):
        super().__init__()
        self.make = {"medley": self.medleys, "written": self.written}[kind]
        self.processor, self.seed, self.bank = processor, seed, load_bank("train")

    def __iter__(self) -> Iterator[Lesson]:
        return self.make()

    def feed(self) -> Iterator[Lesson]:
        """The lessons, made ahead of time by a second process."""
        return iter(DataLoader(self, batch_size=None, num_workers=1, prefetch_factor=8))

    def medleys(self) -> Iterator[Lesson]:
        for first in itertools.count(0, CLIPS):
            clips = [medley(self.seed, "train", i, bank=self.bank) for i in range(first, first + CLIPS)]
            yield Lesson(audio_batch([clip.pcm for clip in clips]), heard(clips)[:, None])

    def written(self) -> Iterator[Lesson]:
        rng, generator = random.Random(self.seed), torch.Generator().manual_seed(self.seed)
        # A label that the tokenizer cuts up is written by its first piece.
        names = torch.tensor([self.processor.tokenizer.encode(label).ids[0] for label in (".", *LABELS)])
        for first in itertools.count(0, CLIPS * BUCKET):
            order = sorted(range(first, first + CLIPS * BUCKET), key=lambda i: outline(self.seed, "train", i)[1])
            for bucket in rng.sample(range(BUCKET), BUCKET):
                rows = order[bucket * CLIPS : (bucket + 1) * CLIPS]
                clips = [example(self.seed, "train", i, bank=self.bank) for i in rows]
                batch = self.processor([conversation(clip, dialogue(clip, rng)) for clip in clips], training=True)
                yield written(batch, heard(clips), names, self.processor.sound_id, generator)


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


def heard(clips: list[Example]) -> Tensor:
    """The label of every audio token of the clips, one after another: 0 for nothing, else 1 + index in ``LABELS``."""
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
