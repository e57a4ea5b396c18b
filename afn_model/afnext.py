"""The public class: the network with checkpoints and generation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from afn_model.infer.generate import generate, sample
from afn_model.infer.rollout import Rollout
from afn_model.infer.sampling_params import SamplingParams
from afn_model.network.fused import quantise_fp8
from afn_model.network.network import Network
from afn_model.prompt.batch import Batch
from afn_model.weights.checkpoint import load, save


class AFNext(Network):
    """The whole model. ``AFNext(config)`` has random weights; ``AFNext.from_pretrained(folder)`` reads a checkpoint."""

    def generate(
        self,
        batch: Batch,
        max_new_tokens: int = 1024,
        *,
        repetition_penalty: float | None = None,
        temperature: float = 0.0,
        top_p: float = 1.0,
        stop_token_ids: tuple[int, ...] | None = None,
        seed: int | None = None,
        on_token: Callable[[int, int], None] | None = None,
    ) -> list[list[int]]:
        """New tokens for each conversation of a batch; see ``afn_model.infer.generate``."""
        params = SamplingParams(
            max_new_tokens=max_new_tokens,
            repetition_penalty=repetition_penalty,
            temperature=temperature,
            top_p=top_p,
            seed=seed,
            stop_token_ids=stop_token_ids,
        )
        return generate(self, batch, params, on_token=on_token)

    def sample(
        self,
        batch: Batch,
        max_new_tokens: int,
        *,
        seed: int,
        samples: int = 1,
        temperature: float = 1.0,
        top_p: float = 1.0,
        keys: Sequence[int] | None = None,
        stop_token_ids: tuple[int, ...] | None = None,
        encoded: tuple[Tensor, list[int]] | None = None,
    ) -> list[Rollout]:
        """``samples`` random answers to each prompt of a batch; see ``afn_model.infer.generate.sample``."""
        params = SamplingParams(
            max_new_tokens=max_new_tokens,
            repetition_penalty=1.0,
            temperature=temperature,
            top_p=top_p,
            seed=seed,
            n=samples,
            stop_token_ids=stop_token_ids,
        )
        return sample(self, batch, params, keys=keys, encoded=encoded)

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        *,
        dtype: torch.dtype | None = None,
        device: str | torch.device = "cpu",
        rote: str | None = None,
        weights: str | None = None,
    ) -> AFNext:
        """Reads a checkpoint folder in any layout; see ``afn_model.weights.checkpoint.load``.

        Args:
            folder: of the checkpoint.
            dtype: of the weights; as stored if None.
            device: of the weights.
            rote: reading of the rotary time embedding; what the folder says if None.
            weights: "fp8" holds and multiplies the linear layers of the language model's blocks in FP8, with a scale
                for each row of weights and of activations, for generation alone; None leaves them in ``dtype``.

        Raises:
            ValueError: what ``load`` raises; other ``weights``.
        """
        if weights not in (None, "fp8"):
            raise ValueError(f"weights {weights!r}: 'fp8' or None is expected")
        model = load(cls, folder, dtype=dtype, device=device, rote=rote)
        if weights == "fp8":
            quantise_fp8(model.language_model)
        return model

    def save_pretrained(self, folder: str | Path, layout: str = "transformers") -> None:
        """Writes a checkpoint folder; see ``afn_model.weights.checkpoint.save``."""
        save(self, folder, layout)
