"""Connectionist temporal classification (CTC) of what the decoder hears: a second loss, of the encoder alone.

Source: Graves et al., 2006, doi:10.1145/1143844.1143891; beside a decoder's loss, Watanabe et al., 2017,
doi:10.1109/JSTSP.2017.2763455.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.checkpoint import checkpoint

from afn_model.audio.frames import conv_frames, token_frames
from afn_model.config import SpeechConfig
from afn_model.network.device_batch import copied
from afn_model.prompt.batch import IGNORED, Batch

BUDGET = 2**24  # logits, or scores, that are there at once


@dataclass(frozen=True)
class CTCTargets:
    """What the frames of a batch's conversations should spell; on the host.

    Args:
        spans: (first frame, frames) of each conversation that counts, among those of the batch.
        texts: its token ids.
        short: conversations left out because their frames are too few for their texts.
    """

    spans: list[tuple[int, int]]
    texts: list[list[int]]
    short: int = 0


@dataclass(frozen=True)
class CTCTerm:
    """CTC as a part of a loss: (1 − weight) · decoder's + weight · CTC's, both over the same number of tokens.

    Args:
        targets: of the batch.
        weight: of CTC, 0 to 1.
        told: called with CTC's part, without its weight and without gradients.
    """

    targets: CTCTargets
    weight: float
    told: Callable[[Tensor], object]


def ctc_head(config: SpeechConfig, device: torch.device | None = None) -> nn.Linear:
    """From a frame to the vocabulary and, behind it, the blank; zero, so that all are as likely at the beginning."""
    head = nn.Linear(config.audio.width, config.vocab_size + 1, device=device)
    if not head.weight.is_meta:
        nn.init.zeros_(head.weight)
        nn.init.zeros_(head.bias)
    return head


def frames_heard(batch: Batch, config: SpeechConfig) -> list[int]:
    """How many frames the decoder hears of each conversation of a batch."""
    placeholders = F.pad((batch.input_ids == config.audio_token_id).cumsum(0), (1, 0))[batch.cu_seqlens.long()]
    if config.pooled:
        return placeholders.diff().tolist()
    frames = conv_frames(batch.mel_lengths if batch.pcm is not None else batch.mel_lengths[:0])
    ends = F.pad(token_frames(frames).cumsum(0), (1, 0))
    windows = torch.searchsorted(ends, placeholders)
    return F.pad(frames.cumsum(0), (1, 0))[windows].diff().tolist()


def ctc_targets(batch: Batch, config: SpeechConfig, markup: Collection[int], without: Collection[int]) -> CTCTargets:
    """The supervised tokens of conversations with audio and one answer, without markup.

    An answer of markup alone is an empty text: every frame should be blank. A text needs a frame for each token and
    one for the blank between two equal ones.

    Args:
        batch: with labels, on the host.
        config: of the model.
        markup: ids of tokens that nobody says.
        without: ids; a conversation with one of them is left out.
    """
    assert batch.labels is not None, "the batch has no labels"
    ids, labels, bounds = batch.input_ids.tolist(), batch.labels.tolist(), batch.cu_seqlens.tolist()
    without, spans, texts, first, short = set(without), [], [], 0, 0
    for (start, end), count in zip(pairwise(bounds), frames_heard(batch, config), strict=True):
        given = labels[start:end]
        answers = sum(now != IGNORED and before == IGNORED for before, now in pairwise(given))
        if count and answers == 1 and without.isdisjoint(ids[start:end]):
            text = [token for token in given[1:] if token != IGNORED and token not in markup]
            if len(text) + sum(one == other for one, other in pairwise(text)) > count:
                short += 1
            else:
                spans.append((first, count))
                texts.append(text)
        first += count
    return CTCTargets(spans, texts, short)


def ctc_loss(frames: Tensor, weight: Tensor, bias: Tensor, targets: CTCTargets) -> Tensor:
    """Sum over conversations of −log p(text | frames), in float32 or better; 0 where there are none.

    At full size a window of 30 s has 1,500 frames by 51,867 logits, 311 MB in float32, and a softmax and gradients of
    that size besides. Here ``BUDGET`` logits (67 MB, 323 frames) are there at once, about five times that in the
    backward, which makes them anew. What stays of a frame is a score for each token of its own conversation's text, the
    blank, and one for all other tokens together: 16,384 frames with texts of 100 tokens are 7 MB. Of these scores
    log-softmax and CTC are computed for groups of conversations about equally long, padded to at most ``BUDGET``.

    Args:
        frames: [F, width], conversation after conversation.
        weight, bias: [V + 1, width], [V + 1]; the last row is the blank's.
        targets: which frames spell what.
    """
    nothing = F.linear(frames[:0], weight, bias).sum()  # so that the head has a gradient on every rank
    loss = nothing.to(torch.promote_types(nothing.dtype, torch.float32))
    if not targets.texts:
        return loss
    order = sorted(range(len(targets.texts)), key=lambda index: targets.spans[index][1])
    spans, texts = [targets.spans[index] for index in order], [targets.texts[index] for index in order]
    symbols = [list(dict.fromkeys(text)) for text in texts]
    blank, most = len(weight) - 1, max(map(len, symbols)) + 1
    columns = torch.tensor([[blank, *own, *[-1] * (most - 1 - len(own))] for own in symbols])
    counts = [count for _, count in spans]
    rows = torch.cat([torch.arange(first, first + count) for first, count in spans])
    owner = torch.repeat_interleave(torch.arange(len(spans)), torch.tensor(counts))
    rows, owner, columns = (copied(x, frames.device) for x in (rows, owner, columns))
    step = max(BUDGET // len(weight), 1)
    scores = [
        checkpoint(_scores, frames, weight, bias, some, columns[whose], use_reentrant=False, preserve_rng_state=False)
        for some, whose in zip(rows.split(step), owner.split(step), strict=True)
    ]
    parts = torch.cat(scores).split(counts)
    for group in _groups(counts, most + 1):
        log_probs = pad_sequence(parts[group]).log_softmax(-1)
        places = [{token: place for place, token in enumerate(own, 1)} for own in symbols[group]]
        labels = [place[token] for place, text in zip(places, texts[group], strict=True) for token in text]
        spelt = copied(torch.tensor(labels, dtype=torch.int64), frames.device)
        lengths = tuple(counts[group]), tuple(map(len, texts[group]))
        loss = loss + F.ctc_loss(log_probs, spelt, *lengths, blank=0, reduction="sum")  # pyright: ignore[reportArgumentType]
    return loss


def _scores(frames: Tensor, weight: Tensor, bias: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """[R, K + 1]: logits of a frame's K columns, far below all others where one is −1, and of the rest together."""
    logits = F.linear(frames[rows], weight, bias)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    absent = columns < 0
    own = columns[:, :1].where(absent, columns)  # the blank once more where there is none
    kept = logits.gather(1, own).masked_fill(absent, -1e4)
    rest = logits.scatter(1, own, -torch.inf).logsumexp(1, keepdim=True)
    return torch.cat((kept, rest), 1)


def _groups(counts: list[int], width: int) -> Iterator[slice]:
    """Neighbours whose padded scores are within the budget, or one alone; ``counts`` grow."""
    start = 0
    for end, count in enumerate(counts):
        if end > start and (end + 1 - start) * count * width > BUDGET:
            yield slice(start, end)
            start = end
    yield slice(start, len(counts))
