"""What the parts of a step take, predicted from the model's arithmetic: what a step's budget is held to. No torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from afn_model.infer.pages import PAGE

if TYPE_CHECKING:
    from afn_model.config import ModelConfig


@dataclass(frozen=True)
class Costs:
    """Predicted seconds of the parts of a step, and how long one may take.

    Args:
        step: of a step, whatever is in it.
        token: of a prompt's token.
        pair: of a prompt's token and one that it attends to.
        window: of an audio window in the encoder.
        row: of a token that is decoded.
        key: of a token that a decoded one attends to.
        page: of a page of keys and values that comes back from host memory.
        budget: of a step while sequences decode; what it does not bound, ``chunk`` tokens do.
    """

    step: float = 0.0
    token: float = 0.0
    pair: float = 0.0
    window: float = 0.0
    row: float = 0.0
    key: float = 0.0
    page: float = 0.0
    budget: float = math.inf

    def chunk(self, start: int, stop: int) -> float:
        """Seconds of prompt tokens [start, stop)."""
        return (stop - start) * (self.token + self.pair * (start + stop) / 2)

    def most(self, start: int, seconds: float) -> int:
        """The most prompt tokens from ``start`` on that take no longer than ``seconds``."""
        if not 0 < seconds < math.inf:
            return 2**31 if seconds > 0 else 0
        linear = self.token + self.pair * start
        if not self.pair:
            return math.floor(seconds / linear) if linear else 2**31
        root = math.sqrt(linear * linear + 2 * self.pair * seconds)
        return math.floor(2 * seconds / (linear + root))  # the positive root of pair/2 n² + linear n = seconds

    @classmethod
    def of(
        cls,
        config: ModelConfig,
        *,
        budget: float = 0.04,
        matmul: float = 600e12,
        attention: float = 400e12,
        memory: float = 2.7e12,
        host: float = 50e9,
        overhead: float = 1e-3,
        itemsize: int = 2,
    ) -> Costs:
        """Those of a model on one GPU; its rates are assumptions for an H100 in 16 bits.

        Rows and the keys they attend to are read once a step and computed beside it; prompts are compute alone.

        Args:
            config: of the model.
            budget: seconds of a step while sequences decode.
            matmul, attention: FLOP/s that products with the weights and attention reach.
            memory: B/s that reads of weights, keys and values reach.
            host: B/s that copies from the host's memory reach.
            overhead: seconds of a step on the host and between kernels.
            itemsize: bytes of a weight, a key and a value.
        """
        text, audio = config.text, config.audio
        kv = text.kv_heads * text.head_dim
        weights = text.layers * text.width * (2 * text.width + 2 * kv + 3 * text.ffn)
        head = text.width * text.vocab_size
        places = audio.max_positions
        encoder = 2 * audio.layers * places * (4 * audio.width**2 + 2 * audio.width * audio.ffn)
        encoder += 4 * audio.layers * places**2 * audio.width
        encoder += 2 * places * audio.width * (2 * 3 * audio.n_mels + 3 * audio.width)  # convolutions of 3 taps
        adaptor = 2 * (places // 2) * (audio.width * text.width + text.width**2)
        return cls(
            step=overhead + itemsize * (weights + head) / memory,
            token=2 * weights / matmul,
            pair=4 * text.layers * text.width / attention,
            window=(encoder + adaptor) / matmul,
            row=2 * (weights + head) / matmul,
            key=itemsize * text.layers * 2 * kv / memory,
            page=itemsize * text.layers * 2 * kv * PAGE / host,
            budget=budget,
        )
