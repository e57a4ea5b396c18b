"""Sampling by slots: every row is its own, and nothing waits for the device."""

import math
from unittest import mock

import pytest
import torch

from afn_model.hashing import MASK, key
from afn_model.infer.sampler import UNIT, Sampler, draw, signed, uniform
from afn_model.infer.sampling_params import SamplingParams
from bench import syncs
from tests.budget import assert_within, fresh

V = 301  # odd: vectors of every width have a rest
PLAIN = {"repetition_penalty": 1.0, "stop_token_ids": (3, 300)}
WAYS = [
    {},
    {"logprobs": 3},
    {"repetition_penalty": 1.3},
    {"frequency_penalty": 0.5, "presence_penalty": -0.3, "logprobs": 0},
    {"logit_bias": {7: 5.0, 300: -100.0, 3: 4.0}, "min_new_tokens": 2},
    {"temperature": 1.0},
    {"temperature": 0.7, "top_p": 0.9},
    {"temperature": 1.3, "top_k": 20},
    {"temperature": 2.0, "min_p": 0.05, "repetition_penalty": 0.9},
    {"temperature": 1.5, "top_k": 50, "top_p": 0.8, "min_p": 0.01, "logprobs": 5, "presence_penalty": 1.0},
    {"temperature": 5e-324},
]


def params(**options) -> SamplingParams:
    return SamplingParams(**PLAIN | {"min_new_tokens": 0} | options)


def admitted(ways: list[dict], numbers=None) -> Sampler:
    """A sampler with a slot for each way, by the numbers of the ways' sequences."""
    sampler = Sampler(len(ways), V, "cpu")
    for slot, way in enumerate(ways):
        number = slot if numbers is None else numbers[slot]
        sampler.admit(slot, params(**way), key(5, number, 0), [number, 40, 41], [50, 50])
    return sampler


def walk(sampler: Sampler, rows: list[int], logits: torch.Tensor) -> list[list[torch.Tensor]]:
    """Four steps of some slots, whose tokens, log-probabilities and likeliest ones are listed by row."""
    found = [[] for _ in rows]
    for step, scores in enumerate(logits):
        drawn = sampler.next(scores, torch.tensor(rows), torch.full((len(rows),), step))
        assert drawn.finite.all()
        for i, one in enumerate(found):
            tensors = (drawn.token, drawn.logprob, *(drawn.top or ()))
            one += [tensor[i] if tensor.dim() == 1 else tensor[i, :5] for tensor in tensors]
    return found


def test_a_row_is_the_same_alone_and_among_others():
    logits = 4 * torch.randn(4, len(WAYS), V, generator=fresh())
    order = torch.randperm(len(WAYS), generator=fresh()).tolist()
    together = walk(admitted([WAYS[i] for i in order], order), list(range(len(WAYS))), logits[:, order])
    for place, number in enumerate(order):
        (alone,) = walk(admitted([WAYS[number]], [number]), [0], logits[:, number : number + 1])
        asks = WAYS[number].get("logprobs", 0)
        each = 4 if asks else 2
        for step in range(4):
            several = together[place][4 * step : 4 * step + 4]
            one = alone[each * step : each * step + each]
            for found, expected in zip(several, one, strict=False):
                count = asks if expected.dim() else None
                found, expected = (x[:count] if x.dim() else x for x in (found, expected))
                assert found.equal(expected) or (found.isnan() and expected.isnan()), (WAYS[number], step)


def test_numbers_are_those_of_the_hash():
    """Bit for bit, steps and keys that are negative as int64 included."""
    generator = fresh()
    keys = torch.randint(-(2**63), 2**63 - 1, (500,), generator=generator).tolist()
    keys += [0, 1, MASK, 2**63, 2**63 - 1]
    sampler = Sampler(len(keys), 5, "cpu")
    for slot, one in enumerate(keys):
        sampler.admit(slot, params(temperature=1.0, stop_token_ids=()), one, [])
    for step in (0, 1, 46_079):
        found = uniform(sampler.keys, torch.full((len(keys), 1), step))
        assert found[:, 0].tolist() == [key(one, step) / 2**64 for one in keys]
    ends = torch.tensor([signed(MASK), signed(2**63), 0])
    with mock.patch("afn_model.infer.sampler.mixed", lambda x: x):
        assert uniform(ends, torch.zeros_like(ends)).tolist() == [1.0, 0.5, 0.0]


