"""A short pretraining of encoder and language model, where there are no weights to start from.

The paper's curriculum starts from a pretrained encoder and a pretrained language model. Here
the encoder learns to label what it hears in every audio token, and the language model to answer questions about written
timelines, in which the audio tokens are replaced by the names of what is heard.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from afn_model.afnext import AFNext
from afn_model.prompt.batch import Batch
from afn_model.train.optimiser import learning_rate, make_optimiser
from afn_model.train.sft import select


@dataclass
class Lesson:
    """A training batch, and what is heard in each of its audio tokens.

    Args:
        batch: packed conversations, or audio alone.
        heard: [N, sets] int64, for each set of labels 0 for nothing, else 1 + index into the set.
    """

    batch: Batch
    heard: Tensor


@dataclass(frozen=True)
class Part:
    """One half of the start: what it trains, for how long, and how fast."""

    name: str
    trains: tuple[str, ...]
    lr: float
    seconds: float = math.inf
    steps: float = math.inf


class Trainee(nn.Module):
    """The model plus a label head used only here: scores over the labels of an audio token.

    Args:
        model: the model.
        sizes: labels in each set, silence not counted.
    """

    def __init__(self, model: AFNext, sizes: tuple[int, ...]):
        super().__init__()
        self.model = model
        self.labels = nn.ModuleList(nn.Linear(model.config.audio.width, 1 + size) for size in sizes)

    def loss(self, lesson: Lesson) -> Tensor:
        """Labels of audio tokens where there is audio, answers where there is text."""
        if lesson.batch.labels is not None:
            return self.model.loss(lesson.batch)
        features, _ = self.model.encode_batch(lesson.batch)
        sets = zip(self.labels, lesson.heard.unbind(1), strict=True)
        return torch.stack([F.cross_entropy(scores(features), labels) for scores, labels in sets]).sum()


def fit(trainee: Trainee, part: Part, lessons: Iterator[Lesson], on_step: Callable[[float, float], None]) -> int:
    """Trains one part on lessons until its time or its steps are up; returns the number of steps.

    Args:
        trainee: what is trained.
        part: how.
        lessons: endless.
        on_step: called with the share of the part that is done, and the loss.
    """
    select(trainee, part.trains)
    named = [(name, parameter) for name, parameter in trainee.named_parameters() if parameter.requires_grad]
    optimiser = make_optimiser(named, lr=part.lr, betas=(0.9, 0.98), weight_decay=0.01)
    trainee.train()
    began = time.perf_counter()
    for step in itertools.count():
        progress = max(step / part.steps, (time.perf_counter() - began) / part.seconds)
        if progress >= 1:
            break
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(part.lr, 0.03, "cosine", progress)
        loss = trainee.loss(next(lessons))
        loss.backward()
        nn.utils.clip_grad_norm_([parameter for _, parameter in named], 1.0)
        if not math.isfinite(value := float(loss.detach())):
            raise ValueError(f"{part.name}: the loss of step {step} is {value}")
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        on_step(progress, value)
    trainee.eval()
    return step
