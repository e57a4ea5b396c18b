"""Prompts with answers: read, packed by their tokens into passes, and asked about without a graph."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from afn_model.afnext import AFNext
from afn_model.data.loader import GlobalBatch
from afn_model.data.records import Sample
from afn_model.prompt.batch import Batch, Prepared
from afn_model.prompt.processor import AFNextProcessor

Encoded = tuple[Tensor, list[int]]
Reference = Callable[[], AbstractContextManager[AFNext]]
T = TypeVar("T")


@dataclass
class AnsweredPrompt:
    """A prompt and the token ids of its answers.

    Args:
        sample: that it is from; None for a placeholder, which counts nothing.
        prepared: the prompt.
        answers: the token ids of each, the stop token included.
        encoded: features of its audio, where they are known.
    """

    sample: Sample | None
    prepared: Prepared
    answers: list[list[int]]
    encoded: Encoded | None = None

    @property
    def tokens(self) -> int:
        """That pass through the model: nothing is predicted from an answer's last one."""
        return len(self.prepared.ids) + sum(len(answer) - 1 for answer in self.answers)


@dataclass(frozen=True)
class PackedAnswers:
    """Prompts with their answers that share a forward and backward.

    Args:
        batch: the packed prompts.
        answers: of each prompt.
        encoded: features of all their audio; None to encode it in every forward.
    """

    batch: Batch
    answers: list[list[list[int]]]
    encoded: Encoded | None

    @classmethod
    def of(cls, prompts: Sequence[AnsweredPrompt], processor: AFNextProcessor) -> PackedAnswers:
        encoded = joined([one.encoded for one in prompts])
        return cls(processor.pack([one.prepared for one in prompts]), [one.answers for one in prompts], encoded)

    @property
    def lengths(self) -> Tensor:
        """Tokens of each answer, [answers] int64."""
        return torch.tensor([len(answer) for answers in self.answers for answer in answers])

    def logprobs(self, model: AFNext, temperature: float = 1.0) -> Tensor:
        """Of all tokens of all answers; see ``Network.answer_logprobs``."""
        return model.answer_logprobs(self.batch, self.answers, temperature=temperature, encoded=self.encoded)


def question(
    processor: AFNextProcessor,
    sample: Sample,
    prepared: Prepared | None = None,
    *,
    max_seconds: float | None,
    context: int,
) -> Prepared:
    """Reads a sample's prompt, its turns up to the last answer, unless that is ``prepared`` already.

    A function of its arguments alone.

    Raises:
        ValueError: audio that cannot be read, a prompt that leaves no room in the context, nothing that is asked.
    """
    if prepared is None:
        turns = list(sample.turns)
        while turns and turns[-1].role == "assistant":
            turns.pop()
        if not turns:
            raise ValueError("nothing is asked")
        prepared = processor.prepare(turns, add_generation_prompt=True, max_seconds=max_seconds)
    if len(prepared.ids) >= context:
        raise ValueError(f"{len(prepared.ids)} tokens leave no room for an answer in a context of {context}")
    return prepared


def asked(sample: Sample) -> str:
    """The text of the last question of a sample."""
    return next((turn.text for turn in reversed(sample.turns) if turn.role == "user"), "")


def usable(
    global_batch: GlobalBatch,
    read: Callable[[Sample, Prepared | None], T],
    check: Callable[[Sample], Any] = lambda sample: None,
) -> list[tuple[Sample, T]]:
    """What ``read`` returns for every sample of this rank; where it raises a ValueError, the sample is bad.

    Args:
        global_batch: whose micro-batches are gone through once.
        read: of a sample, and of its prompt where a worker of the loader has read that.
        check: what it raises ends the run.
    """
    found = []
    for micro in global_batch.micro:
        good = []
        made = micro.prepared or [None] * len(micro.samples)
        for sample, prepared in zip(micro.samples, made, strict=True):
            check(sample)
            try:
                found.append((sample, read(sample, prepared)))
                good.append(sample)
            except ValueError as error:
                micro.bad.append((sample.id, str(error)))
        micro.samples = good
    return found


def by_tokens(prompts: Iterable[AnsweredPrompt], budget: int) -> list[list[Any]]:
    """Prompts in order, as many together as have ``budget`` tokens with their answers; a larger one is alone."""
    passes: list[list[AnsweredPrompt]] = []
    room = 0
    for one in prompts:
        if one.tokens > room:
            passes.append([])
            room = budget
        passes[-1].append(one)
        room -= one.tokens
    return passes


def equally_many(
    passes: Sequence[list[Any]], placeholder: Any, gather: Callable[[Tensor], Tensor], *, audio: bool
) -> Iterator[list[Any]]:
    """The passes of this rank, as many as the rank with the most has; a placeholder stands where a prompt is missing.

    Args:
        passes: of this rank.
        placeholder: a prompt with audio that counts nothing.
        gather: sums a tensor over the ranks.
        audio: whether every pass must have audio: with sharded weights all ranks run all parts of the model.
    """
    number = 0
    while float(gather(torch.tensor(float(number < len(passes))))) > 0:
        own = list(passes[number]) if number < len(passes) else []
        missing = not own or (audio and not any(one.prepared.clips for one in own))
        yield own + [placeholder] * missing
        number += 1


def split_features(encoded: Encoded | None, prompts: Sequence[Prepared], windows: list[int]) -> list[Encoded | None]:
    """The features of each prompt's audio, from those of a batch of prompts whose audios have so many windows."""
    found: list[Encoded | None] = []
    audio, window, row = 0, 0, 0
    for one in prompts:
        count = sum(windows[audio : audio + len(one.clips)])
        audio += len(one.clips)
        if encoded is None or not count:
            found.append(None)
            continue
        features, tokens = encoded
        own = tokens[window : window + count]
        found.append((features[row : row + sum(own)], own))
        window, row = window + count, row + sum(own)
    return found


def joined(parts: Iterable[Encoded | None]) -> Encoded | None:
    """Features of several prompts as those of a batch of them; None without any."""
    known = [part for part in parts if part is not None]
    if not known:
        return None
    return torch.cat([features for features, _ in known]), [n for _, tokens in known for n in tokens]


def is_frozen(module: torch.nn.Module) -> bool:
    return not any(parameter.requires_grad for parameter in module.parameters())


def as_reference(reference: AFNext | Reference) -> Reference:
    """A model as a function that lends it: what asks a reference asks it within ``with reference() as model``."""
    if isinstance(reference, torch.nn.Module):
        return lambda: nullcontext(reference)
    return reference


def reference_logprobs(passes: Sequence[PackedAnswers], reference: Reference, temperature: float = 1.0) -> list[Tensor]:
    """What a reference says of every pass. It is asked before the policy has a graph that its activations would come
    on top of."""
    with torch.no_grad(), reference() as model:
        return [one.logprobs(model, temperature) for one in passes]
