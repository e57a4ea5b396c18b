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
from afn_model.data.records import Sample
from afn_model.hashing import key, text_key
from afn_model.infer.rollout import Rollout
from afn_model.prompt.batch import Prepared
from afn_model.prompt.conversation import SILENCE
from afn_model.prompt.processor import AFNextProcessor
from afn_model.scoring import rewards
from afn_model.train.grading import COUNTS, Graded, Grader, usable_rewards
from afn_model.train.grpo_settings import GRPOSettings
from afn_model.train.passes import (
    AnsweredPrompt,
    PackedAnswers,
    Reference,
    as_reference,
    by_tokens,
    equally_many,
    is_frozen,
    question,
    reference_logprobs,
    split_features,
    usable,
)

__all__ = ["GRPO", "GRPOSettings", "advantages", "frozen_reference", "prepare_prompt"]


@dataclass
class Group(AnsweredPrompt):
    """A prompt with the answers sampled to it.

    Args:
        said: log-probabilities of each answer's tokens as the sampler found them.
        advantages: [answers] float32.
        counted: [answers] float32, 0 for answers that do not train.
    """

    said: list[Tensor] = field(default_factory=list)
    advantages: Tensor = field(default_factory=lambda: torch.empty(0))
    counted: Tensor = field(default_factory=lambda: torch.empty(0))


@dataclass
class Pass:
    """Groups that are trained on together.

    Args:
        packed: prompts and answers.
        said: [tokens] log-probabilities of the sampler.
        advantages, counted: [answers] float32.
        old, reference: [tokens] log-probabilities; ``old`` is found in the first update, whose policy is the old one.
    """

    packed: PackedAnswers
    said: Tensor
    advantages: Tensor
    counted: Tensor
    old: Tensor | None = None
    reference: Tensor | None = None

    @classmethod
    def of(cls, groups: list[Group], processor: AFNextProcessor) -> Pass:
        said = torch.cat([logprobs for group in groups for logprobs in group.said])
        advantages, counted = (
            torch.cat([getattr(group, name) for group in groups]) for name in ("advantages", "counted")
        )
        return cls(PackedAnswers.of(groups, processor), said, advantages, counted)


@dataclass
class Tally:
    """Sums over the answers of a step, of this rank and then of all."""

    sums: dict[str, float] = field(default_factory=dict)
    worst: float = 0.0

    def add(self, **values: float) -> None:
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + float(value)


COUNTED = (
    "answers",
    "tokens",
    "counted",
    "kl",
    "clipped",
    "trained",
    "entropy",
    "length",
    "mismatch",
    "compared",
    "reward",
    "groups",
    "equal",
    "kept",
)
GROUPS = {"groups_drawn": "groups", "groups_equal": "equal", "groups_kept": "kept"}
NAMES = (*COUNTED, *COUNTS, *(f"{what} {kind}" for kind in rewards.KINDS for what in ("sum", "count")))


