"""Generation: batches, sampling, stop tokens, streaming, the context, and the clock of the paper's reading."""

import copy
from dataclasses import replace
from functools import partial

import pytest
import torch

from afn_model.config import RoteConfig
from afn_model.infer import generate
from afn_model.infer.engine import Engine
from tests.budget import assert_same_but_rounding, assert_within_budget
from tests.orders import in_orders
from tests.tiny import noise, tiny

LENGTHS = (0.3, 1.0, 2.2, 0.7)


@pytest.fixture(scope="module")
def pair():
    return tiny()


def asked(question: str, *audios) -> list[dict]:
    parts = [{"type": "audio", "audio": audio, "sampling_rate": 16_000} for audio in audios]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": question}]}]


def conversations() -> list[list[dict]]:
    """Different lengths of audio and text, one without audio and one with two."""
    made = [asked("What is said?" + " And then?" * i, noise(seconds, i)) for i, seconds in enumerate(LENGTHS)]
    return [*made, asked("What is said?"), asked("Which is louder?", noise(0.5, 7), noise(1.1, 8))]


def test_a_batch_is_its_conversations_one_by_one(pair):
    model, processor = pair
    together = model.generate(processor(conversations()), 24)
    alone = [model.generate(processor(one), 24)[0] for one in conversations()]
    assert together == alone
    assert len({tuple(tokens) for tokens in together}) == len(together)


def test_a_batch_whose_answers_end_at_different_steps(pair):
    model, processor = pair
    batch = processor(conversations())
    free = model.generate(batch, 24, stop_token_ids=())
    assert all(len(tokens) == 24 for tokens in free)
    # Each answer's stop token is one that it reaches at a different step.
    stops = tuple(tokens[3 + 2 * i] for i, tokens in enumerate(free))
    cut = model.generate(batch, 24, stop_token_ids=stops)
    assert cut == [tokens[: next(i for i, t in enumerate(tokens) if t in stops)] for tokens in free]
    assert len({len(tokens) for tokens in cut}) > 2


def test_finished_answers_are_dropped(pair):
    model, processor = pair
    batch = processor(conversations())
    for options in ({}, {"temperature": 1.0, "seed": 0}):
        free = model.generate(batch, 24, stop_token_ids=(), **options)
        stops = tuple(tokens[3 + 2 * i] for i, tokens in enumerate(free))
        seen = []
        hook = model.language_model.layers[0].register_forward_hook(
            lambda m, given, out, s=seen: s.append(len(given[0]))
        )
        cut = model.generate(batch, 24, stop_token_ids=stops, **options)
        hook.remove()
        assert cut == [tokens[: next(i for i, t in enumerate(tokens) if t in stops)] for tokens in free]
        assert seen[1] == 6
        assert seen[-1] == 1
        assert seen[1:] == sorted(seen[1:], reverse=True)


def test_stop_tokens_end_an_answer_and_are_not_returned(pair):
    model, processor = pair
    batch = processor(conversations()[0])
    (free,) = model.generate(batch, 12, stop_token_ids=())
    for step in (0, 5):
        (tokens,) = model.generate(batch, 12, stop_token_ids=(free[step],))
        assert tokens == free[: free.index(free[step])]
    model.config = replace(model.config, stop_token_ids=(free[4],))
    try:
        assert model.generate(batch, 12) == [free[: free.index(free[4])]]
    finally:
        model.config = replace(model.config, stop_token_ids=tuple(processor.stop_ids))


def test_on_token_sees_what_is_returned(pair):
    model, processor = pair
    batch = processor(conversations())
    seen = [[] for _ in range(6)]
    free = model.generate(batch, 12, stop_token_ids=())
    answers = model.generate(batch, 12, stop_token_ids=(free[0][6],), on_token=lambda i, token: seen[i].append(token))
    assert seen == answers
    assert len(answers[0]) <= 6


