"""How answers are generated."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from afn_model.checks import is_number, is_whole, shown

if TYPE_CHECKING:
    from afn_model.config import ModelConfig

MOST_LOGPROBS = 20  # OpenAI's limit
LOOP_REPEATS = 4  # copies of a pattern that make a loop, at least


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How answers are generated.

    The scores of the next token are changed in this order: repetition penalty, frequency and presence penalty, logit
    bias, grammar; then temperature, ``top_k``, ``top_p`` of what that leaves, and ``min_p``.

    Args:
        max_new_tokens: longest answer in tokens, its stop token included, >= 0; the model's context may end it earlier.
        min_new_tokens: an answer does not end by a stop token or a stop string before it has this many tokens; 0 to
            ``max_new_tokens``.
        repetition_penalty: positive logits of tokens seen before (prompt included) are divided by it, negative ones
            multiplied; > 0, 1 turns it off, None is that of the model. Source: arXiv 1909.05858, section 4.1.
        presence_penalty: subtracted from the logits of tokens that the answer holds already; -2 to 2. Source: OpenAI's
            chat completions, as ``frequency_penalty``, ``logit_bias``, ``logprobs`` and ``stop``.
        frequency_penalty: subtracted once for each time that the answer holds a token; -2 to 2.
        logit_bias: token id -> number added to its logit, -100 to 100.
        temperature: 0 is greedy; otherwise logits are divided by it before sampling; >= 0.
        top_k: sample from this many most likely tokens, equally likely ones by id; 0 is all.
        top_p: sample from the smallest set of tokens whose probability reaches this; 0 < top_p <= 1. Source: arXiv
            1904.09751, section 3.1.
        min_p: leave out tokens that are less likely than this share of the likeliest; 0 to 1. Source: arXiv 2407.01082,
            section 3.
        seed: of the sampling; None draws from torch's global generator.
        n: answers to each prompt, >= 1.
        logprobs: return the log-probability of every token of the answer, and those of so many likeliest tokens in its
            place; 0 to 20, None returns those of random tokens alone.
        stop: strings that end an answer, which then ends before them; one, or several.
        stop_token_ids: tokens that end an answer; None are those of the model.
        ignore_eos: the model's own stop tokens do not end an answer; ``stop_token_ids`` still do.
        max_thinking_tokens: tokens inside of ``<think>``, at most; then ``</think>`` is put there. None is no limit.
        loop_tokens: an answer whose last so many tokens are at least 4 copies of one pattern, the last one perhaps in
            part, ends as "repetition"; at least 4, such as 256. 0 is off: by default an answer is what the model says,
            as elsewhere, and a chorus is not cut.
        grammar: what the answer must be: a JSON schema as a dictionary, or a regular expression that all of it matches.
            Needs llguidance (``afn_model.infer.grammar``).

    Raises:
        ValueError: a number out of range or of another type, or several greedy answers, which would all be the same.
    """

    max_new_tokens: int = 1024
    min_new_tokens: int = 0
    repetition_penalty: float | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] | None = field(default=None, hash=False)
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int | None = None
    n: int = 1
    logprobs: int | None = None
    stop: tuple[str, ...] | str = ()
    stop_token_ids: tuple[int, ...] | None = None
    ignore_eos: bool = False
    max_thinking_tokens: int | None = None
    loop_tokens: int = 0
    grammar: Mapping[str, Any] | str | None = field(default=None, hash=False)

    def __post_init__(self):
        for name, (fits, what) in KINDS.items():
            if not fits(getattr(self, name)):
                raise ValueError(f"{name} must be {what}, got {shown(getattr(self, name))}")
        object.__setattr__(self, "stop", self.stop_strings)
        for name, (fits, what) in RANGES.items():
            if (value := getattr(self, name)) is not None and not fits(value):
                raise ValueError(f"out of range: {name}={shown(value)}; values with {what} are expected")
        if self.min_new_tokens > self.max_new_tokens:
            raise ValueError(f"min_new_tokens={self.min_new_tokens} is above max_new_tokens={self.max_new_tokens}")
        if self.grammar is not None and (self.min_new_tokens or self.ignore_eos):
            raise ValueError("a grammar says when an answer ends: min_new_tokens=0 and ignore_eos=False are expected")
        if self.n > 1 and self.temperature == 0:
            raise ValueError(f"{self.n} answers to a prompt would be the same at temperature 0")

    @property
    def stop_strings(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    @property
    def keeps_logprobs(self) -> bool:
        """Whether the log-probabilities of an answer's tokens are known."""
        return self.temperature > 0 or self.logprobs is not None

    def resolved(self, config: ModelConfig) -> SamplingParams:
        """With the model's repetition penalty and stop tokens where none are given."""
        penalty, stop = self.repetition_penalty, self.stop_token_ids
        if stop is None:
            stop = () if self.ignore_eos else tuple(config.stop_token_ids)
        penalty = config.repetition_penalty if penalty is None else penalty
        return replace(self, repetition_penalty=penalty, stop_token_ids=stop)


def _maybe(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or fits(value)


def _listed(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, Collection) and not isinstance(value, Mapping) and all(map(fits, value))


def _biases(value: Any) -> bool:
    return isinstance(value, Mapping) and all(map(is_whole, value)) and all(map(is_number, value.values()))


WHOLE, WHOLE_OR_NONE = (is_whole, "a whole number"), (_maybe(is_whole), "a whole number or None")
NUMBER = (is_number, "a number")
KINDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "max_new_tokens": WHOLE,
    "min_new_tokens": WHOLE,
    "repetition_penalty": (_maybe(is_number), "a number or None"),
    "presence_penalty": NUMBER,
    "frequency_penalty": NUMBER,
    "logit_bias": (_maybe(_biases), "None or numbers by token id"),
    "temperature": NUMBER,
    "top_k": WHOLE,
    "top_p": NUMBER,
    "min_p": NUMBER,
    "seed": WHOLE_OR_NONE,
    "n": WHOLE,
    "logprobs": WHOLE_OR_NONE,
    "stop": (_listed(lambda one: isinstance(one, str)), "text or a list of texts"),
    "stop_token_ids": (_maybe(_listed(is_whole)), "None or a list of whole numbers"),
    "ignore_eos": (lambda value: isinstance(value, bool), "True or False"),
    "max_thinking_tokens": WHOLE_OR_NONE,
    "loop_tokens": WHOLE,
    "grammar": (_maybe(lambda value: isinstance(value, (str, Mapping))), "None, a JSON schema or a regular expression"),
}
PENALTIES = (lambda value: -2 <= value <= 2, "-2 <= penalty <= 2")
RANGES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "max_new_tokens": (lambda value: value >= 0, "max_new_tokens >= 0"),
    "min_new_tokens": (lambda value: value >= 0, "min_new_tokens >= 0"),
    "repetition_penalty": (lambda value: 0 < value < math.inf, "penalty > 0"),
    "presence_penalty": PENALTIES,
    "frequency_penalty": PENALTIES,
    "logit_bias": (
        lambda value: min(value, default=0) >= 0 and all(-100 <= one <= 100 for one in value.values()),
        "token ids >= 0 and -100 <= bias <= 100",
    ),
    "temperature": (lambda value: 0 <= value < math.inf, "temperature >= 0"),
    "top_k": (lambda value: value >= 0, "top_k >= 0"),
    "top_p": (lambda value: 0 < value <= 1, "0 < top_p <= 1"),
    "min_p": (lambda value: 0 <= value <= 1, "0 <= min_p <= 1"),
    "n": (lambda value: value >= 1, "n >= 1"),
    "logprobs": (lambda value: 0 <= value <= MOST_LOGPROBS, f"0 <= logprobs <= {MOST_LOGPROBS}"),
    "stop": (all, "stop strings of at least one character"),
    "stop_token_ids": (lambda value: min(value, default=0) >= 0, "token ids >= 0"),
    "max_thinking_tokens": (lambda value: value >= 0, "max_thinking_tokens >= 0"),
    "loop_tokens": (lambda value: value == 0 or value >= LOOP_REPEATS, f"loop_tokens 0 or >= {LOOP_REPEATS}"),
    "grammar": (bool, "a schema or expression that is not empty"),
}
