"""DPO: of two answers to a prompt the preferred one becomes likelier than the other, measured from a reference."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from afn_model.afnext import AFNext
from afn_model.data.loader import GlobalBatch
from afn_model.data.records import Sample
from afn_model.prompt.batch import Prepared
from afn_model.prompt.conversation import SILENCE
from afn_model.prompt.processor import AFNextProcessor
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
    usable,
)

SUMS = ("pairs", "margin", "right", "chosen", "rejected", "loss")


@dataclass(frozen=True)
class DPOSettings:
    """Numbers of DPO.

    Args:
        beta: β, how dear it is to leave the reference; a small one lets the policy go further.
        label_smoothing: share ε of the pairs that are taken to be labelled the wrong way round.
        pass_tokens: tokens of prompts and answers that share a forward and backward; a larger pair has one to itself.
            The stage's ``context`` if None.
        max_seconds: longest audio of a prompt; the processor's limit if None.
    """

    beta: float = 0.1
    label_smoothing: float = 0.0
    pass_tokens: int | None = None
    max_seconds: float | None = None

    def __post_init__(self):
        budget = 1 if self.pass_tokens is None else self.pass_tokens
        if not 0 < self.beta < math.inf or not 0 <= self.label_smoothing < 0.5 or budget < 1:
            raise ValueError(
                f"out of range: {self}; beta > 0, label_smoothing from 0 to below 0.5 and pass_tokens >= 1 are expected"
            )
        if self.max_seconds is not None and not self.max_seconds > 0:
            raise ValueError(f"max_seconds is {self.max_seconds}; above 0 or null is expected")

    @property
    def needs_reference(self) -> bool:
        return True


@dataclass
class PairPass:
    """Pairs that are trained on together, with what the reference says of their answers' tokens."""

    packed: PackedAnswers
    counted: Tensor
    reference: Tensor | None = None