def test_max_new_tokens(pair):
    model, processor = pair
    batch = processor(conversations())
    longest = model.generate(batch, 12, stop_token_ids=())
    for limit in (0, 1, 5):
        assert model.generate(batch, limit, stop_token_ids=()) == [tokens[:limit] for tokens in longest]


def test_answers_past_the_slots_have_no_pages_of_their_own(pair, monkeypatch):
    assert generate.pages_for([640, 1000], 3, 64) == 10 + 15 + 6 * 2
    assert generate.pages_for([640, 1000] * 1000, 3, 64) == 256 * 15 + 256 * 2 + 256
    model, processor = pair
    batch, made = processor(conversations()), []
    free = model.generate(batch, 100, stop_token_ids=())

    def engine(*args, **options):
        made.append(Engine(*args, **options))
        return made[-1]

    monkeypatch.setattr(generate, "SLOTS", 2)
    monkeypatch.setattr(generate, "Engine", engine)
    assert model.generate(batch, 100, stop_token_ids=()) == free
    assert not made[0].scheduler.preempted
    assert made[0].pool.pages < 6 * 2


def test_seeds(pair):
    model, processor = pair
    batch = processor(conversations())

    def sample(seed):
        return model.generate(batch, 12, temperature=1.0, seed=seed)

    first = sample(0)
    torch.manual_seed(123)
    assert sample(0) == first
    assert all(a != b for a, b in zip(sample(1), first, strict=True))
    torch.manual_seed(5)
    unseeded = sample(None)
    assert sample(None) != unseeded
    torch.manual_seed(5)
    assert sample(None) == unseeded


def test_a_tiny_top_p_or_temperature_is_greedy(pair):
    model, processor = pair
    batch = processor(conversations())
    greedy = model.generate(batch, 12)
    assert model.generate(batch, 12, temperature=1.0, top_p=1e-6, seed=0) == greedy
    assert model.generate(batch, 12, temperature=1e-4, seed=0) == greedy
    assert model.generate(batch, 12, temperature=1.0, top_p=0.99, seed=0) != greedy


def test_any_seed(pair):
    model, processor = pair
    batch = processor(conversations()[:2])
    greedy = model.generate(batch, 4)
    assert model.generate(batch, 4, seed=2**64 + 5) == greedy
    again = [model.generate(batch, 4, temperature=1.0, seed=seed) for seed in (5, 2**64 + 5, 5 - 2**64)]
    assert again[0] == again[1] == again[2]


@pytest.mark.parametrize("penalty", [1.0, 1.2, 2.0])
def test_cached_decoding_is_the_whole_sequence_over_again(pair, penalty):
    model, processor = pair
    for one in conversations():
        batch = processor(one)
        (tokens,) = model.generate(batch, 10, repetition_penalty=penalty, stop_token_ids=())
        again = []
        while len(again) < 10:
            ids = torch.cat((batch.input_ids, torch.tensor(again, dtype=torch.int64)))
            whole = replace(batch, input_ids=ids, cu_seqlens=torch.tensor([0, len(ids)], dtype=torch.int32))
            with torch.inference_mode():
                hidden, _ = model.hidden(whole)
                scores = model.lm_head(hidden[-1:]).float()
                before = scores[0, ids]
                scores[0, ids] = torch.where(before > 0, before / penalty, before * penalty)
            again.append(int(scores.argmax(-1)))
        assert tokens == again


def test_the_context_bounds_prompt_and_answer(pair):
    model, processor = pair
    batch = processor(conversations()[0])
    length = len(batch.input_ids)
    whole = model.config
    (tokens,) = model.generate(batch, 12, stop_token_ids=())

    def with_context(positions):
        model.config = replace(whole, text=replace(whole.text, max_positions=positions))
        return model.generate(batch, 12, stop_token_ids=())

    try:
        assert with_context(length + 3) == [tokens[:3]]
        for positions in (length, length - 1):
            with pytest.raises(
                ValueError, match=f"conversation 0 has {length} tokens; 1 to {positions - 1} leave room"
            ):
                with_context(positions)
    finally:
        model.config = whole


