"""Rotary positions of packed tokens: integers, or timestamps when the paper's reading of RoTE is on."""

from __future__ import annotations

import torch
from torch import Tensor

from afn_model.config import RoteConfig


def rotary_positions(
    input_ids: Tensor, cu_seqlens: Tensor, audio_token_id: int, tokens_per_audio: list[int], rote: RoteConfig
) -> Tensor:
    """The float32 position of every packed token, in units of one 40 ms step.

    The checkpoint reading counts tokens. The paper reading runs a clock: frame j of a clip sits at the clip's start
    + j, a text token advances the clock by ``rote.text_step``, and with ``clock="restart"`` every clip of a
    conversation starts where the first one did. Without gaps both are the same.

    Args:
        input_ids: [T] int64, packed.
        cu_seqlens: [B + 1] int32.
        audio_token_id: the id of the placeholders.
        tokens_per_audio: audio tokens of every clip, in order of appearance.
        rote: which reading, and its clock.

    Returns:
        [T] float32 on the device of ``input_ids``.
    """
    lengths = cu_seqlens.diff().long()
    index = torch.arange(len(input_ids), device=input_ids.device)
    index = index - torch.repeat_interleave(cu_seqlens[:-1].long(), lengths)
    if rote.reading != "paper" or (rote.text_step == 1.0 and rote.clock == "continue"):
        return index.float()

    is_audio = (input_ids == audio_token_id).cpu()
    advance = torch.where(is_audio, 1.0, rote.text_step).double()
    positions = torch.empty(len(input_ids), dtype=torch.float64)
    clips = iter(tokens_per_audio)
    for start, stop in zip(cu_seqlens.tolist()[:-1], cu_seqlens.tolist()[1:], strict=True):
        clock = advance[start:stop].cumsum(0) - advance[start:stop]
        if rote.clock == "restart":
            rows = is_audio[start:stop].nonzero().squeeze(1).tolist()
            first = float(clock[rows[0]]) if rows else 0.0
            while rows:
                clock[rows[0] :] += first - float(clock[rows[0]])
                rows = rows[next(clips) :]
        positions[start:stop] = clock
    return positions.float().to(input_ids.device)
