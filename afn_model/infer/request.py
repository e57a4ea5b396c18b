"""What is asked of the engine, and what has become of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from afn_model.audio.frames import audio_tokens
from afn_model.config import ModelConfig
from afn_model.infer.drafts import AnswerDraft
from afn_model.infer.finish import Finish, Reason
from afn_model.infer.grammar import GrammarState
from afn_model.infer.sampling_params import SamplingParams
from afn_model.infer.sequence import Sequence
from afn_model.infer.tokens import PromptTokens
from afn_model.network.positions import rotary_positions


class NotFinite(ValueError):
    """The scores of an answer's next token are NaN or infinite."""


@dataclass(eq=False)
class Growing:
    """One answer of a request.

    Args:
        request, sample: what it answers, and its number among the answers to it.
        sequence: its place in the schedule.
        key: of its random numbers.
        on_token: called with each token, stop tokens left out.
        on_text: called with its text, piece by piece.
        finish: decides when it ends.
        draft: what it is expected to be.
        grammar: what its next token may be.
        logprobs: of the tokens.
        top: the likeliest tokens in their places, (id, log-probability), where the request asks for them and has no
            prediction.
        reason: "stop", "length", "repetition", "abort" or "error" once it has ended.
        error: what went wrong.
        raised: what a callback raised, which ends the answer and no other; it is ``error`` too.
        times: of the first and the last token, by the engine's clock.
    """

    request: Request
    sample: int
    sequence: Sequence
    key: int
    finish: Finish
    on_token: Callable[[int], Any] | None = None
    on_text: Callable[[str], Any] | None = None
    grammar: GrammarState | None = None
    draft: AnswerDraft | None = None
    logprobs: list[float] = field(default_factory=list)
    top: list[list[tuple[int, float]]] = field(default_factory=list)
    reason: Reason | None = None
    error: BaseException | None = None
    raised: Exception | None = None
    times: list[float] = field(default_factory=list)

    @property
    def tokens(self) -> list[int]:
        """Drawn so far, the stop token included."""
        return self.sequence.tokens


@dataclass(eq=False)
class Request:
    """A prompt and its answers; ``thinking`` is whether the prompt ends inside of ``<think>``."""

    prompt: PromptTokens
    params: SamplingParams
    key: int
    answers: list[Growing] = field(default_factory=list)
    thinking: bool = False

    @property
    def done(self) -> bool:
        return all(answer.reason is not None for answer in self.answers)


def seeded(params: SamplingParams) -> SamplingParams:
    """With a seed where answers are random."""
    if params.temperature == 0 or params.seed is not None:
        return params
    return replace(params, seed=int(torch.randint(2**62, ())))


def set_clocks(prompts: list[PromptTokens], clips: list[list[int]], config: ModelConfig) -> None:
    """The rotary positions of prompts, where these are not places.

    Args:
        prompts: in order.
        clips: samples of the windows of each recording in them.
        config: of the model.
    """
    if config.rote.reading != "paper":
        return
    lengths, tokens = [len(prompt.ids) for prompt in prompts], [sum(map(audio_tokens, clip)) for clip in clips]
    ids = torch.tensor([token for prompt in prompts for token in prompt.ids])
    bounds = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
    clock = rotary_positions(ids, bounds, config.audio_token_id, tokens, config.rote)
    for prompt, own in zip(prompts, clock.split(lengths), strict=True):
        prompt.clock = own.tolist()