@pytest.mark.parametrize(
    "options", [{"temperature": -0.1}, {"top_p": 0.0}, {"top_p": 1.1}, {"repetition_penalty": 0.0}]
)
def test_sampling_out_of_range(pair, options):
    model, processor = pair
    with pytest.raises(ValueError, match="out of range"):
        model.generate(processor(conversations()[0]), 1, **options)


def test_the_context_bounds_each_answer_by_its_own_prompt(pair):
    model, processor = pair
    batch, whole = processor(conversations()), model.config
    lengths = batch.cu_seqlens.diff().tolist()
    model.config = replace(whole, text=replace(whole.text, max_positions=max(lengths) + 3))
    try:
        together = model.generate(batch, 12, stop_token_ids=())
        alone = [model.generate(processor(one), 12, stop_token_ids=())[0] for one in conversations()]
    finally:
        model.config = whole
    assert together == alone
    assert [len(tokens) for tokens in together] == [min(12, max(lengths) + 3 - length) for length in lengths]


def test_generation_leaves_no_gradient(pair):
    model, processor = pair
    model.generate(processor(conversations()[0]), 2)
    assert all(parameter.grad is None for parameter in model.parameters())
    batch = processor([*conversations()[0], {"role": "assistant", "content": "one"}], training=True)
    model.loss(batch).backward()
    assert model.lm_head.weight.grad.abs().max() > 0
    model.zero_grad()


def reading(clock: str, text_step: float = 1.0):
    """Answers of the same weights and prompts in the paper's reading."""
    model, processor = tiny(rote=RoteConfig("paper", clock=clock, text_step=text_step))
    return model.generate(processor(conversations()), 12, stop_token_ids=())


def test_the_papers_clocks(pair):
    model, processor = tiny(rote=RoteConfig("none"))
    integers = model.generate(processor(conversations()), 12, stop_token_ids=())
    going_on, again = reading("continue"), reading("restart")
    # Without gaps the clock counts tokens; a second clip alone is affected by starting anew.
    assert going_on == integers
    assert again[:5] == integers[:5]
    assert again[5] != integers[5]
    slower = reading("continue", 0.5)
    assert all(a != b for a, b in zip(slower, integers, strict=True))
    for clock, text_step in (("restart", 1.0), ("continue", 0.5), ("restart", 0.5)):
        model, processor = tiny(rote=RoteConfig("paper", clock=clock, text_step=text_step))
        alone = [model.generate(processor(one), 12, stop_token_ids=())[0] for one in conversations()]
        assert reading(clock, text_step) == alone


def lengths(groups) -> list[int]:
    return [len(tokens) for group in groups for tokens in group]


def sampled(model, batch, limit=10, **options):
    """(tokens, log-probabilities) by (prompt, sample)."""
    rollouts = model.sample(batch, limit, **{"seed": 3, "samples": 3, **options})
    return {(one.prompt, one.sample): one for one in rollouts}


def test_samples_of_a_prompt_do_not_depend_on_the_batch(pair):
    model, processor = pair
    together = sampled(model, processor(conversations()), keys=range(40, 46))
    assert len({tuple(one.tokens) for one in together.values()}) > 15
    order = [4, 1, 5, 0]
    mixed = sampled(model, processor([conversations()[i] for i in order]), keys=[40 + i for i in order])
    for place, index in enumerate(order):
        alone = sampled(model, processor(conversations()[index]), keys=[40 + index], samples=2)
        for s in range(3):
            assert mixed[place, s].tokens == together[index, s].tokens
            if s < 2:
                assert alone[0, s].tokens == together[index, s].tokens
    groups = [[together[index, s].tokens for s in range(3)] for index in range(6)]
    batch = processor(conversations())
    with torch.no_grad():
        expected = in_orders(lambda: model.answer_logprobs(batch, groups).split(lengths(groups)), 4)
        exact = copy.deepcopy(model).double().answer_logprobs(batch, groups).split(lengths(groups))
    for place, index in enumerate(order):
        for s in range(3):
            at = 3 * index + s
            assert_within_budget(mixed[place, s].logprobs, [one[at] for one in expected], exact[at])


