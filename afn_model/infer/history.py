"""A conversation that goes on: what one turn computed is there for the next."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from afn_model.network.kv_cache import KVCache
from afn_model.prompt.batch import Batch

if TYPE_CHECKING:
    from afn_model.network.network import Network

BLOCK = 4096  # tokens: room for keys and values comes in multiples of it, so that not every turn copies them


@dataclass
class HeldAudio:
    """The windows [W, samples] of a recording, their valid samples [W], and its embeddings where they were needed."""

    windows: Tensor
    samples: Tensor
    embeddings: Tensor | None = None

    def same_as(self, other: HeldAudio) -> bool:
        if not torch.equal(self.samples, other.samples) or self.windows.dtype != other.windows.dtype:
            return False
        width = min(self.windows.shape[1], other.windows.shape[1])  # beyond it there is only padding
        return torch.equal(self.windows[:, :width], other.windows[:, :width])


class History:
    """Keys and values of a conversation's tokens, and the embeddings of its recordings.

    A prompt is compared with what is held, token by token and recording by recording, and computed from the first
    difference on. It belongs to the model that it was first used with and holds nothing for another one; a model whose
    weights change in between needs a new one.
    """

    def __init__(self):
        self.clear()

    def clear(self) -> None:
        """Forgets everything."""
        self.model: Network | None = None
        self.cache: KVCache | None = None
        self.ids = torch.empty(0, dtype=torch.int64)
        self.clips: list[HeldAudio] = []

    def prefill(self, model: Network, batch: Batch, max_new_tokens: int) -> tuple[Tensor, Tensor]:
        """Computes what is new in a prompt.

        Args:
            model: the model.
            batch: one prompt, ending where the answer begins.
            max_new_tokens: tokens that the answer may have; the cache has room for them.

        Returns:
            hidden states [n, width] and positions [n] of the prompt's last n tokens, which were computed.
        """
        if self.model is not model:
            self.clear()
            self.model = model
        ids, clips = batch.input_ids.cpu(), clips_of(batch)
        for clip in clips:
            held = next((one for one in self.clips if one.same_as(clip)), None)
            clip.embeddings = None if held is None else held.embeddings
        kept, before = self.common(ids, batch, clips, model.config.audio_token_id)
        capacity = -(-(len(ids) + max_new_tokens) // BLOCK) * BLOCK
        if self.cache is None:
            self.cache = KVCache(model.config.text, 1, capacity, model.dtype, model.device)
        # From here on the cache is written to: if that is interrupted, what is kept is still there.
        self.ids, self.clips = ids[:kept], clips
        self.cache.resume(kept, capacity)
        audio = self.embeddings(model, batch, before)
        x_TD = model.embed(ids[kept:].to(model.device), audio)
        positions = model.positions(batch)[kept:]
        cu_seqlens = torch.tensor([0, len(x_TD)], dtype=torch.int32, device=model.device)
        hidden = model.language_model(x_TD, positions, cu_seqlens=cu_seqlens, cache=self.cache)
        self.ids = ids
        return hidden, positions

    def common(self, ids: Tensor, batch: Batch, clips: list[HeldAudio], audio_token_id: int) -> tuple[int, int]:
        """How many tokens of a prompt need not be computed, and how many of its recordings are wholly among them."""
        length = min(len(ids), len(self.ids))
        differ = (ids[:length] != self.ids[:length]).nonzero()
        # The last token is always computed: the answer begins with its hidden state.
        kept = min(length if not len(differ) else int(differ[0]), len(ids) - 1)
        placeholders = (ids == audio_token_id).nonzero().squeeze(1).tolist()
        at = 0
        for index, tokens in enumerate(tokens_of(batch)):
            known = index < len(self.clips) and clips[index].same_as(self.clips[index])
            if not known or placeholders[at : at + tokens][-1:] >= [kept]:
                return min([kept, *placeholders[at : at + 1]]), index
            at += tokens
        return kept, len(clips)

    def embeddings(self, model: Network, batch: Batch, before: int) -> Tensor | None:
        """Of the recordings from number ``before`` on, [tokens, width]; those that are not known yet are computed."""
        wanted = self.clips[before:]
        new = [before + i for i, clip in enumerate(wanted) if clip.embeddings is None]
        if new:
            starts = torch.repeat_interleave(torch.arange(len(self.clips)), batch.windows_per_audio.cpu())
            rows = torch.isin(starts, torch.tensor(new))
            assert batch.pcm is not None
            part = Batch(
                input_ids=batch.input_ids[:0],
                cu_seqlens=batch.cu_seqlens[:1],
                pcm=batch.pcm[rows],
                samples=batch.samples[rows],
                windows_per_audio=batch.windows_per_audio[new],
            )
            encoded = model.encode_batch(part)
            assert encoded is not None
            audio = model.project(*encoded, part.windows_per_audio.tolist())
            for index, embeddings in zip(new, audio.split(tokens_of(part)), strict=True):
                self.clips[index].embeddings = embeddings
        found = [clip.embeddings for clip in wanted if clip.embeddings is not None]
        return torch.cat(found) if found else None

    def append(self, tokens: list[int]) -> None:
        """Notes tokens of the answer that the model has been fed since the prompt."""
        self.ids = torch.cat((self.ids, torch.tensor(tokens, dtype=torch.int64)))


def clips_of(batch: Batch) -> list[HeldAudio]:
    """The recordings of a batch, in order of appearance."""
    if batch.pcm is None:
        return []
    windows = batch.windows_per_audio.tolist()
    return [HeldAudio(*pair) for pair in zip(batch.pcm.split(windows), batch.samples.split(windows), strict=True)]


def tokens_of(batch: Batch) -> list[int]:
    """Audio tokens of each recording of a batch."""
    if batch.pcm is None:
        return []
    return [int(tokens.sum()) for tokens in batch.window_tokens.split(batch.windows_per_audio.tolist())]
