"""The next token of each sequence, from its logits. Nothing here waits for the device."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from afn_model.hashing import FIRST, GAMMA, MASK, SECOND, mix
from afn_model.infer.sampling_params import SamplingParams
from afn_model.network.device_batch import copied

COLDEST = 1e-30  # a lower temperature is the same to float32 logits, but not a float32 whose inverse is finite
UNIT = 2**45  # the weight of the likeliest token: 2^18 tokens of it stay below 2^63
MOST_COUNTED = 2**15 - 1
ALWAYS = 2**31 - 1
# Float32 settings of a slot, in this order.
TEMPERATURE, MIN_P, REPETITION, PRESENCE, FREQUENCY, KEEPS_LOGPROB = range(6)


@dataclass(frozen=True)
class Drawn:
    """The next tokens of R sequences, on the device.

    Args:
        token: [R] int64; any token of the vocabulary where ``finite`` is False.
        logprob: [R] float32: log softmax(logits / temperature) at the token, of the logits after penalties, biases and
            masks and before ``top_k``, ``top_p`` and ``min_p`` cut; of greedy rows at temperature 1. NaN where
            ``SamplingParams.keeps_logprobs`` is False.
        finite: [R] bool: False where the largest score is NaN or infinite.
        top: ids [R, k] int64 and log-probabilities [R, k] float32 of the likeliest tokens, in descending order, equally
            likely ones by id; k is the largest ``logprobs`` of any slot. None where no slot asks.
    """

    token: Tensor
    logprob: Tensor
    finite: Tensor
    top: tuple[Tensor, Tensor] | None


class Sampler:
    """Picks tokens for sequences in slots, each by its own settings, greedily or at random.

    A random token is the first whose cumulative weight exceeds u · total, u = hash(key of the slot, step) / 2^64. The
    weights are exp((logits - largest) / temperature) in float32, cut to multiples of 2^-45 and added as integers, so
    that no order of summation changes a bit: what a row gets is a function of its logits, settings and step alone,
    whatever else is in the batch. A token less likely than 2^-45 of the likeliest is never drawn.

    Memory: a byte a token of the vocabulary and slot once a slot has a repetition penalty, two more once one has a
    frequency or presence penalty.

    Args:
        slots: sequences that are held at once.
        vocab_size: columns of the logits, below 2^18.
        device: of the logits.
    """

    def __init__(self, slots: int, vocab_size: int, device: torch.device | str):
        if not 0 < vocab_size < 2**18:
            raise ValueError(f"a vocabulary of 1 to {2**18 - 1} tokens is expected, got {vocab_size}")
        self.slots, self.vocab_size, self.device = slots, vocab_size, torch.device(device)
        self.settings = self.table(6, torch.float32)
        self.top_p, self.top_k = self.table(1, torch.float64, 1.0), self.table(1, torch.int64, vocab_size)
        self.keys = self.table(1, torch.int64)
        self.seen: Tensor | None = None  # [slots, vocabulary] bool
        self.counts: Tensor | None = None  # [slots, vocabulary] int16, of the answers
        # Of [slots, entries]: a bias, which is -inf before a step.
        self.biased, self.bias, self.banned_until = (
            self.table(1, dtype) for dtype in (torch.int64, torch.float32, torch.int64)
        )
        self.params: dict[int, SamplingParams] = {}
        self.asked: Counter[str] = Counter()

    def table(self, width: int, dtype: torch.dtype, value: float = 0) -> Tensor:
        return torch.full((self.slots, width), value, dtype=dtype, device=self.device)

    def admit(
        self,
        slot: int,
        params: SamplingParams,
        key: int,
        prompt_ids: Tensor | Sequence[int],
        answer_ids: Sequence[int] = (),
    ) -> None:
        """A sequence takes a slot.

        Args:
            slot: its number; who held it before is released.
            params: ``resolved`` ones, whose repetition penalty and stop tokens are not None.
            key: 64 bits that decide its random tokens: ``hashing.key(seed, key of the request, sample)``.
            prompt_ids: the tokens of its prompt.
            answer_ids: what it has answered so far, where it comes back.

        Raises:
            ValueError: a bias or a stop token outside of the vocabulary.
        """
        assert params.repetition_penalty is not None, "the parameters must be resolved"
        self.release(slot)
        entries = self.entries(params)
        self.params[slot] = params
        self.asked.update(features(params))
        settings = {
            TEMPERATURE: 0.0 if params.temperature == 0 else max(params.temperature, COLDEST),
            MIN_P: params.min_p,
            REPETITION: params.repetition_penalty,
            PRESENCE: params.presence_penalty,
            FREQUENCY: params.frequency_penalty,
            KEEPS_LOGPROB: params.keeps_logprobs,
        }
        for column, value in settings.items():
            self.settings[slot, column].fill_(float(value))
        self.top_p[slot].fill_(params.top_p)
        self.top_k[slot].fill_(min(params.top_k or self.vocab_size, self.vocab_size))
        self.keys[slot].fill_(signed(mix(key & MASK)))
        self.write_entries(slot, entries)
        answered = torch.tensor(answer_ids, dtype=torch.int64)
        if params.repetition_penalty != 1:
            if self.seen is None:
                self.seen = self.table(self.vocab_size, torch.bool)
            given = prompt_ids if isinstance(prompt_ids, Tensor) else torch.tensor(list(set(prompt_ids)))
            seen = self.seen[slot].zero_()
            for ids in (given.long(), answered):
                seen.index_fill_(0, copied(ids, self.device), 1)
        if params.presence_penalty or params.frequency_penalty:
            if self.counts is None:
                self.counts = self.table(self.vocab_size, torch.int16)
            counts = torch.bincount(answered, minlength=self.vocab_size).clamp_max(MOST_COUNTED)
            self.counts[slot].copy_(copied(counts.short(), self.device), non_blocking=True)

    def release(self, slot: int) -> None:
        """The slot is empty: what its sequence asked for is not done for others any more."""
        if (params := self.params.pop(slot, None)) is not None:
            self.asked.subtract(features(params))

    def entries(self, params: SamplingParams) -> list[tuple[int, float, int]]:
        """(token, bias, step from which on it is not banned), one for each token."""
        bias = dict(params.logit_bias or {})
        banned = (params.stop_token_ids or ()) if params.min_new_tokens else ()
        found = [(token, bias.get(token, 0.0), params.min_new_tokens * (token in banned)) for token in {*bias, *banned}]
        if wrong := [token for token, *_ in found if not 0 <= token < self.vocab_size]:
            raise ValueError(f"token {wrong[0]} of logit_bias or stop_token_ids is none of 0 to {self.vocab_size - 1}")
        return sorted(found)

    def write_entries(self, slot: int, entries: list[tuple[int, float, int]]) -> None:
        width = self.biased.shape[1]
        if len(entries) > width:
            wider = len(entries) - width
            tables = (self.biased, self.bias, self.banned_until)
            self.biased, self.bias, self.banned_until = (
                torch.cat((old, old[:, :1].expand(-1, wider)), 1).contiguous() for old in tables
            )
            width = len(entries)
        # Filled up with the first one: what is written twice to a place is the same.
        filled = entries + (entries[:1] or [(0, 0.0, 0)]) * (width - len(entries))
        for table, values in zip((self.biased, self.bias, self.banned_until), zip(*filled, strict=True), strict=True):
            table[slot].copy_(copied(torch.tensor(values, dtype=table.dtype), self.device), non_blocking=True)

    def next(
        self,
        logits: Tensor,
        slots: Tensor,
        steps: Tensor,
        *,
        allowed: tuple[Tensor, Tensor] | None = None,
        forced: Tensor | None = None,
    ) -> Drawn:
        """The next token of each row, which is noted in its slot.

        Args:
            logits: [R, vocabulary] float32; not changed.
            slots: [R] int64, different ones.
            steps: [R] int64: tokens that each answer has so far.
            allowed: row numbers [M] int64, different ones, and their masks [M, ceil(vocabulary / 32)] int32: bit i of
                word w is whether token 32 w + i may come. What a grammar asks for.
            forced: [R] int64: the token that must come, -1 where any may.
        """
        logits = self.changed(logits, slots, steps, allowed)
        token = logits.argmax(-1, keepdim=True)
        largest = logits.gather(1, token)  # NaN where any is
        logprob, top = torch.full_like(largest, torch.nan), None
        if self.asked["random"] or self.asked["logprobs"]:
            settings = self.settings[slots]
            greedy = settings[:, TEMPERATURE, None] == 0
            scaled = (logits - largest) / torch.where(greedy, 1.0, settings[:, TEMPERATURE, None])
            share = scaled.exp()
            weight = (share * UNIT).long()
            norm = (weight.sum(-1, keepdim=True).double() / UNIT).log()
            if self.asked["random"]:
                u = uniform(self.keys[slots], steps[:, None])
                token = torch.where(greedy, token, draw(self.kept(share, weight, slots), u))
            token = imposed(token, forced)
            logprob = (scaled.gather(1, token).double() - norm).float()
            logprob = torch.where(settings[:, KEEPS_LOGPROB, None] > 0, logprob, torch.nan)
            if self.asked["top"]:
                most = max(params.logprobs or 0 for params in self.params.values())
                ids = likeliest(scaled, min(most, self.vocab_size))
                top = (ids, (scaled.gather(1, ids).double() - norm).float())
        else:
            token = imposed(token, forced)
        self.note(slots, token[:, 0])
        return Drawn(token[:, 0], logprob[:, 0], largest[:, 0].isfinite(), top)

    def changed(self, logits: Tensor, slots: Tensor, steps: Tensor, allowed: tuple[Tensor, Tensor] | None) -> Tensor:
        """The logits [R, vocabulary] after penalties, biases and masks. What a row does not ask for changes nothing."""
        if self.asked["repetition"]:
            assert self.seen is not None
            penalty = self.settings[slots][:, REPETITION, None]
            penalised = torch.where(logits > 0, logits / penalty, logits * penalty)
            logits = torch.where(self.seen[slots], penalised, logits)
        if self.asked["counts"]:
            assert self.counts is not None
            counts, settings = self.counts[slots].float(), self.settings[slots]
            logits = logits - settings[:, FREQUENCY, None] * counts - settings[:, PRESENCE, None] * (counts > 0)
        if self.asked["entries"]:
            ids = self.biased[slots]
            bias = torch.where(steps[:, None] < self.banned_until[slots], -torch.inf, self.bias[slots])
            logits = logits.scatter(1, ids, logits.gather(1, ids) + bias)
        if allowed is not None:
            rows, words = allowed
            bits = words[:, :, None] >> torch.arange(32, dtype=torch.int32, device=words.device) & 1
            may = bits.flatten(1)[:, : self.vocab_size] > 0
            logits = logits.index_copy(0, rows, torch.where(may, logits[rows], -torch.inf))
        return logits

    def kept(self, share: Tensor, weight: Tensor, slots: Tensor) -> Tensor:
        """The weights [R, vocabulary], 0 where ``top_k``, ``top_p`` or ``min_p`` cuts.

        Args:
            share: [R, vocabulary] float32: probabilities over the largest one of the row.
            weight: [R, vocabulary] int64: the same in units.
            slots: [R] int64.
        """
        if self.asked["cut"]:
            ranked, order = share.sort(dim=-1, descending=True, stable=True)
            ranked = (ranked * UNIT).long()
            reached, top_k, top_p = ranked.cumsum(-1), self.top_k[slots], self.top_p[slots]
            # A token stays while the probability before it is below top_p.
            least = top_p * reached.gather(1, top_k - 1).double()
            cut = (top_p < 1) & ((reached - ranked).double() >= least)
            cut = cut | (torch.arange(self.vocab_size, device=cut.device) >= top_k)
            weight = weight.masked_fill(torch.empty_like(cut).scatter_(1, order, cut), 0)
        if self.asked["min_p"]:
            weight = torch.where(share < self.settings[slots][:, MIN_P, None], 0, weight)
        return weight

    def note(self, slots: Tensor, token: Tensor) -> None:
        """What comes back may be penalised."""
        place = slots * self.vocab_size + token
        if self.asked["repetition"] and self.seen is not None:
            self.seen.view(-1).index_fill_(0, place, 1)
        if self.asked["counts"] and self.counts is not None:
            counts = self.counts.view(-1)
            counts.index_copy_(0, place, counts[place].clamp_max(MOST_COUNTED - 1) + 1)


def features(params: SamplingParams) -> list[str]:
    """What must be computed for a sequence."""
    asks = {
        "random": params.temperature > 0,
        "logprobs": params.logprobs is not None,
        "top": bool(params.logprobs),
        "repetition": params.repetition_penalty != 1,
        "counts": bool(params.presence_penalty or params.frequency_penalty),
        "entries": bool(params.logit_bias or (params.min_new_tokens and params.stop_token_ids)),
        "cut": params.temperature > 0 and (params.top_p < 1 or params.top_k > 0),
        "min_p": params.temperature > 0 and params.min_p > 0,
    }
    return [name for name, asked in asks.items() if asked]


def imposed(token: Tensor, forced: Tensor | None) -> Tensor:
    """Tokens [R, 1], but those of ``forced`` [R] where it is not negative."""
    return token if forced is None else torch.where(forced[:, None] < 0, token, forced[:, None])


def draw(weight: Tensor, u: Tensor) -> Tensor:
    """The first token whose cumulative weight exceeds u · total.

    Args:
        weight: [R, vocabulary] int64, of a total below 2^63.
        u: [R, 1] float64, 0 to 1.

    Returns:
        [R, 1] int64.
    """
    reached = weight.cumsum(-1)
    total = reached[:, -1:]
    # u may be 1 after rounding, and so may the product be the total.
    target = torch.minimum((u * total.double()).long(), total - 1)
    # Among what NaN became a search finds no place.
    return torch.searchsorted(reached, target, right=True).clamp_max(weight.shape[1] - 1)


def likeliest(scores: Tensor, count: int) -> Tensor:
    """Ids [R, count] of the largest of float32 scores [R, vocabulary], in descending order, equal ones by id."""
    bits = scores.view(torch.int32).long()
    ordered = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    return (ordered * 2**32 - torch.arange(scores.shape[1], device=scores.device)).topk(count, dim=-1).indices


def uniform(keys: Tensor, steps: Tensor) -> Tensor:
    """hashing.key(k, step) / 2^64 in float64, rounded to nearest, of int64 tensors mix(k), as int64, and steps."""
    hashed = mixed(keys ^ steps)
    high, low = shifted(hashed, 32), hashed & 0xFFFFFFFF
    return (high.double() * 2**32 + low.double()) * 2.0**-64


def mixed(x: Tensor) -> Tensor:
    """hashing.mix of int64 numbers that stand for their residues modulo 2^64; products wrap around."""
    x = x + signed(GAMMA)
    x = (x ^ shifted(x, 30)) * signed(FIRST)
    x = (x ^ shifted(x, 27)) * signed(SECOND)
    return x ^ shifted(x, 31)


def shifted(x: Tensor, bits: int) -> Tensor:
    """x >> bits of unsigned numbers."""
    return (x >> bits) & (2 ** (64 - bits) - 1)


def signed(x: int) -> int:
    """The int64 number of the same 64 bits."""
    return x - 2**64 if x >= 2**63 else x