class GRPO:
    """The update of a step of prompts.

    loss = − 1/N Σ_answers 1/|answer| Σ_tokens [ w min(ρ A, clip(ρ, 1 ± c) A) − β (e^d − d − 1) ], ρ = p / p_old,
    d = log p_reference − log p, A = (r − mean r) / (std r + ε) within the group, and 0 where all its rewards are equal.
    w = min(p_old / p_sampler, cap), of the numbers of trainer and sampler for the same policy. N counts the answers of
    all ranks. Tokens are averaged within an answer first, so that an answer of a word and one of a page, which a blend
    of questions and captions both has, weigh the same. ``GRPOSettings`` has what others do instead.

    With ``settings.dynamic_sampling`` a step draws further global batches until it has ``wanted`` groups whose rewards
    differ (DAPO, arXiv:2503.14476, section 3.2); the next step begins behind them. All ranks draw equally often.

    In the first update p_old is p itself without gradient. How much the log-probabilities of sampler and trainer differ
    is logged as ``mismatch``.

    Answers are a function of (seed, position in the data, the sample's id, number of the answer), whatever the number
    of ranks and wherever the run was resumed. All are sampled and graded before the first of them is trained on; ranks
    wait for each other only then.

    Args:
        model: the policy.
        processor: of the model.
        settings: the numbers.
        reference: from ``frozen_reference``, or a function that lends a model as a context; None where
            ``settings.kl`` is 0.
        context: a prompt has fewer tokens than this, and a pass at most as many unless ``settings.pass_tokens`` says
            otherwise; the model's positions if None.
        seed: of the sampling.
        wanted: groups of a step, over all ranks, for ``settings.dynamic_sampling``.
        gather: sums a tensor over the ranks.
        collect: lists what each rank has.
        gathered: where weights are sharded, a context in which they are whole; every pass then has audio, because all
            ranks must run all parts of the model.

    Raises:
        ValueError: a KL weight without a reference; what ``Grader`` raises.

    Source: Shao et al., 2024, arXiv:2402.03300.
    """

    def __init__(
        self,
        model: AFNext,
        processor: AFNextProcessor,
        settings: GRPOSettings,
        reference: AFNext | Reference | None = None,
        *,
        context: int | None = None,
        seed: int = 0,
        wanted: int = 0,
        gather: Callable[[Tensor], Tensor] = lambda tensor: tensor,
        collect: Callable[[Any], list[Any]] = lambda value: [value],
        gathered: Callable[[AFNext], AbstractContextManager] | None = None,
    ):
        if settings.kl and reference is None:
            raise ValueError(f"kl is {settings.kl}, but there is no reference")
        self.model, self.processor, self.settings = model, processor, settings
        self.reference = None if reference is None else as_reference(reference)
        self.context = model.config.text.max_positions if context is None else context
        self.seed, self.wanted, self.sharded = seed, wanted, gathered is not None
        self.gather, self.collect_objects = gather, collect
        self.gathered = gathered or nullcontext
        self.grader = Grader(settings, processor.decode)
        self.placeholder: Group | None = None
        self.tally = Tally()
        self.answers: list[dict[str, Any]] = []  # to the first prompts of the last step
        self.draws = 0  # global batches of the last step

    def updates(self, global_batch: GlobalBatch, *, detailed: bool = False) -> Iterator[list[Callable[[], Tensor]]]:
        """Samples and grades, then ``settings.updates`` optimiser steps, each a loss per pass.

        A prompt that cannot be read or has no reward is added to its micro batch's ``bad``. All ranks make equally many
        losses, with zero-weight placeholder prompts where a rank has too few; none where no prompt is left.

        Raises:
            ValueError: a sample whose rewards are malformed, by its id; a judge that grades nothing at all, a function
                of one's own that fails for more than half of the prompts.
        """
        self.tally, self.answers, self.draws = Tally(), [], 0
        groups = self.groups(global_batch)
        self.tally.add(kept=len(groups), counted=sum(float(group.counted.sum()) for group in groups))
        passes = list(self.passes(groups))
        if self.settings.kl and self.reference is not None:
            asked = reference_logprobs([one.packed for one in passes], self.reference, self.settings.temperature)
            for one, logprobs in zip(passes, asked, strict=True):
                one.reference = logprobs
        per_token = self.settings.loss == "token"
        weights = [one.counted * one.packed.lengths if per_token else one.counted for one in passes]
        total = float(self.gather(torch.tensor(sum(float(weight.sum()) for weight in weights))))
        for update in range(self.settings.updates):
            yield [partial(self.loss, one, max(total, 1.0), update) for one in passes]
        self.collect()

    def groups(self, global_batch: GlobalBatch) -> list[Group]:
        """The groups of this rank that train, those of further draws included."""
        groups = self.drawn(global_batch)
        for _ in range(self.settings.dynamic_sampling):
            missing = self.wanted - round(float(self.gather(torch.tensor(float(len(groups))))))
            if missing <= 0:
                break
            found = self.drawn(more := global_batch.more())
            groups += self.chosen(found, missing, self.visit(more))
        return groups

    def visit(self, global_batch: GlobalBatch) -> int:
        """A seed for a draw's place in the data."""
        return key(self.seed, global_batch.position.chunk, global_batch.position.step)

    def drawn(self, global_batch: GlobalBatch) -> list[Group]:
        """The groups of one draw that train."""
        found = self.graded(*self.sampled(self.prompts(global_batch), self.visit(global_batch)))
        self.draws += 1
        return found

    def chosen(self, groups: list[Group], room: int, visit: int) -> list[Group]:
        """Of a draw's groups on all ranks so many, by a hash: the same ones whatever the number of ranks.

        A prompt that a draw has twice has equal groups, of which both or none are chosen.
        """
        keys = [key(visit, number_of(group.sample)) for group in groups if group.sample is not None]
        everyone = sorted(one for of_rank in self.collect_objects(keys) for one in of_rank)
        last = everyone[:room][-1] if everyone else 0
        return [group for one, group in zip(keys, groups, strict=True) if one <= last]

    def prompts(self, global_batch: GlobalBatch) -> list[tuple[Sample, Prepared]]:
        """The prompts of this rank that can be used."""

        def read(sample: Sample, prepared: Prepared | None) -> Prepared:
            return prepare_prompt(self.processor, sample, self.settings, self.context, prepared)

        found = usable(global_batch, read, check_rewards)
        for micro in global_batch.micro:
            micro.prepared = None  # the audio of a prompt that is left out is not kept
        return found

    def sampled(
        self, prompts: list[tuple[Sample, Prepared]], visit: int
    ) -> tuple[list[tuple[Sample, Prepared]], list[list[Rollout]], list[Any]]:
        """The answers to this rank's prompts, ``settings.prompts`` at a time, and features of their audio where the
        encoder is frozen. No rank waits for another one in between."""
        settings, frozen = self.settings, is_frozen(self.model.encoder)
        rollouts: list[list[Rollout]] = []
        features: list[Any] = []
        with torch.no_grad(), self.gathered(self.model):
            self.placeholder = self.make_placeholder(frozen and self.sharded)
            for first in range(0, len(prompts), settings.prompts):
                some = prompts[first : first + settings.prompts]
                prepared = [one for _, one in some]
                batch = self.processor.pack(prepared)
                encoded = self.model.encode_batch(batch)
                found = self.model.sample(
                    batch,
                    settings.max_new_tokens,
                    seed=visit,
                    samples=settings.group,
                    temperature=settings.temperature,
                    top_p=settings.top_p,
                    keys=[number_of(sample) for sample, _ in some],
                    encoded=encoded,
                )
                rollouts += [found[at : at + settings.group] for at in range(0, len(found), settings.group)]
                windows = batch.windows_per_audio.tolist()
                features += split_features(encoded, prepared, windows) if frozen else [None] * len(some)
        read = sum(len(prepared.ids) for _, prepared in prompts)
        self.tally.add(stream=read + sum(len(one.tokens) for group in rollouts for one in group))
        return prompts, rollouts, features

    def make_placeholder(self, encode: bool) -> Group:
        """A prompt with audio and an answer that counts nothing."""
        prepared = self.processor.prepare(SILENCE)
        encoded = self.model.encode_batch(self.processor.pack([prepared])) if encode else None
        none = torch.zeros(1)
        return Group(None, prepared, [self.processor.stop_ids[:1]], encoded, [none], none, none)

    def graded(
        self, prompts: list[tuple[Sample, Prepared]], rollouts: list[list[Rollout]], features: list[Any]
    ) -> list[Group]:
        """The groups that train."""
        settings = self.settings
        graded = self.grader.grade([sample for sample, _ in prompts], rollouts)
        self.tally.add(**self.grader.counts)
        if self.grader.asks_others:
            counts = torch.tensor([float(self.grader.counts[name]) for name in COUNTS])
            self.grader.require(self.gather(counts).tolist())
        groups = []
        for number, ((sample, prepared), group, found, encoded) in enumerate(
            zip(prompts, rollouts, graded, features, strict=True)
        ):
            if found.totals is None:
                continue
            totals = torch.tensor(found.totals) + overlong_penalty(
                torch.tensor([len(one.tokens) for one in group]), settings.max_new_tokens, settings.overlong
            )
            counted = torch.ones(len(group))
            if settings.mask_truncated:
                counted = torch.tensor([float(one.finished) for one in group])
            equal = bool((totals == totals[0]).all())
            if settings.leaves_equal_out and equal:
                counted = torch.zeros(len(group))
            self.note(sample, group, found, totals, keep=number < settings.prompts and self.draws == 0)
            self.tally.add(groups=1, equal=equal)
            if counted.any():
                answers, said = (
                    [one.tokens for one in group],
                    [one.logprobs for one in group if one.logprobs is not None],
                )
                advantage = advantages(totals[None], settings.epsilon, settings.scale)
                groups.append(Group(sample, prepared, answers, encoded, said, advantage, counted))
        return groups

    def note(self, sample: Sample, group: list[Rollout], found: Graded, totals: Tensor, *, keep: bool) -> None:
        """Adds a group to the tally, and its answers to those that the log shows."""
        kept: dict[str, Any] = {"id": sample.id, "answers": []}
        for rollout, text, by_kind, total in zip(group, found.texts, found.by_kind, totals.tolist(), strict=True):
            kept["answers"].append({"text": text, "reward": total, "rewards": by_kind})
            for kind, value in by_kind.items():
                self.tally.add(**{f"sum {kind}": value, f"count {kind}": 1})
            length = len(rollout.tokens)
            entropy = 0.0 if rollout.logprobs is None else -float(rollout.logprobs.sum())
            self.tally.add(answers=1, reward=total, length=length, tokens=length, entropy=entropy)
        if keep:
            self.answers.append(kept)

    def passes(self, groups: list[Group]) -> Iterator[Pass]:
        """The groups of this rank, packed by their tokens, as many times as on the rank with the most."""
        own = by_tokens(groups, self.settings.pass_tokens or self.context)
        for some in equally_many(own, self.placeholder, self.gather, audio=self.sharded):
            yield Pass.of(some, self.processor)

    def loss(self, one: Pass, total: float, update: int) -> Tensor:
        """This pass's part of the loss."""
        settings, device = self.settings, self.model.device
        logprobs = one.packed.logprobs(self.model, settings.temperature)
        if one.old is None:
            one.old = logprobs.detach()
        lengths = one.packed.lengths
        answer = torch.repeat_interleave(torch.arange(len(lengths)), lengths)
        advantage = one.advantages[answer].to(device)
        weight = one.counted if settings.loss == "token" else one.counted / lengths
        weight = weight[answer].to(device)

        ratio = (logprobs - one.old).exp()
        high = settings.clip if settings.clip_high is None else settings.clip_high
        objective = torch.minimum(ratio * advantage, ratio.clamp(1 - settings.clip, 1 + high) * advantage)
        if settings.importance_cap is not None:
            objective = objective * (one.old - one.said.to(device)).exp().clamp(max=settings.importance_cap)
        divergence = torch.zeros_like(ratio)
        if one.reference is not None:
            d = one.reference - logprobs
            divergence = d.exp() - d - 1
            objective = objective - settings.kl * divergence
        self.observe(one, update, ratio.detach(), divergence.detach(), advantage, (one.counted / lengths)[answer])
        return -(weight * objective).sum() / total

    def observe(
        self, one: Pass, update: int, ratio: Tensor, divergence: Tensor, advantage: Tensor, share: Tensor
    ) -> None:
        """Adds a pass to the tally: of all updates what the clip does, of the first one the rest."""
        share = share.to(ratio.device)
        clip, counted = self.settings.clip, share > 0
        high = clip if self.settings.clip_high is None else self.settings.clip_high
        beyond = ((ratio > 1 + high) & (advantage > 0)) | ((ratio < 1 - clip) & (advantage < 0))
        self.tally.add(clipped=(beyond & counted).sum(), trained=counted.sum())
        if update == 0 and one.old is not None and counted.any():
            mismatch = (one.said.to(ratio.device) - one.old).abs()[counted]
            self.tally.add(kl=(share * divergence).sum(), mismatch=mismatch.sum(), compared=len(mismatch))
            self.tally.worst = max(self.tally.worst, float(mismatch.max()))

    def collect(self) -> None:
        """Adds up the tallies of all ranks."""
        sums = torch.tensor([self.tally.sums.get(name, 0.0) for name in NAMES], dtype=torch.float64)
        self.tally.sums |= dict(zip(NAMES, self.gather(sums).tolist(), strict=True))

    def close(self) -> None:
        """Ends the processes that score answers."""
        self.grader.close()

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
            "kl": ("kl", "counted"),
            "clip_share": ("clipped", "trained"),
            "entropy": ("entropy", "tokens"),
            "length": ("length", "answers"),
            "mismatch": ("mismatch", "compared"),
        }
        if self.settings.leaves_equal_out or self.settings.mask_truncated:
            means["counted"] = ("counted", "answers")
        metrics: dict[str, Any] = {name: sums[a] / sums[n] for name, (a, n) in means.items() if sums[n]}
        kinds = [kind for kind in rewards.KINDS if sums[f"count {kind}"]]
        metrics["rewards"] = {kind: sums[f"sum {kind}"] / sums[f"count {kind}"] for kind in kinds}
        metrics["mismatch_max"] = self.tally.worst
        metrics |= {column: int(sums[name]) for column, name in GROUPS.items()}
        if self.settings.dynamic_sampling:
            metrics["draws"] = self.draws
        shown = [name for name in COUNTS if self.settings.judge or name.startswith("own")]
        shown = [name for name in shown if self.settings.functions or name.startswith("judge")]
        return metrics | {name: int(sums[name]) for name in shown}