class DPO:
    """The update of a step of pairs of answers.

    loss = − 1/N Σ_pairs [ (1 − ε) log σ(β m) + ε log σ(−β m) ], m = (log p_c − log q_c) − (log p_r − log q_r), where
    log p is the sum over an answer's tokens, its stop token included, q is the reference, c the chosen and r the
    rejected answer. N counts the pairs of all ranks. A prompt and its audio are computed once for both answers.

    Args:
        model: the policy.
        processor: of the model.
        settings: the numbers.
        reference: from ``frozen_reference``, or a function that lends a model as a context.
        context: most tokens of a prompt with its longer answer, and of a pass unless ``settings.pass_tokens`` says
            otherwise; the model's positions if None.
        gather: sums a tensor over the ranks.
        sharded: whether the weights are cut over ranks; every pass then has audio, because all ranks must run all parts
            of the model.

    Raises:
        ValueError: no reference.

    Source: Rafailov et al., 2023, arXiv:2305.18290; ε: Mitchell, "A note on DPO with noisy preferences", 2023.
    """

    def __init__(
        self,
        model: AFNext,
        processor: AFNextProcessor,
        settings: DPOSettings,
        reference: AFNext | Reference | None,
        *,
        context: int | None = None,
        gather: Callable[[Tensor], Tensor] = lambda tensor: tensor,
        sharded: bool = False,
    ):
        if reference is None:
            raise ValueError("DPO needs a reference")
        self.model, self.processor, self.settings = model, processor, settings
        self.reference = as_reference(reference)
        self.context = model.config.text.max_positions if context is None else context
        self.gather, self.sharded = gather, sharded
        self.sums = torch.zeros(len(SUMS), device=model.device)
        self.tokens = 0

    def updates(self, global_batch: GlobalBatch, *, detailed: bool = False) -> Iterator[list[Callable[[], Tensor]]]:
        """One optimiser step, a loss per pass. A pair that cannot be read is added to its micro batch's ``bad``.

        All ranks make equally many losses, with zero-weight placeholders where a rank has too few.
        """

        def read(sample: Sample, prepared: Prepared | None) -> AnsweredPrompt:
            return prepare_pair(self.processor, sample, self.settings, self.context, prepared)

        pairs = [pair for _, pair in usable(global_batch, read)]
        self.sums, self.tokens = torch.zeros_like(self.sums), sum(pair.tokens for pair in pairs)
        passes = list(self.passes(pairs))
        asked = reference_logprobs([one.packed for one in passes], self.reference)
        for one, logprobs in zip(passes, asked, strict=True):
            one.reference = logprobs
        total = float(self.gather(torch.tensor(float(len(pairs)))))
        yield [partial(self.loss, one, max(total, 1.0)) for one in passes]

    def passes(self, pairs: list[AnsweredPrompt]) -> Iterator[PairPass]:
        """The pairs of this rank, packed by their tokens, as many times as on the rank with the most."""
        silence = AnsweredPrompt(None, self.processor.prepare(SILENCE), [self.processor.stop_ids[:1]] * 2)
        own = by_tokens(pairs, self.settings.pass_tokens or self.context)
        for some in equally_many(own, silence, self.gather, audio=self.sharded):
            packed = PackedAnswers.of(some, self.processor)
            if is_frozen(self.model.encoder):
                with torch.no_grad():
                    encoded = self.model.encode_batch(packed.batch)
                packed = PackedAnswers(packed.batch, packed.answers, encoded)
            yield PairPass(packed, torch.tensor([float(pair.sample is not None) for pair in some]))

    def loss(self, one: PairPass, total: float) -> Tensor:
        """This pass's part of the loss."""
        logprobs, beta = one.packed.logprobs(self.model), self.settings.beta
        assert one.reference is not None
        lengths = one.packed.lengths
        answer = torch.repeat_interleave(torch.arange(len(lengths)), lengths).to(logprobs.device)
        gained = logprobs.new_zeros(len(lengths)).index_add(0, answer, logprobs - one.reference)
        chosen, rejected = (beta * gained).view(-1, 2).unbind(1)
        margin, counted = chosen - rejected, one.counted.to(gained.device)
        wrong = self.settings.label_smoothing
        losses = -(1 - wrong) * F.logsigmoid(margin) - wrong * F.logsigmoid(-margin)
        found = torch.stack((torch.ones_like(margin), margin, margin > 0, chosen, rejected, losses))  # as SUMS
        self.sums += (counted * found.detach()).sum(1)
        return (counted * losses).sum() / total

    MEASURED = SUMS

    def measure(self, global_batch: GlobalBatch) -> Tensor:
        """``SUMS`` over this rank's pairs of held-out records, where nothing is updated."""
        for losses in self.updates(global_batch):
            for loss in losses:
                loss()
        return self.sums

    def work(self) -> dict[str, float]:
        """Tokens of this rank's prompts and answers; their FLOPs are not counted."""
        return {"tokens": float(self.tokens)}

    def metrics(self) -> dict[str, Any]:
        """Means over the pairs of all ranks, before the update: ``reward_margin`` is β m, ``reward_chosen`` and
        ``reward_rejected`` its two parts, ``accuracy`` the share of pairs with a margin above 0."""
        found = self.means(self.gather(self.sums.double().cpu()))
        return {name: value for name, value in found.items() if name != "loss"}

    @staticmethod
    def means(sums: Tensor) -> dict[str, float]:
        """Columns of a log from ``SUMS`` over pairs; none without pairs."""
        found = dict(zip(SUMS, sums.tolist(), strict=True))
        names = {
            "loss": "loss",
            "reward_margin": "margin",
            "accuracy": "right",
            "reward_chosen": "chosen",
            "reward_rejected": "rejected",
        }
        return {name: found[of] / found["pairs"] for name, of in names.items() if found["pairs"]}


def prepare_pair(
    processor: AFNextProcessor,
    sample: Sample,
    settings: DPOSettings,
    context: int,
    prepared: Prepared | None = None,
) -> AnsweredPrompt:
    """Reads a sample's prompt, its turns up to the last answer, and its two answers. A function of its arguments alone.

    Raises:
        ValueError: no pair, audio that cannot be read, a prompt that with an answer is longer than the context.
    """
    if not sample.chosen or not sample.rejected:
        raise ValueError("no pair: chosen and rejected are expected")
    prepared = question(processor, sample, prepared, max_seconds=settings.max_seconds, context=context)
    end = processor.stop_ids[0]
    answers = [
        [*processor.tokenizer.encode(text, add_special_tokens=False).ids, end]
        for text in (sample.chosen, sample.rejected)
    ]
    longest = len(prepared.ids) + max(map(len, answers))
    if longest > context:
        raise ValueError(f"{longest} tokens of prompt and answer, but the context is {context}")
    return AnsweredPrompt(sample, prepared, answers)
