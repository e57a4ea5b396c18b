"""How answers are generated."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass

from afn_model.checks import is_number, is_whole


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How answers are generated.

    Args:
        max_new_tokens: longest answer in tokens, its stop token included; the model's context may end it earlier.
        repetition_penalty: positive logits of tokens seen before (prompt included) are divided by it, negative ones
            multiplied; 1 turns it off, None is that of the model.
        temperature: 0 is greedy; otherwise logits are divided by it before sampling.
        top_p: sample from the smallest set of tokens whose probability reaches this.
        seed: of the sampling; None draws from torch's global generator.
        n: answers to each prompt.
        stop_token_ids: tokens that end an answer; None are those of the model.

    Raises:
        ValueError: a number out of range or of another type, or several greedy answers, which would all be the same.
    """

    max_new_tokens: int = 1024
    repetition_penalty: float | None = None
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    n: int = 1
    stop_token_ids: tuple[int, ...] | None = None

    def __post_init__(self):
        stop = () if self.stop_token_ids is None else self.stop_token_ids
        whole = [self.max_new_tokens, self.n, 0 if self.seed is None else self.seed]
        numbers = [self.temperature, self.top_p, 1 if self.repetition_penalty is None else self.repetition_penalty]
        listed = isinstance(stop, Collection) and all(map(is_whole, stop))
        if not (listed and all(map(is_whole, whole)) and all(map(is_number, numbers))):
            raise ValueError(
                f"{self}: max_new_tokens, n and seed must be whole numbers, stop_token_ids several of them; "
                "temperature, top_p and repetition_penalty numbers"
            )
        penalised = self.repetition_penalty is None or 0 < self.repetition_penalty < math.inf
        sampled = 0 <= self.temperature < math.inf and 0 < self.top_p <= 1
        if self.max_new_tokens < 0 or self.n < 1 or not penalised or not sampled:
            raise ValueError(
                f"out of range: {self}; max_new_tokens >= 0, penalty > 0, temperature >= 0, 0 < top_p <= 1 and n >= 1 "
                "are expected"
            )
        if self.n > 1 and self.temperature == 0:
            raise ValueError(f"{self.n} answers to a prompt would be the same at temperature 0")