@pytest.mark.parametrize("way", [{"temperature": 1.0}, {"temperature": 0.6, "top_p": 0.8}])
def test_a_token_is_where_its_number_falls(way):
    rows, temperature, top_p = 400, way["temperature"], way.get("top_p", 1.0)
    logits = 3 * torch.randn(rows, V, generator=torch.Generator().manual_seed(0))
    sampler = Sampler(rows, V, "cpu")
    for row in range(rows):
        sampler.admit(row, params(**way), key(1, row, 0), [])
    drawn = sampler.next(logits, torch.arange(rows), torch.full((rows,), 9))
    token, u = drawn.token[:, None], [[key(key(1, row, 0), 9) / 2**64] for row in range(rows)]
    exact = (logits.double() / temperature).log_softmax(-1)
    ranked, order = exact.exp().sort(-1, descending=True)
    share = torch.zeros_like(ranked).scatter(1, order, torch.where(ranked.cumsum(-1) - ranked < top_p, ranked, 0))
    reached = share.cumsum(-1) / share.sum(-1, keepdim=True)
    # The logarithm of a weight is off by two roundings of its argument, exp by two units, the sum by cuts to 2^-45.
    scaled = ((logits - logits.amax(-1, keepdim=True)) / temperature).abs().amax()
    off = 2**-24 * (2 * scaled + 4) + V / UNIT
    before = (reached - share / share.sum(-1, keepdim=True)).gather(1, token)
    number = torch.tensor(u, dtype=torch.float64)
    assert ((before - 2 * off <= number) & (number <= reached.gather(1, token) + 2 * off)).all()
    assert (share.gather(1, token) > 0).all()
    exact = exact.gather(1, token)[:, 0]
    assert_within(drawn.logprob, exact, 2 * off + 2**-24 * exact.abs(), name="logprob")


@pytest.mark.parametrize(
    ("way", "expected"),
    [
        ({}, [0.15, 0.5, 0.05, 0.3]),
        ({"top_p": 0.6}, [0, 0.625, 0, 0.375]),
        ({"top_p": 0.45}, [0, 1, 0, 0]),
        ({"top_k": 3}, [0.15 / 0.95, 0.5 / 0.95, 0, 0.3 / 0.95]),
        ({"top_k": 9}, [0.15, 0.5, 0.05, 0.3]),
        ({"top_k": 2, "top_p": 0.6}, [0, 1, 0, 0]),
        ({"min_p": 0.25}, [0.15 / 0.95, 0.5 / 0.95, 0, 0.3 / 0.95]),
        ({"min_p": 1.0}, [0, 1, 0, 0]),
        ({"temperature": 0.5}, [0.0225 / 0.365, 0.25 / 0.365, 0.0025 / 0.365, 0.09 / 0.365]),
    ],
)
def test_shares_of_tokens(way, expected):
    """Of four tokens of 15, 50, 5 and 30 %."""
    sampler, count = Sampler(1, 4, "cpu"), 2000
    sampler.admit(0, params(**{"temperature": 1.0, "stop_token_ids": ()} | way), 0, [])
    logits = (torch.tensor([0.15, 0.5, 0.05, 0.3]).log() + 3.0).expand(count, -1)
    even = (torch.arange(count).double()[:, None] + 0.5) / count
    with mock.patch("afn_model.infer.sampler.uniform", return_value=even):
        token = sampler.next(logits, torch.zeros(count, dtype=torch.int64), torch.zeros(count).long()).token
    found = torch.bincount(token, minlength=4) / count
    # Two ends of an interval, each within one of so many even steps.
    assert_within(found, torch.tensor(expected), 2 / count, name="share")
    assert not found[torch.tensor(expected) == 0].any()


