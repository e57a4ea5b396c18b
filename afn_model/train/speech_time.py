"""The time of a step of method asr: the decoder's text attends to itself and to the frames of its recordings."""

from __future__ import annotations

from typing import Any

import numpy as np

from afn_model.train.account import Account
from afn_model.train.speech_account import SpeechAccount
from afn_model.train.step_time import StepTime

CTC_BYTES = 90  # that element-wise kernels read and write of a logit: twice its softmax in float32, once its gradient


class SpeechStepTime(StepTime):
    """``StepTime`` of a stage with a ``SpeechAccount``."""

    account: SpeechAccount

    def attention(self, *, backward: bool) -> np.ndarray:
        """[ranks] seconds of one layer's attention to text and to frames."""
        micro, a, text = self.account.micro, self.rates, self.text
        share = 1 if text.pooled else 2  # frames of a placeholder
        pairs = sum(words * share * (whole - words) for words, whole in zip(micro.texts, micro.lengths, strict=True))
        flops = text.width * (10 if backward else 4) * pairs
        return super().attention(backward=backward) + flops / (a.attention_backward if backward else a.attention)

    def token_seconds(self, times: float, products: float) -> float:
        text, a = self.text, self.rates
        # q, k, v and out of the text, q and out of what it hears. Norms read two rows and write two; GELU one and one.
        flops = 2.0 * (6 * text.width**2 + 2 * text.width * text.ffn)
        return products * flops / a.matmul + times * (24.0 * text.width + 4 * text.ffn) / a.hbm

    def heard_seconds(self, products: float) -> np.ndarray:
        """[ranks] seconds of a layer's keys and values of all frames, so many times."""
        each = 4.0 * self.account.config.audio.width * self.text.width
        return products * self.account.heard * each / self.rates.matmul

    def forward_layer(self) -> np.ndarray:
        return super().forward_layer() + self.heard_seconds(1) * self.rates.block

    def backward_layer(self) -> np.ndarray:
        return super().backward_layer() + self.rates.block * self.heard_seconds(
            self.units.trains_encoder + self.trains_layers
        )

    def ctc_seconds(self) -> float:
        """Of CTC's logits: forward, again in the backward, and gradients of the head and of what trains below it."""
        account, a = self.account, self.rates
        logits = float(account.heard.max()) * (self.text.vocab_size + 1)
        products = 2.0 * account.config.audio.width * (3 + self.units.trains_encoder)
        return account.ctc * logits * (products / a.matmul + CTC_BYTES / a.hbm)

    def backward(self) -> tuple[float, float]:
        compute, exposed = super().backward()
        return compute + self.ctc_seconds(), exposed


def time_of(account: Account, *given: Any) -> StepTime:
    """The time of a stage by the kind of its account; other arguments are those of ``StepTime``."""
    return (SpeechStepTime if isinstance(account, SpeechAccount) else StepTime)(account, *given)
