"""Several answers to one prompt: what was sampled, and how they are trained on with the prompt computed once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

import afn_kernels as ak

if TYPE_CHECKING:
    from afn_kernels.attention.schedule import AttentionSchedule


@dataclass(frozen=True)
class SharedPrefix:
    """Where prompts and their answers lie in one stream: all prompts, then all answers, prompt after prompt.

    The last token of each answer is left out: nothing is predicted from it.

    Args:
        prompts: [B + 1] int32, boundaries of the prompts.
        answers: [N + 1] int32, boundaries of the answers, counted from the first of them.
        groups: [B + 1] int32, where the answers of each prompt begin, counted in the same way.
        split: tokens of all prompts.
        input_ids: [tokens of the answers] int64.
        targets: [Σ answer lengths] int64, every token of every answer.
        rows: [Σ answer lengths] int64, the row of the stream that predicts each target.
        steps: [tokens of the answers] int64, how many text tokens after its prompt each token comes, from 1 on.
        last: [tokens of the answers] int64, the last row of each token's prompt.
        schedules: of the three calls of ``attention``, from ``scheduled``.
    """

    prompts: Tensor
    answers: Tensor
    groups: Tensor
    split: int
    input_ids: Tensor
    targets: Tensor
    rows: Tensor
    steps: Tensor
    last: Tensor
    schedules: tuple[AttentionSchedule | None, ...] = (None, None, None)

    @classmethod
    def of(cls, prompts: Tensor, answers: Sequence[Sequence[Sequence[int]]], device: torch.device) -> SharedPrefix:
        """The layout of packed prompts and the token ids of their answers.

        Args:
            prompts: [B + 1] int32, boundaries of the prompts.
            answers: the answers of each prompt, none of them empty; a prompt may have any number of them.
            device: where the layout is wanted.

        Raises:
            ValueError: another number of prompts, or an answer without tokens.
        """
        if len(answers) != len(prompts) - 1:
            raise ValueError(f"answers to {len(answers)} prompts, but the batch has {len(prompts) - 1}")
        empty = [index for index, group in enumerate(answers) for answer in group if not len(answer)]
        if empty:
            raise ValueError(f"prompt {empty[0]} has an answer without tokens")
        every = [torch.tensor(answer, dtype=torch.int64) for group in answers for answer in group]
        lengths = torch.tensor([len(answer) for answer in every], dtype=torch.int64)
        sizes = torch.tensor([len(group) for group in answers], dtype=torch.int64)
        fed = _boundaries(lengths - 1)
        split = int(prompts[-1])
        last = prompts[1:].cpu().long() - 1
        last_of_answer = torch.repeat_interleave(last, sizes)
        first = _boundaries(lengths)[:-1]
        within = torch.arange(int(lengths.sum())) - torch.repeat_interleave(first, lengths)
        row = split - 1 + torch.repeat_interleave(fed[:-1], lengths) + within
        none = torch.empty(0, dtype=torch.int64)
        tensors: dict[str, Any] = {
            "prompts": prompts.to(torch.int32),
            "answers": fed.to(torch.int32),
            "groups": fed[_boundaries(sizes)].to(torch.int32),
            "input_ids": torch.cat([none, *(answer[:-1] for answer in every)]),
            "targets": torch.cat([none, *every]),
            "rows": torch.where(within == 0, torch.repeat_interleave(last_of_answer, lengths), row),
            "steps": within[within > 0],
            "last": torch.repeat_interleave(last_of_answer, lengths - 1),
        }
        return cls(split=split, **{name: tensor.to(device) for name, tensor in tensors.items()})

    @property
    def tokens(self) -> int:
        """Tokens that pass through the model; each answer with a copy of its prompt would take Σ (prompt + answer)."""
        return self.split + len(self.input_ids)

    def scheduled(self, head_dim: int, dtype: torch.dtype) -> SharedPrefix:
        """The same with its attention schedules, which all layers of a forward pass share."""
        calls, tokens = {"head_dim": head_dim, "dtype": dtype}, len(self.input_ids)
        schedules = (
            ak.attention_schedule(self.prompts, total_q=self.split, causal=True, **calls),
            ak.attention_schedule(self.answers, total_q=tokens, causal=True, return_lse=True, **calls),
            ak.attention_schedule(
                self.groups, self.prompts, total_q=tokens, total_k=self.split, return_lse=True, **calls
            ),
        )
        return replace(self, schedules=schedules)

    def attention(self, q: Tensor, k: Tensor, v: Tensor, positions: Tensor, inv_freq: Tensor) -> Tensor:
        """Prompts see themselves; answers see themselves, and then all of their prompt; all but the last causally.

        The prompts, which are nearly all of the work, need no log-sum-exp and take the fastest kernel there is.

        Args:
            q: [T, Hq, D].
            k, v: [T, Hk, D].
            positions: [T] float32, by which q and k are rotated.
            inv_freq: [D / 2] float32.

        Returns:
            [T, Hq, D], dtype of q.
        """
        q, k = ak.rotary(q, k, positions, inv_freq)
        (qp, qa), (kp, ka), (vp, va) = (x.tensor_split([self.split]) for x in (q, k, v))
        first, second, third = self.schedules
        prompt = ak.attention(qp, kp, vp, cu_seqlens_q=self.prompts, causal=True, schedule=first)
        assert isinstance(prompt, Tensor)
        out, lse = ak.attention(qa, ka, va, cu_seqlens_q=self.answers, causal=True, return_lse=True, schedule=second)
        boundaries = {"cu_seqlens_q": self.groups, "cu_seqlens_k": self.prompts, "schedule": third}
        answer, _ = ak.attention(qa, kp, vp, **boundaries, carry=(out.to(lse.dtype), lse))
        return torch.cat((prompt, answer.to(q.dtype)))


def _boundaries(lengths: Tensor) -> Tensor:
    return torch.nn.functional.pad(lengths.cumsum(0), (1, 0))