def test_equally_likely_tokens_are_taken_by_id():
    sampler = Sampler(1, V, "cpu")
    sampler.admit(0, params(temperature=1.0, top_k=7, logprobs=4), 1, [])
    drawn = [sampler.next(torch.zeros(1, V), torch.tensor([0]), torch.tensor([step])) for step in range(60)]
    assert {int(one.token) for one in drawn} == set(range(7))
    assert drawn[0].top[0].tolist() == [[0, 1, 2, 3]]
    assert_within(drawn[0].top[1], torch.full((1, 4), -math.log(V)), 2**-22, name="logprob")  # 5.7 rounded


def test_the_least_weight_is_lost_nowhere():
    """Where float64 does not tell 2^53 + 1 from 2^53, and where the largest number rounds up to 1."""
    weight = torch.full((1, V), UNIT)
    weight[0, 256], weight[0, 257:] = 1, 0
    for way in ({"top_k": 300}, {"top_k": 257, "min_p": 2.0**-45}):
        sampler = admitted([{"temperature": 1.0} | way])
        assert sampler.kept((weight / UNIT).float(), weight, torch.tensor([0])).equal(weight)
    for given, last in ((weight, 256), (torch.tensor([[0, 3, 0]]), 1)):
        assert draw(given, torch.ones(1, 1, dtype=torch.float64)).tolist() == [[last]]


def test_no_order_of_summation_changes_a_bit():
    logits, rows = 4 * torch.randn(50, V, generator=fresh()), torch.arange(50)
    order = torch.randperm(V, generator=fresh())
    first, again = (admitted([{"logprobs": 1}] * 50).next(x, rows, rows) for x in (logits, logits[:, order]))
    assert first.logprob.equal(again.logprob)
    assert first.top[1].equal(again.top[1])


def test_penalties_and_biases_are_what_is_said_of_them():
    ways = [{"repetition_penalty": 1.2}, {"frequency_penalty": 0.5}, {"presence_penalty": 0.5}, {"logit_bias": {9: 2}}]
    sampler = admitted(ways)
    scores, penalty = torch.zeros(4, V), torch.tensor(1.2)
    scores[:, 40], scores[:, 50], scores[:, 9], scores[:, 60], scores[0, 0] = 2.0, 1.5, 0.1, 1.2, -1
    slots, changed = torch.arange(4), sampler.changed(scores, torch.arange(4), torch.zeros(4).long(), None)
    assert changed[0, [0, 40, 41, 50]].tolist() == [-penalty, 2 / penalty, 0, 1.5 / penalty]
    assert changed[1, 50] == 1.5 - 2 * 0.5
    assert changed[2, 50] == 1.5 - 0.5
    assert changed[3, 9] == torch.tensor(0.1) + 2
    assert [int((row != plain).sum()) for row, plain in zip(changed, scores, strict=True)] == [3, 1, 1, 1]
    # What was answered counts from the next step on; greedy rows alternate as their tokens become dearer.
    told = [sampler.next(scores, slots, torch.full((4,), step)).token.tolist() for step in range(4)]
    assert [[step[row] for step in told] for row in range(4)] == [[40] * 4, [40, 40, 60, 40], [40] * 4, [9] * 4]


def test_a_slot_that_is_taken_again_remembers_nothing():
    scores, first = torch.zeros(1, V), torch.tensor([0])
    scores[0, 40], scores[0, 60] = 1.0, 0.9
    sampler = admitted([{"repetition_penalty": 2.0, "frequency_penalty": 2.0, "logit_bias": {9: 90}, "logprobs": 2}])
    assert sampler.next(scores, first, first).token.tolist() == [9]
    sampler.admit(0, params(repetition_penalty=1.5, presence_penalty=0.5), 0, torch.tensor([1, 2]))
    drawn = sampler.next(scores, first, first)
    assert (drawn.token.tolist(), drawn.top) == ([40], None)
    assert drawn.logprob.isnan().all()
    sampler.release(0)
    assert not any(sampler.asked.values())


