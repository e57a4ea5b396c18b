"""Settings of GRPO and of what has been made of it since."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

SCALES = ("std", "none")
LOSSES = ("answer", "token")
MOST_TIMEOUT = 480.0  # seconds: ranks wait for each other's rewards, and a collective gives up after 600


@dataclass(frozen=True)
class GRPOSettings:
    """Numbers of GRPO.

    Args:
        group: answers to each prompt.
        clip: how far the ratio of new to old probability counts, 1 ± clip.
        clip_high: the same above 1, where it differs: DAPO ("clip-higher", arXiv:2503.14476) has 0.28 beside 0.2, so
            that unlikely tokens can become likely.
        kl: weight β of the KL penalty to the reference policy; 0 needs no reference.
        temperature, top_p: of the sampling. Training compares log-probabilities at the same temperature.
        max_new_tokens: longest answer, its stop token included.
        updates: optimiser steps on the answers of one step.
        epsilon: added to the standard deviation of a group's rewards.
        scale: what a group's deviations from their mean are divided by: "std", or "none" as in Dr. GRPO (Liu et al.,
            2025, arXiv:2503.20783), since a division weighs questions that are nearly always or nearly never answered
            right more than others.
        loss: "answer" averages tokens within each answer, then answers; "token" averages the tokens of all answers
            (DAPO), so that a long answer weighs more than a short one.
        importance_cap: each token's objective is weighed by min(p_old / p_sampler, cap), with p_old as the trainer
            computes it, for sampler and trainer differ by rounding: truncated importance sampling (Ionides, 2008; for
            this mismatch Yao et al., 2025, "Your Efficient RL Framework Secretly Brings You Off-Policy RL Training").
            None leaves the weight out.
        drop_equal: leave groups whose rewards are all equal out of the loss and of its mean. It is the half of DAPO's
            dynamic sampling that needs no further prompts: the batch becomes smaller, not other.
        dynamic_sampling: the whole of it (section 3.2): ``drop_equal``, and while fewer groups than ``batch_prompts``
            are left, as many prompts as a step has are drawn again, at most so many times; groups beyond
            ``batch_prompts`` are left out. With fewer after the last draw the step trains on those. 0 draws none.
        overlong: so many tokens before ``max_new_tokens`` the reward begins to fall, by 1 at ``max_new_tokens`` (DAPO's
            soft overlong punishment); 0 does not punish.
        mask_truncated: leave answers that ``max_new_tokens`` has cut off out of the loss (DAPO's overlong filtering);
            they still count in their group's mean.
        prompts: number of prompts that are sampled together.
        pass_tokens: tokens of prompts and answers that share a forward and backward; a larger prompt with its answers
            has one to itself. The stage's ``context`` if None.
        max_seconds: longest audio of a prompt; the processor's limit if None.
        judge: fields of ``afn_model.scoring.judge.Endpoint``; without it, rewards of kind judge are left out.
        functions: "package.module:name" of the functions that rewards of kind python may name.
        reward_timeout: seconds for each of them in a step.
    """

    group: int = 5
    clip: float = 0.2
    clip_high: float | None = None
    kl: float = 0.04
    temperature: float = 1.0
    top_p: float = 1.0
    max_new_tokens: int = 1024
    updates: int = 1
    epsilon: float = 1e-4
    scale: str = "std"
    loss: str = "answer"
    importance_cap: float | None = 2.0
    drop_equal: bool = False
    dynamic_sampling: int = 0
    overlong: int = 0
    mask_truncated: bool = False
    prompts: int = 4
    pass_tokens: int | None = None
    max_seconds: float | None = None
    judge: dict[str, Any] | None = None
    functions: Sequence[str] = ()
    reward_timeout: float = 60.0

    def __post_init__(self):
        least = min(
            self.max_new_tokens, self.updates, self.prompts, 1 if self.pass_tokens is None else self.pass_tokens
        )
        if least < 1 or self.group < 2 or self.clip <= 0 or self.kl < 0 or self.epsilon <= 0:
            raise ValueError(
                f"out of range: {self}; group >= 2, max_new_tokens, updates, prompts and pass_tokens >= 1, clip and "
                "epsilon > 0 and kl >= 0 are expected"
            )
        if math.inf in (self.temperature, self.kl, self.epsilon):
            raise ValueError(f"out of range: {self}; finite temperature, kl and epsilon are expected")
        if self.temperature <= 0 or not 0 < self.top_p <= 1:
            raise ValueError(f"temperature {self.temperature}, top_p {self.top_p}: > 0 and in (0, 1] are expected")
        if self.scale not in SCALES or self.loss not in LOSSES:
            raise ValueError(
                f"scale {self.scale!r}, loss {self.loss!r}: one of {', '.join(SCALES)} and one of {', '.join(LOSSES)} "
                "are expected"
            )
        capped = self.importance_cap is None or self.importance_cap > 0
        if not capped or not (self.clip_high is None or self.clip_high > 0):
            raise ValueError(
                f"importance_cap {self.importance_cap}, clip_high {self.clip_high}: above 0 or null is expected"
            )
        if not 0 <= self.overlong < self.max_new_tokens:
            raise ValueError(
                f"overlong is {self.overlong}; 0 to below max_new_tokens {self.max_new_tokens} is expected"
            )
        if self.dynamic_sampling < 0:
            raise ValueError(f"dynamic_sampling is {self.dynamic_sampling}; a whole number from 0 is expected")
        if self.max_seconds is not None and not self.max_seconds > 0:
            raise ValueError(f"max_seconds is {self.max_seconds}; above 0 or null is expected")
        if not 0 < self.reward_timeout <= MOST_TIMEOUT:
            raise ValueError(
                f"reward_timeout is {self.reward_timeout} s; above 0 and at most {MOST_TIMEOUT:g} are expected"
            )
        if isinstance(self.functions, str) or not all(isinstance(name, str) for name in self.functions):
            raise ValueError(f"functions is {self.functions!r:.60}; a list of package.module:name is expected")

    @property
    def leaves_equal_out(self) -> bool:
        return self.drop_equal or self.dynamic_sampling > 0

    @property
    def needs_reference(self) -> bool:
        return self.kl > 0
