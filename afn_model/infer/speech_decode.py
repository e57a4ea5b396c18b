"""Texts from the speech decoder: greedy or beam search, every recording's hypotheses side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from afn_model.network.speech_decoder import TextCache
from afn_model.network.speech_network import SpeechNetwork

NEVER = float("-inf")


@dataclass(frozen=True)
class Hypothesis:
    """A text.

    Args:
        tokens: without the prompt and the token that ends it.
        logprob: sum over its tokens and the end.
        score: logprob / (tokens and end) ** length_penalty.
        ended: whether it ended by itself, not for want of room.
    """

    tokens: tuple[int, ...]
    logprob: float
    score: float
    ended: bool


@dataclass
class _Search:
    """The search for one recording: running texts, best first, and finished ones."""

    beams: int
    length_penalty: float
    running: list[tuple[float, tuple[int, ...]]]
    finished: list[Hypothesis] = field(default_factory=list)

    def finish(self, tokens: tuple[int, ...], logprob: float, ended: bool) -> None:
        score = logprob / max(1, len(tokens) + ended) ** self.length_penalty
        self.finished.append(Hypothesis(tokens, logprob, score, ended))
        self.finished = sorted(self.finished, key=lambda one: -one.score)[: self.beams]

    def over(self) -> bool:
        """Whether no running text can become better than the worst finished one, at its present length."""
        if len(self.finished) < self.beams:
            return not self.running
        if not self.running:
            return True
        logprob, tokens = self.running[0]
        return logprob / max(1, len(tokens)) ** self.length_penalty <= self.finished[-1].score


@torch.inference_mode()
def decode(
    model: SpeechNetwork,
    frames: Tensor,
    cu_frames: Tensor,
    prompts: Sequence[Sequence[int]],
    *,
    stop: int,
    most: int | None = None,
    beams: int = 1,
    length_penalty: float = 1.0,
    suppress: Sequence[int] = (),
    suppress_first: Sequence[int] = (),
) -> list[Hypothesis]:
    """The best text that beam search finds for each recording.

    A text's score is its log-probability divided by length ** length_penalty; a search ends when no running text would
    beat the worst of ``beams`` finished ones at its present length.

    Args:
        model: the encoder's decoder.
        frames, cu_frames: as ``SpeechNetwork.encode`` returns them, of N recordings.
        prompts: tokens that each text begins with, equally many.
        stop: token that ends a text.
        most: tokens of a text, at most; by default what the decoder has room for.
        beams: texts that are followed; 1 is greedy.
        length_penalty: 0 prefers short texts, 1 compares means over tokens.
        suppress: tokens that are never said; an id past the vocabulary is none.
        suppress_first: tokens that no text begins with.

    Raises:
        ValueError: prompts of different lengths or without room behind them, no beams, another number of recordings.

    Source: Graves, 2012, arXiv:1211.3711; length normalisation: Wu et al., 2016, arXiv:1609.08144.
    """
    count, size, device = len(prompts), _checked(model, prompts, cu_frames, beams), frames.device
    room = model.config.max_positions - size
    most = room if most is None else min(most, room)
    config, decoder = model.config, model.decoder
    own = frames.new_zeros(config.layers, 2, count * beams, size + most, config.heads, config.head_dim)
    audio = tuple(block.encoder_attn.keys_and_values(frames) for block in decoder.layers)  # type: ignore[union-attr]
    tokens = torch.tensor(prompts, device=device).repeat_interleave(beams, 0)
    hushed = [
        torch.tensor(sorted({token for token in tokens if token < config.vocab_size}), dtype=torch.long, device=device)
        for tokens in ((*suppress, *suppress_first), suppress)  # at the first step, and later
    ]
    searches = [_Search(beams, length_penalty, [(0.0, ())]) for _ in prompts]
    for step in range(most):
        lengths = torch.full((count * beams,), size + step, dtype=torch.int32, device=device)
        context = decoder.cached(TextCache(own, lengths, audio), tokens.shape[1], beams, cu_frames)
        hidden = decoder(tokens.flatten(), context).unflatten(0, tokens.shape)[:, -1]
        scores = model.logits(hidden).float().index_fill_(1, hushed[min(step, 1)], NEVER).log_softmax(-1)
        before = torch.full((count, beams), NEVER, device=device)
        for place, one in enumerate(searches):
            for beam, (logprob, _) in enumerate(one.running):
                before[place, beam] = logprob
        scores = (scores.unflatten(0, (count, beams)) + before[..., None]).flatten(1)
        best, choices = scores.topk(min(2 * beams, scores.shape[1]))
        parents = torch.arange(count * beams)
        following = torch.full((count * beams, 1), stop)
        for place, one in enumerate(searches):
            if one.over() and step:
                continue
            chosen = _advance(one, best[place].tolist(), choices[place].tolist(), config.vocab_size, stop)
            for beam, (parent, token) in enumerate(chosen):
                parents[place * beams + beam] = place * beams + parent
                following[place * beams + beam] = token
        if all(one.over() for one in searches):
            break
        own = own if beams == 1 else own.index_select(2, parents.to(device))
        tokens = following.to(device)
    for one in searches:
        if not one.over():
            for logprob, text in one.running:
                one.finish(text, logprob, False)
    return [one.finished[0] for one in searches]


def _advance(
    search: _Search, best: Sequence[float], choices: Sequence[int], vocabulary: int, stop: int
) -> list[tuple[int, int]]:
    """Follows the best continuations; (beam that it comes from, token) of those that go on."""
    running, chosen = list[tuple[float, tuple[int, ...]]](), list[tuple[int, int]]()
    for rank, (logprob, choice) in enumerate(zip(best, choices, strict=True)):
        parent, token = divmod(choice, vocabulary)
        if logprob == NEVER or parent >= len(search.running):
            continue
        if token == stop:
            if rank < search.beams:
                search.finish(search.running[parent][1], logprob, True)
        elif len(running) < search.beams:
            running.append((logprob, (*search.running[parent][1], token)))
            chosen.append((parent, token))
    search.running = running
    return chosen


def _checked(model: SpeechNetwork, prompts: Sequence[Sequence[int]], cu_frames: Tensor, beams: int) -> int:
    sizes = {len(prompt) for prompt in prompts}
    if len(sizes) != 1 or not 0 < max(sizes) < model.config.max_positions:
        raise ValueError(
            f"prompts of {sorted(sizes)} tokens, expected equally many, below {model.config.max_positions}"
        )
    if len(cu_frames) != len(prompts) + 1:
        raise ValueError(f"{len(prompts)} prompts for {len(cu_frames) - 1} recordings")
    if beams < 1:
        raise ValueError(f"beams must be at least 1, got {beams}")
    return sizes.pop()