def test_stop_tokens_wait_for_the_least_length():
    scores = torch.zeros(1, V)
    scores[0, 3], scores[0, 300], scores[0, 8] = 3.0, 2.0, 1.0
    sampler = admitted([{"min_new_tokens": 2}])
    told = [sampler.next(scores, torch.tensor([0]), torch.tensor([step])).token.tolist() for step in range(3)]
    assert told == [[8], [8], [3]]


def test_a_mask_and_a_forced_token():
    ways = [{"logprobs": 2}, {"temperature": 1.0}, {"logprobs": 0}, {"temperature": 1.0}]
    scores = torch.randn(4, V, generator=fresh())
    bits = torch.zeros(2, 320, dtype=torch.bool)
    bits[0, [31, 63, 300]] = True
    bits[1, 5] = True
    words = (bits.view(2, 10, 32).long() << torch.arange(32)).sum(-1).to(torch.int32)  # bit 31 wraps to the sign
    mask = (torch.tensor([0, 3]), words)
    forced = torch.tensor([-1, -1, 17, -1])
    slots, steps = torch.arange(4), torch.zeros(4).long()
    drawn = admitted(ways).next(scores, slots, steps, allowed=mask, forced=forced)
    likeliest = max((31, 63, 300), key=lambda token: scores[0, token])
    assert drawn.token.tolist()[::2] == [likeliest, 17]
    assert int(drawn.token[3]) == 5
    assert drawn.logprob[3] == 0
    assert set(drawn.top[0][0].tolist()) < {31, 63, 300}
    assert drawn.token[1] == admitted(ways).next(scores, slots, steps).token[1]
    exact = scores[2].double().log_softmax(-1)[17]
    assert_within(drawn.logprob[2], exact, 2**-24 * (3 * 12 + 4 + exact.abs()) + V / UNIT, name="logprob")
    greedy = admitted([{}]).next(scores[:1], slots[:1], steps[:1], forced=torch.tensor([17]))
    assert greedy.token.tolist() == [17]


def test_one_score_is_enough():
    scores = torch.randn(4, V)
    scores[1, 300], scores[2, 5], scores[3, 7] = math.nan, math.inf, -math.inf
    for way in WAYS:
        drawn = admitted([way] * 4).next(scores, torch.arange(4), torch.zeros(4).long())
        assert drawn.finite.tolist() == [True, False, False, True]
        assert ((drawn.token >= 0) & (drawn.token < V)).all(), "they may be fed all the same"


def test_nothing_waits_for_the_device():
    with syncs.Waits() as waits, mock.patch.object(torch, "tensor", syncs.tensor_here):
        sampler = Sampler(len(WAYS), V, syncs.DEVICE)
        for slot, way in enumerate(WAYS):
            sampler.admit(slot, params(**way), slot, [1, 2], [3])
        every = torch.arange(len(WAYS), device=syncs.DEVICE)
        scores = torch.zeros(len(WAYS), V, device=syncs.DEVICE)
        words = torch.full((1, 10), -1, dtype=torch.int32, device=syncs.DEVICE)
        drawn = sampler.next(scores, every, every, allowed=(every[:1], words), forced=every - 1)
    assert isinstance(drawn.token, syncs.OnDevice)
    assert drawn.token.values.tolist()[1:] == list(range(len(WAYS) - 1))
    assert not waits.found


def test_a_token_that_is_none():
    sampler = Sampler(1, 300, "cpu")
    for wrong in ({"logit_bias": {300: 1}}, {"min_new_tokens": 1}):
        with pytest.raises(ValueError, match=r"^token 300 of logit_bias or stop_token_ids is none of 0 to 299$"):
            sampler.admit(0, params(**wrong), 0, [])
    assert not any(sampler.asked.values())
    with pytest.raises(ValueError, match="a vocabulary of 1 to 262143 tokens is expected, got 262144"):
        Sampler(1, 2**18, "cpu")
