"""A generated answer and its log-probabilities."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Rollout:
    """One generated answer.

    Args:
        prompt: which prompt of the batch it answers.
        sample: which of the prompt's answers it is.
        tokens: the token ids, with the stop token where it was reached.
        logprobs: [len(tokens)] float32 on the CPU: log softmax(logits / temperature) of each, of the logits
            after the repetition penalty and before ``top_p`` cuts; training, which
            knows no penalty, needs 1. None where the answer is greedy or its prompt has no key.
        finished: whether it ends with a stop token.
    """

    prompt: int
    sample: int
    tokens: list[int]
    logprobs: Tensor | None
    finished: bool

    @property
    def answer(self) -> list[int]:
        """The tokens without the stop token."""
        return self.tokens[:-1] if self.finished else self.tokens