def test_samples_are_a_function_of_seed_and_key(pair):
    model, processor = pair
    batch = processor([conversations()[4]] * 2)
    first = sampled(model, batch, keys=[7, 8])
    torch.manual_seed(99)
    again = sampled(model, batch, keys=[8, 7])
    assert all(first[0, s].tokens == again[1, s].tokens != first[1, s].tokens for s in range(3))
    assert all(first[0, s].tokens != sampled(model, batch, seed=4)[0, s].tokens for s in range(3))


def test_logprobs_of_samples_are_those_of_training(pair):
    model, processor = pair
    batch = processor(conversations())
    for options in ({}, {"temperature": 0.5}, {"temperature": 2.0, "top_p": 0.9}):
        found = list(sampled(model, batch, **options).values())
        groups = [[one.tokens for one in found if one.prompt == p] for p in range(6)]
        temperature = options.get("temperature", 1.0)
        with torch.no_grad():
            again = in_orders(partial(model.answer_logprobs, batch, groups, temperature=temperature), 4)
        assert_same_but_rounding(torch.cat([one.logprobs for one in found]), again)


def test_the_prompt_is_computed_once_for_all_its_samples(pair):
    model, processor = pair
    batch = processor(conversations())
    seen = []
    hook = model.language_model.layers[0].register_forward_hook(lambda module, given, out: seen.append(len(given[0])))
    found = sampled(model, batch, 5, stop_token_ids=())
    hook.remove()
    # The first answer begins with the step of the prompts, the others one step later, from a prompt's last token on.
    assert seen == [len(batch.input_ids), *[18] * 4, 12]
    assert all(len(one.tokens) == 5 and not one.finished for one in found.values())


def test_a_finished_sample_keeps_its_stop_token_and_costs_nothing_more(pair):
    model, processor = pair
    batch = processor(conversations())
    free = sampled(model, batch, 12, stop_token_ids=())
    stops = tuple({one.tokens[2] for one in free.values() if one.prompt < 5})
    seen = []
    hook = model.language_model.layers[0].register_forward_hook(lambda module, given, out: seen.append(len(given[0])))
    cut = sampled(model, batch, 12, stop_token_ids=stops)
    hook.remove()
    for place, one in cut.items():
        ends = [i for i, token in enumerate(free[place].tokens) if token in stops]
        assert one.finished == bool(ends)
        assert one.tokens == (free[place].tokens[: ends[0] + 1] if ends else free[place].tokens)
        assert one.answer == (one.tokens[:-1] if ends else one.tokens)
        assert len(one.logprobs) == len(one.tokens)
    assert seen[-1] < seen[1] <= 18


@pytest.mark.parametrize(
    "options", [{"temperature": 0.0}, {"top_p": 0.0}, {"top_p": 1.5}, {"samples": 0}, {"max_new_tokens": 0}]
)
def test_samples_out_of_range(pair, options):
    model, processor = pair
    options = {"max_new_tokens": 2, "seed": 0} | options
    with pytest.raises(ValueError, match="are expected"):
        model.sample(processor(conversations()[0]), **options)


def test_as_many_keys_as_prompts(pair):
    model, processor = pair
    with pytest.raises(ValueError, match="1 keys for 6 prompts"):
        model.sample(processor(conversations()), 2, seed=0, keys=[1])


def test_samples_stay_within_the_context_whatever_else_is_in_the_batch(pair):
    model, processor = pair
    batch = processor(conversations())
    longest = int(batch.cu_seqlens.diff().max())
    whole = model.config
    model.config = replace(whole, text=replace(whole.text, max_positions=longest + 3))
    try:
        found = sampled(model, batch, 12, stop_token_ids=())
    finally:
        model.config = whole
    lengths = batch.cu_seqlens.diff().tolist()
    assert all(len(one.tokens) == min(12, longest + 3 - lengths[p]) for (p, _), one in found.items())
