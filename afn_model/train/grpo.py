"""GRPO: groups of sampled answers, advantages in each group, a clipped ratio, a KL penalty to a reference policy."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from afn_model.afnext import AFNext
from afn_model.data.loader import GlobalBatch
from afn_model.data.plan import question
from afn_model.data.records import Sample
from afn_model.hashing import key, text_key
from afn_model.infer.rollout import Rollout
from afn_model.prompt.batch import Batch, Prepared
from afn_model.prompt.conversation import SILENCE
from afn_model.prompt.processor import AFNextProcessor
from afn_model.scoring import rewards
from afn_model.scoring.judge import Endpoint, GradeRequest, Judge


@dataclass(frozen=True)
class GRPOSettings:
    """Numbers of GRPO.

    Args:
        group: answers to each prompt.
        clip: how far the ratio of new to old probability counts, 1 ± clip.
        kl: weight β of the KL penalty to the reference policy; 0 needs no reference.
        temperature, top_p: of the sampling. Training compares log-probabilities at the same temperature.
        max_new_tokens: longest answer, its stop token included.
        updates: optimiser steps on the answers of one step.
        epsilon: added to the standard deviation of a group's rewards.
        prompts: number of prompts that are sampled together, and whose answers share a forward and backward.
        max_seconds: longest audio of a prompt; the processor's limit if None.
        judge: fields of ``afn_model.scoring.judge.Endpoint``; without it, rewards of kind judge are left out.
    """

    group: int = 5
    clip: float = 0.2
    kl: float = 0.04
    temperature: float = 1.0
    top_p: float = 1.0
    max_new_tokens: int = 1024
    updates: int = 1
    epsilon: float = 1e-4
    prompts: int = 4
    max_seconds: float | None = None
    judge: dict[str, Any] | None = None

    def __post_init__(self):
        counts = min(self.max_new_tokens, self.updates, self.prompts) >= 1 and self.group >= 2
        if not counts or self.clip <= 0 or self.kl < 0 or self.epsilon <= 0:
            raise ValueError(
                f"out of range: {self}; group >= 2, max_new_tokens, updates and prompts >= 1, clip and epsilon > 0 "
                "and kl >= 0 are expected"
            )
        if self.temperature <= 0 or not 0 < self.top_p <= 1:
            raise ValueError(f"temperature {self.temperature}, top_p {self.top_p}: > 0 and in (0, 1] are expected")


@dataclass
class Pass:
    """Prompts that are sampled and trained on together.

    Args:
        batch: the packed prompts.
        encoded: features of their audio, where the encoder is frozen.
        rollouts: ``group`` answers to each.
        advantages: [answers] float32.
        counted: [answers] float32, 0 for answers to a placeholder prompt.
        old, reference: [tokens] log-probabilities; found in the first update.
    """

    batch: Batch
    encoded: tuple[Tensor, list[int]] | None
    rollouts: list[Rollout]
    advantages: Tensor
    counted: Tensor
    old: Tensor | None = None
    reference: Tensor | None = None


@dataclass
class Tally:
    """Sums over the answers of a step, of this rank and then of all."""

    sums: dict[str, float] = field(default_factory=dict)
    worst: float = 0.0

    def add(self, **values: float) -> None:
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + float(value)


COUNTED = ("answers", "tokens", "kl", "clipped", "trained", "entropy", "length", "mismatch", "reward")
JUDGED = ("judge_asked", "judge_failed")
NAMES = (*COUNTED, *JUDGED, *(f"{what} {kind}" for kind in rewards.KINDS for what in ("sum", "count")))


class GRPO:
    """The update of a step of prompts.

    loss = − 1/N Σ_answers 1/|answer| Σ_tokens [ min(ρ A, clip(ρ, 1 ± c) A) − β (e^d − d − 1) ], ρ = p / p_old,
    d = log p_reference − log p, A = (r − mean r) / (std r + ε) within the group, and 0 where all its rewards are equal.
    N counts the answers of all ranks. Tokens are averaged within an answer first, so that an answer of a word and one
    of a page, which a blend of questions and captions both has, weigh the same.

    With one update, p_old is p itself without gradient: rollouts only choose the tokens, and how much their own
    log-probabilities differ from the trainer's is logged as ``mismatch``.

    Answers are a function of (seed, position in the data, the sample's id, number of the answer), whatever the number
    of ranks and wherever the run was resumed.

    Args:
        model: the policy.
        processor: of the model.
        settings: the numbers.
        reference: from ``frozen_reference``; None where ``settings.kl`` is 0.
        seed: of the sampling.
        gather: sums a tensor over the ranks.
        gathered: where weights are sharded, a context in which they are whole; every pass then has audio, because all
            ranks must run all parts of the model.

    Raises:
        ValueError: a KL weight without a reference; a judge that is not an endpoint.
    """

    def __init__(
        self,
        model: AFNext,
        processor: AFNextProcessor,
        settings: GRPOSettings,
        reference: AFNext | None = None,
        *,
        seed: int = 0,
        gather: Callable[[Tensor], Tensor] = lambda tensor: tensor,
        gathered: Callable[[AFNext], AbstractContextManager] | None = None,
    ):
        if settings.kl and reference is None:
            raise ValueError(f"kl is {settings.kl}, but there is no reference")
        self.model, self.processor, self.settings, self.reference = model, processor, settings, reference
        self.seed, self.gather, self.sharded = seed, gather, gathered is not None
        self.gathered = gathered or nullcontext
        self.judge = Judge(Endpoint(**settings.judge)) if settings.judge else None
        self.tally = Tally()
        self.answers: list[dict[str, Any]] = []  # of the first pass of the last step

    def updates(self, global_batch: GlobalBatch, *, detailed: bool = False) -> Iterator[list[Callable[[], Tensor]]]:
        """Samples and judges, then ``settings.updates`` optimiser steps, each a loss per ``settings.prompts`` prompts.

        A prompt that cannot be read or has no reward is added to its micro batch's ``bad``. All ranks make equally many
        losses, with zero-weight placeholder prompts where a rank has too few; none where no prompt is left.

        Raises:
            ValueError: a sample whose rewards are malformed, by its id; a judge that grades nothing at all.
        """
        self.tally, self.answers = Tally(), []
        visit = key(self.seed, global_batch.position.chunk, global_batch.position.step)
        passes = [self.roll_out(prompts, visit) for prompts in self.prompt_groups(global_batch)]
        self.require_judge()
        answers = float(self.gather(torch.tensor(sum(float(one.counted.sum()) for one in passes))))
        for update in range(self.settings.updates):
            yield [partial(self.loss, one, max(answers, 1.0), update) for one in passes]
        self.collect()

    def prompt_groups(self, global_batch: GlobalBatch) -> Iterator[list[tuple[Sample | None, Prepared]]]:
        """The batch's usable prompts, ``settings.prompts`` at a time, equally many times on all ranks."""
        usable: list[tuple[Sample | None, Prepared]] = []
        for micro in global_batch.micro:
            good = []
            made = micro.prepared or [None] * len(micro.samples)
            for sample, prepared in zip(micro.samples, made, strict=True):
                self.check(sample)
                try:
                    usable.append((sample, self.prepare(sample, prepared)))
                    good.append(sample)
                except ValueError as error:
                    micro.bad.append((sample.id, str(error)))
            micro.samples = good
        size = self.settings.prompts
        placeholder = (None, self.processor.prepare(SILENCE))
        first = 0
        while float(self.gather(torch.tensor(float(first < len(usable))))) > 0:
            group = usable[first : first + size]
            no_audio = self.sharded and not any(prepared.clips for _, prepared in group)
            yield group + [placeholder] * (no_audio or not group)
            first += size

    def check(self, sample: Sample) -> None:
        try:
            rewards.check(sample.rewards)
        except ValueError as error:
            raise ValueError(f"{sample.id}: {error}") from None

    def prepare(self, sample: Sample, prepared: Prepared | None = None) -> Prepared:
        """Reads a sample's prompt, its turns up to the last answer, unless the loader's workers have done so.

        Raises:
            ValueError: audio that cannot be read, a prompt past the context, no rewards.
        """
        if not self.specs(sample):
            raise ValueError("no rewards" + (" without a judge" if sample.rewards else ""))
        if prepared is None:
            options = {"add_generation_prompt": True, "max_seconds": self.settings.max_seconds}
            prepared = self.processor.prepare(question(sample.turns), **options)
        context = self.model.config.text.max_positions
        if len(prepared.ids) >= context:
            raise ValueError(f"{len(prepared.ids)} tokens leave no room for an answer in a context of {context}")
        return prepared

    def specs(self, sample: Sample) -> list[dict]:
        """The rewards that can be found here."""
        return [spec for spec in sample.rewards if self.judge or spec.get("kind") != rewards.JUDGE]

    def roll_out(self, prompts: list[tuple[Sample | None, Prepared]], visit: int) -> Pass:
        """Samples the answers to some prompts and judges them."""
        settings = self.settings
        batch = self.processor.pack([prepared for _, prepared in prompts])
        frozen = not any(parameter.requires_grad for parameter in self.model.encoder.parameters())
        samples = [sample for sample, _ in prompts]
        with torch.no_grad(), self.gathered(self.model):
            encoded = self.model.encode_batch(batch)
            rollouts = self.model.sample(
                batch,
                settings.max_new_tokens,
                seed=visit,
                samples=settings.group,
                temperature=settings.temperature,
                top_p=settings.top_p,
                keys=[0 if sample is None else number_of(sample) for sample in samples],
                encoded=encoded,
            )
        read = sum(len(prepared.ids) for sample, prepared in prompts if sample is not None)
        said = sum(len(rollout.tokens) for rollout in rollouts if samples[rollout.prompt] is not None)
        self.tally.add(stream=read + said)
        totals = torch.tensor(self.judged(samples, rollouts)).view(len(samples), settings.group)
        counted = torch.tensor([float(sample is not None) for sample in samples]).repeat_interleave(settings.group)
        return Pass(batch, encoded if frozen else None, rollouts, advantages(totals, settings.epsilon), counted)

    def judged(self, samples: list[Sample | None], rollouts: list[Rollout]) -> list[float]:
        """The total reward of every answer; the kinds go to the tally."""
        texts = [self.processor.decode(rollout.answer) for rollout in rollouts]
        grades = self.grades(samples, rollouts, texts)
        totals, kept = [], {}
        for rollout, text, judged in zip(rollouts, texts, grades, strict=True):
            sample = samples[rollout.prompt]
            if sample is None:
                totals.append(0.0)
                continue
            specs = self.specs(sample)
            by_kind = rewards.reward(text, specs, judged)
            totals.append(rewards.total(by_kind, specs))
            one = kept.setdefault(rollout.prompt, {"id": sample.id, "answers": []})
            one["answers"].append({"text": text, "reward": totals[-1], "rewards": by_kind})
            for kind, value in by_kind.items():
                self.tally.add(**{f"sum {kind}": value, f"count {kind}": 1})
            self.tally.add(
                answers=1,
                reward=totals[-1],
                length=len(rollout.tokens),
                tokens=len(rollout.tokens),
                entropy=-float(rollout.logprobs.sum()),
            )
        self.answers = self.answers or list(kept.values())
        return totals

    def grades(self, samples: list[Sample | None], rollouts: list[Rollout], texts: list[str]) -> list[list[float]]:
        """The judge's grades of every answer; none where one answer of the group got no grade, since advantages are
        relative within the group."""
        cases, places = [], []
        for index, rollout in enumerate(rollouts):
            sample = samples[rollout.prompt]
            for spec in sample.rewards if self.judge and sample else ():
                if spec["kind"] == rewards.JUDGE:
                    asked = next(turn.text for turn in reversed(sample.turns) if turn.role == "user")
                    cases.append(GradeRequest(asked, texts[index], spec["rubric"]))
                    places.append(index)
        given: list[list[float | None]] = [[] for _ in rollouts]
        for index, grade in zip(places, self.judge.grades(cases) if cases else [], strict=True):
            given[index].append(grade)
        failed = sum(grade is None for grades in given for grade in grades)
        self.tally.add(judge_asked=len(cases), judge_failed=failed)
        failed = {rollouts[index].prompt for index, grades in enumerate(given) if None in grades}
        return [[] if rollouts[i].prompt in failed else grades for i, grades in enumerate(given)]

    def require_judge(self) -> None:
        """Raises before weights change where the judge graded no answer on any rank."""
        if self.judge is None:
            return
        asked, failed = self.gather(torch.tensor([self.tally.sums.get(name, 0.0) for name in JUDGED])).tolist()
        if failed == asked > 0:
            raise ValueError(f"the judge graded none of {int(asked)} answers: {self.judge.last_failure}")

    def loss(self, one: Pass, answers: float, update: int) -> Tensor:
        """This pass's part of the loss."""
        settings, device = self.settings, self.model.device
        tokens = [
            [rollout.tokens for rollout in one.rollouts[first : first + settings.group]]
            for first in range(0, len(one.rollouts), settings.group)
        ]
        options = {"temperature": settings.temperature, "encoded": one.encoded}
        logprobs = self.model.answer_logprobs(one.batch, tokens, **options)
        if one.old is None:
            one.old = logprobs.detach()
            if settings.kl:
                with torch.no_grad():
                    one.reference = self.reference.answer_logprobs(one.batch, tokens, **options)
        lengths = torch.tensor([len(rollout.tokens) for rollout in one.rollouts])
        answer = torch.repeat_interleave(torch.arange(len(lengths)), lengths)
        advantage = one.advantages[answer].to(device)
        weight = (one.counted / lengths)[answer].to(device)

        ratio = (logprobs - one.old).exp()
        objective = torch.minimum(ratio * advantage, ratio.clamp(1 - settings.clip, 1 + settings.clip) * advantage)
        divergence = torch.zeros_like(ratio)
        if settings.kl:
            d = one.reference - logprobs
            divergence = d.exp() - d - 1
            objective = objective - settings.kl * divergence
        self.observe(one, update, ratio.detach(), divergence.detach(), advantage, weight)
        return -(weight * objective).sum() / answers

    def observe(
        self, one: Pass, update: int, ratio: Tensor, divergence: Tensor, advantage: Tensor, weight: Tensor
    ) -> None:
        """Adds a pass to the tally: of all updates what the clip does, of the first one the rest."""
        clip, counted = self.settings.clip, weight > 0
        beyond = ((ratio > 1 + clip) & (advantage > 0)) | ((ratio < 1 - clip) & (advantage < 0))
        self.tally.add(clipped=(beyond & counted).sum(), trained=counted.sum())
        if update == 0 and counted.any():
            said = torch.cat([rollout.logprobs for rollout in one.rollouts]).to(ratio.device)
            mismatch = (said - one.old).abs()[counted]
            self.tally.add(kl=(weight * divergence).sum(), mismatch=mismatch.sum())
            self.tally.worst = max(self.tally.worst, float(mismatch.max()))

    def collect(self) -> None:
        """Adds up the tallies of all ranks."""
        sums = torch.tensor([self.tally.sums.get(name, 0.0) for name in NAMES], dtype=torch.float64)
        self.tally.sums |= dict(zip(NAMES, self.gather(sums).tolist(), strict=True))

    def work(self) -> dict[str, float]:
        """Tokens of this rank's prompts and answers; their FLOPs are not counted."""
        return {"tokens": self.tally.sums.get("stream", 0.0)}

    def metrics(self) -> dict[str, Any]:
        """Means over all ranks of the last step, none without answers; ``mismatch_max`` is this rank's.

        ``entropy`` is an estimate, −log p of the sampled tokens; ``kl`` is that of the loss, before the update.
        """
        sums = {name: self.tally.sums.get(name, 0.0) for name in NAMES}
        means = {
            "reward": ("reward", "answers"),
            "kl": ("kl", "answers"),
            "clip_share": ("clipped", "trained"),
            "entropy": ("entropy", "tokens"),
            "length": ("length", "answers"),
            "mismatch": ("mismatch", "tokens"),
        }
        metrics: dict[str, Any] = {name: sums[a] / sums[n] for name, (a, n) in means.items() if sums[n]}
        kinds = [kind for kind in rewards.KINDS if sums[f"count {kind}"]]
        metrics["rewards"] = {kind: sums[f"sum {kind}"] / sums[f"count {kind}"] for kind in kinds}
        metrics["mismatch_max"] = self.tally.worst
        return metrics | ({name: int(sums[name]) for name in JUDGED} if self.judge else {})


def advantages(totals: Tensor, epsilon: float) -> Tensor:
    """(r − mean) / (std + ε) within each group: rewards [prompts, group] to [prompts · group].

    Groups whose rewards are all equal get zeros, not the rounding of their mean.
    """
    deviation = totals - totals.mean(1, keepdim=True)
    scaled = deviation / (totals.std(1, correction=0, keepdim=True) + epsilon)
    equal = (totals == totals[:, :1]).all(1, keepdim=True)
    return torch.where(equal, 0.0, scaled).flatten()


def number_of(sample: Sample) -> int:
    """A 64-bit number for a sample's id and its turns' text, the same in every process."""
    return text_key("\n".join((sample.id, *(turn.text for turn in sample.turns))))


def frozen_reference(model: AFNext, dtype: torch.dtype | None = None) -> AFNext:
    """The model as it is now, without gradients: what trains is copied, what is frozen is shared.

    Call it before the model is sharded: parameters cut over the ranks cannot be copied.

    Args:
        model: with the parameters that will train marked by ``requires_grad``.
        dtype: of the copies; that of the model if None.
    """
    shared = [*(p for p in model.parameters() if not p.requires_grad), *model.buffers()]
    reference = copy.deepcopy(model, {id(tensor): tensor for tensor in shared})
    for parameter in reference.parameters():
        if parameter.requires_grad:
            parameter.requires_grad_(False)
            parameter.data = parameter.data.to(dtype or parameter.dtype)
    for module in reference.modules():
        # checkpoint_blocks binds a forward to the policy's own blocks; the copy must use its own.
        vars(module).pop("forward", None)
    return reference.eval()