def check_rewards(sample: Sample) -> None:
    """ValueError with the sample's id where its rewards are malformed."""
    try:
        rewards.check(sample.rewards)
    except ValueError as error:
        raise ValueError(f"{sample.id}: {error}") from None


def prepare_prompt(
    processor: AFNextProcessor,
    sample: Sample,
    settings: GRPOSettings,
    context: int,
    prepared: Prepared | None = None,
) -> Prepared:
    """Reads a sample's prompt, its turns up to the last answer. A function of its arguments alone.

    Args:
        processor: of the model.
        sample: with rewards that ``rewards.check`` has passed.
        settings: say how long audio may be, and which rewards can be found.
        context: more tokens than a prompt may have.
        prepared: the prompt, where it has been read.

    Raises:
        ValueError: audio that cannot be read, a prompt that leaves no room in the context, no rewards.
    """
    usable_rewards(sample, settings)
    return question(processor, sample, prepared, max_seconds=settings.max_seconds, context=context)


def advantages(totals: Tensor, epsilon: float, scale: str = "std") -> Tensor:
    """(r − mean) / (std + ε) within each group, or r − mean: rewards [prompts, group] to [prompts · group].

    Groups whose rewards are all equal get zeros, not the rounding of their mean.
    """
    deviation = totals - totals.mean(1, keepdim=True)
    scaled = deviation
    if scale == "std":
        scaled = deviation / (totals.std(1, correction=0, keepdim=True) + epsilon)
    equal = (totals == totals[:, :1]).all(1, keepdim=True)
    return torch.where(equal, 0.0, scaled).flatten()


def overlong_penalty(lengths: Tensor, longest: int, buffer: int) -> Tensor:
    """0 up to longest − buffer tokens, from there falling to −1 at ``longest``: DAPO, arXiv:2503.14476, equation 13."""
    if not buffer:
        return torch.zeros(len(lengths))
    return ((longest - buffer - lengths) / buffer).clamp(-1.0, 0.0)


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
