"""A short start of a speech model's encoder: which word is said in every frame, as ``fit`` gives it to the whole model.

The decoder alone tells an encoder too little in minutes: one word of a text for all of its frames.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from afn_model.afwhisper import AFWhisper
from afn_model.data.plan import question
from afn_model.data.records import parse_sample
from afn_model.prompt.processor import AFNextProcessor
from afn_model.train.optimiser import learning_rate, make_optimiser

FRAME_S = 0.04
TOGETHER = 16  # recordings of a step
LR = 3e-3


def frame_labels(events: Sequence[dict], frames: int, labels: dict[str, int]) -> Tensor:
    """[frames] int64: 1 + the number of what is heard in the middle of each frame, 0 for nothing."""
    found = torch.zeros(frames, dtype=torch.int64)
    middle = (torch.arange(frames) + 0.5) * FRAME_S
    for event in events:
        found[(event["start"] <= middle) & (middle < event["end"])] = 1 + labels[event["label"]]
    return found


def start_encoder(
    model: AFWhisper,
    processor: AFNextProcessor,
    records: Sequence[dict],
    folder: Path,
    labels: Sequence[str],
    *,
    steps: int,
    seed: int,
    on_step: Callable[[int, float], None],
) -> float:
    """Trains the encoder and a head that is then thrown away; the share of frames it labels right in the last steps.

    Args:
        model: with pooled frames.
        processor: of the model.
        records: with the times of what is heard, one thing at a time.
        folder: that their paths are relative to.
        labels: everything that is heard.
        steps: optimiser steps.
        seed: of the order.
        on_step: called with the number of steps that are done and the loss.
    """
    numbers, order = {label: n for n, label in enumerate(labels)}, random.Random(seed)
    torch.manual_seed(seed)
    head = nn.Linear(model.config.audio.width, 1 + len(labels))
    both = nn.ModuleDict({"encoder": model.encoder, "head": head})
    named = list(both.named_parameters())
    named = [(name, parameter) for name, parameter in named if parameter.requires_grad]
    optimiser = make_optimiser(named, lr=LR, betas=(0.9, 0.98), weight_decay=0.01)
    queue: list[dict] = []
    right: list[float] = []
    for step in range(steps):
        if len(queue) < TOGETHER:
            queue = order.sample(list(records), len(records))
        some, queue = queue[:TOGETHER], queue[TOGETHER:]
        prepared = [processor.prepare(question(parse_sample(record, folder).turns)) for record in some]
        frames, cu_frames = model.heard(model.prepare(processor.pack(prepared, ragged=True)))
        counts = cu_frames.diff().tolist()
        pairs = zip(some, counts, strict=True)
        truth = torch.cat([frame_labels(record["events"], count, numbers) for record, count in pairs])
        scores = head(frames)
        loss = F.cross_entropy(scores, truth)
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(LR, 0.03, "cosine", step / steps)
        loss.backward()
        nn.utils.clip_grad_norm_([parameter for _, parameter in named], 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        right.append(float((scores.argmax(-1) == truth).float().mean()))
        on_step(step + 1, float(loss.detach()))
    last = right[-50:]
    return sum(last) / max(1, len(last))
