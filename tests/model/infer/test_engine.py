"""The engine: the same bits whatever else runs, the same tokens however it is configured, and errors that end one."""

import random
from dataclasses import replace

import pytest
import torch

from afn_model.infer.engine import Engine
from afn_model.infer.listen import Listening
from afn_model.infer.offload import HostPages
from afn_model.infer.request import NotFinite
from afn_model.infer.sampling_params import SamplingParams
from tests.budget import assert_same_but_rounding
from tests.orders import in_orders
from tests.tiny import conversation, noise, tiny

COUNT, CHUNK = 16, 128
GREEDY = SamplingParams(max_new_tokens=20, logprobs=0, stop_token_ids=())
RANDOM = SamplingParams(max_new_tokens=20, temperature=1.0, seed=1, n=3)


@pytest.fixture(scope="module")
def pair():
    return tiny()


@pytest.fixture(scope="module")
def batches(pair):
    """Prompts of 30 to 200 tokens; a third has no audio, others share a recording or the beginning of their text."""
    _, processor = pair
    heard = [[], [noise(0.7, 1)], [noise(2.5, 2), noise(0.4, 3)]]
    return [
        processor(conversation("What is said?" + " And then?" * (index % 5 * 3), *heard[index % 3]))
        for index in range(COUNT)
    ]


def asked(engine, batch, params, index):
    (request,) = engine.add(batch, params, keys=[index])
    return request


def told(request):
    """Tokens and bits of log-probabilities of every answer."""
    return [(one.tokens, one.logprobs, one.reason) for one in request.answers]


def check_idle(engine):
    """Nothing is held any longer."""
    engine.pool.check([])
    assert not engine.scheduler.running()
    assert not engine.growing
    assert not engine.scheduler.making
    assert len(engine.scheduler.slots) == engine.runner.sampler.slots
    assert not any(window.references for window in engine.audio._windows.values())


@pytest.fixture(scope="module", params=[GREEDY, RANDOM], ids=["greedy", "random"])
def alone(request, pair, batches):
    """What every request says when nothing else runs and nothing is known before."""
    found = []
    for index, batch in enumerate(batches):
        engine = Engine(pair[0], deterministic=True, chunk=CHUNK, pages=32, slots=3)
        found.append(asked(engine, batch, request.param, index))
        engine.run()
        check_idle(engine)
    assert len({tuple(one.tokens) for each in found for one in each.answers}) > COUNT / 2
    return request.param, [told(one) for one in found]


@pytest.fixture(scope="module")
def long_alone(pair, batches):
    """Two answers of 100 tokens to each of some requests: more than the pages that an answer begins with."""
    params = SamplingParams(max_new_tokens=100, temperature=1.0, seed=2, n=2, stop_token_ids=())
    found = {}
    for index in (0, 5, 10):
        engine = Engine(pair[0], deterministic=True, chunk=CHUNK, pages=32, slots=3)
        found[index] = asked(engine, batches[index], params, index)
        engine.run()
    return params, {index: told(request) for index, request in found.items()}


def mixed(engine, batches, params, order):
    """Requests that come one after another, steps between them."""
    requests = {}
    for index in order:
        requests[index] = asked(engine, batches[index], params, index)
        for _ in range(random.choice((0, 0, 1, 4))):
            engine.step()
    engine.run()
    check_idle(engine)
    return requests


@pytest.mark.parametrize("ahead", [False, True])
def test_the_same_bits(pair, batches, alone, ahead):
    """In batches of 2 to 16, in any order of arrival, cold and warm, forked."""
    params, expected = alone
    engine = Engine(pair[0], deterministic=True, chunk=CHUNK, pages=400, ahead=ahead)
    order = random.sample(range(COUNT), COUNT)
    for some in (order[:2], order[2:5], order):  # the last ones find what the first ones have computed
        requests = mixed(engine, batches, params, some)
        assert all(told(request) == expected[index] for index, request in requests.items())
    assert all(one.sequence.reused for request in requests.values() for one in request.answers[1:])
    assert engine.audio.windows_encoded == 3


@pytest.mark.parametrize("options", [{"ahead": True}, {"offload": True}], ids=["ahead", "offload"])
def test_the_same_bits_after_preemption(pair, batches, long_alone, options):
    params, expected = long_alone
    options = options | ({"offload": HostPages(2**30)} if "offload" in options else {})
    engine = Engine(pair[0], deterministic=True, chunk=CHUNK, pages=10, slots=6, **options)
    restored, restore = [], engine.scheduler.restore
    engine.scheduler.restore = lambda pages: restored.extend(found := restore(pages)) or found
    for _ in range(1 + (engine.offload is not None)):
        requests = mixed(engine, batches, params, random.sample(list(expected), len(expected)))
        assert all(told(request) == expected[index] for index, request in requests.items())
    assert engine.scheduler.preempted
    assert bool(restored) == ("offload" in options)


def test_the_same_bits_heard_while_it_comes(pair):
    """Also in the samples' batch with others, and with a second question."""
    model, processor = pair
    pcm = torch.from_numpy(noise(64.0, 4)).float()
    said = {}
    for params in (GREEDY, RANDOM):
        for question in ("What is said?", "And then?"):
            engine = Engine(model, deterministic=True)
            said[params, question] = asked(engine, processor(conversation(question, pcm.numpy())), params, 0)
            engine.run()
    engine = Engine(model, deterministic=True)
    listening = Listening(engine, processor)
    asked(engine, processor(conversation("And?", noise(0.5, 8))), GREEDY, 5)
    at = 0
    while at < len(pcm):
        size = random.randrange(1000, 400_000)
        listening.push(pcm[at : at + size])
        engine.step()
        at += size
    while engine.scheduler.running():
        engine.step()
    assert engine.audio.windows_encoded == 2 + 1
    for (params, question), expected in said.items():
        request = listening.ask(question, params)
        engine.run()
        assert told(request) == told(expected)
        assert request.answers[0].sequence.reused >= 1500 // 256 * 256
    assert engine.audio.windows_encoded == 3 + 1  # the last one of 4 s, once for all questions
    listening.close()
    check_idle(engine)


@pytest.mark.parametrize("penalty", [1.0, 1.2])
def test_without_the_mode_the_same_tokens_and_logprobs_but_rounding(pair, batches, penalty):
    model, some = pair[0], range(8)
    params = SamplingParams(max_new_tokens=20, logprobs=0, stop_token_ids=(), repetition_penalty=penalty)
    found = []
    for options in ({"pages": 400}, {"pages": 14, "slots": 5, "ahead": True, "chunk": 64}):
        engine = Engine(model, **options)
        found.append(mixed(engine, batches, params, random.sample(some, 8)))
    alone = [mixed(Engine(model, pages=40), batches, params, [index])[index] for index in some]
    for one in found:
        assert all(one[index].answers[0].tokens == alone[index].answers[0].tokens for index in some)
    if penalty != 1:  # what training computes is without a penalty
        return
    for index in (4, 5, 6):
        groups = [[alone[index].answers[0].tokens]]
        with torch.no_grad():
            again = in_orders(lambda i=index, g=groups: model.answer_logprobs(batches[i], g), 4)
        for one in (*(each[index] for each in found), alone[index]):
            assert_same_but_rounding(torch.tensor(one.answers[0].logprobs), again)


def recorded(run):
    """A stand-in for a CUDA graph: what replays computes again, into the same memory."""
    out = run()
    return lambda: out.copy_(run()), out


@pytest.mark.parametrize("params", [GREEDY, replace(RANDOM, n=1)], ids=["greedy", "random"])
def test_graphs_give_the_same_tokens(pair, batches, params):
    eager = mixed(Engine(pair[0], pages=400), batches, params, range(COUNT))
    engine = Engine(pair[0], pages=400, graphs=True, ahead=True)
    assert engine.runner.graphs is not None
    engine.runner.graphs.record = recorded
    replayed = mixed(engine, batches, params, range(COUNT))
    assert len(engine.runner.graphs.graphs) >= 2
    for index in range(COUNT):
        assert [one.tokens for one in replayed[index].answers] == [one.tokens for one in eager[index].answers]


@pytest.mark.parametrize("params", [GREEDY, SamplingParams(temperature=0.8, seed=3)], ids=["greedy", "random"])
def test_a_prediction_changes_nothing_but_the_number_of_steps(pair, batches, params):
    model = pair[0]
    params = replace(params, max_new_tokens=60, stop_token_ids=())
    engine = Engine(model, pages=60)
    plain = [asked(engine, batch, params, index) for index, batch in enumerate(batches[:3])]
    engine.run()
    steps = engine.steps
    said = [one.answers[0].tokens for one in plain]
    per_token = {}
    for name in ("right", "shifted", "wrong", "somebody else's"):
        engine, requests = Engine(model, pages=60), []
        for index, batch in enumerate(batches[:3]):
            draft = said[index]
            draft = [*draft[:20], *draft[25:40], 3, 4, *draft[40:]] if name == "shifted" else draft
            draft = [5] * 60 if name == "wrong" else said[index - 1] if name == "somebody else's" else draft
            (prompt,) = engine._prompts(batch, None)
            requests.append(engine.submit(prompt, params, index, prediction=draft))
        engine.run()
        check_idle(engine)
        assert [one.answers[0].tokens for one in requests] == said
        per_token[name] = engine.steps / 60
        drafts = [one.answers[0].draft for one in requests]
        assert all(draft.accepted <= draft.proposed for draft in drafts)
        if name == "right":
            assert all(draft.accepted == draft.proposed for draft in drafts)
    assert per_token["right"] <= 0.25
    assert per_token["shifted"] <= 0.5
    assert steps == 60
    assert max(per_token.values()) <= 1


class Broken(RuntimeError):
    """What a device may say."""


def breaks(times):
    """Raises at the calls of these numbers, and does nothing at others."""
    calls = [0]

    def call(*_):
        calls[0] += 1
        if calls[0] in times:
            raise Broken("out of memory")

    return call


@pytest.mark.parametrize("params", [GREEDY, RANDOM], ids=["greedy", "random"])
@pytest.mark.parametrize("at", [1, 2, 6])
def test_an_exception_ends_what_was_in_its_step(pair, batches, params, at, monkeypatch):
    model = pair[0]
    expected = mixed(Engine(model, deterministic=True, pages=400), batches[:6], params, range(6))
    engine = Engine(model, deterministic=True, pages=400, slots=4)
    requests = [asked(engine, batch, params, index) for index, batch in enumerate(batches[:6])]
    step, scores = breaks({at}), engine.runner._scores
    monkeypatch.setattr(engine.runner, "_scores", lambda *given: (step(), scores(*given))[1])
    failures = 0
    while engine.scheduler.running():
        try:
            engine.step()
        except Broken:
            failures += 1
    check_idle(engine)
    ended = [one for request in requests for one in request.answers if one.reason == "error"]
    assert failures == 1
    assert 1 <= len(ended) < sum(len(request.answers) for request in requests)
    assert all(isinstance(one.error, Broken) for one in ended)
    for index, request in enumerate(requests):
        for one, right in zip(told(request), told(expected[index]), strict=True):
            assert one[2] == "error" or one == right


@pytest.mark.parametrize("chunk", [64, 8192])
def test_windows_that_cannot_be_encoded_end_their_request(pair, batches, chunk, monkeypatch):
    engine = Engine(pair[0], pages=400, chunk=chunk)
    encode = engine.audio._encoded
    bad = asked(engine, batches[2], GREEDY, 2)
    lost = {span.digest for span in bad.prompt.windows}

    def failing(digests):
        if lost & set(digests):
            raise Broken("no memory for the encoder")
        return encode(digests)

    monkeypatch.setattr(engine.audio, "_encoded", failing)
    good = [asked(engine, batches[index], GREEDY, index) for index in (0, 1)]
    for _ in range(200):
        try:
            engine.step()
        except Broken:
            asked_again = asked(engine, batches[0], GREEDY, 0)
        if not engine.scheduler.running():
            break
    check_idle(engine)
    assert bad.answers[0].reason == "error"
    assert asked_again.answers[0].reason == "length"
    assert all(one.done for one in good)


def test_scores_that_are_nan_end_one_answer_and_its_neighbours_go_on(pair, batches):
    model = pair[0]
    rare = 11
    assert not any((batch.input_ids == rare).any() for batch in batches)
    expected = mixed(Engine(model, pages=400), batches, GREEDY, range(4))
    words = model.language_model.embed_tokens.weight
    before = words[rare].clone()
    (prompt,) = Engine(model)._prompts(batches[0], None)
    prompt.ids = [*prompt.ids[:20], rare, *prompt.ids[20:]]
    try:
        with torch.no_grad():
            words[rare] = float("nan")
        for options in ({}, {"ahead": True}, {"deterministic": True}):
            engine = Engine(model, pages=400, **options)
            bad = engine.submit(prompt, RANDOM, 7)
            good = mixed(engine, batches, GREEDY, range(4))
            assert [one.reason for one in bad.answers] == ["error"] * 3
            assert all(isinstance(one.error, NotFinite) for one in bad.answers)
            assert "scores of token 0 are NaN or infinite" in str(bad.answers[0].error)
            for index in range(4):
                assert good[index].answers[0].tokens == expected[index].answers[0].tokens
            assert engine.pool.cached
            assert all(torch.isfinite(engine.runner.kv[:, :, page]).all() for page in engine.pool._cached)
    finally:
        with torch.no_grad():
            words[rare] = before


@pytest.mark.parametrize("deterministic", [False, True])
def test_aborts_at_every_stage(pair, batches, deterministic):
    model = pair[0]
    options = {"deterministic": deterministic, "chunk": 64, "pages": 60, "slots": 4}
    expected = mixed(Engine(model, **options), batches, GREEDY, [4])[4]
    stages = set()
    for steps in range(9):
        engine = Engine(model, ahead=bool(steps % 2), **options)
        stays = asked(engine, batches[4], GREEDY, 4)
        leaves = asked(engine, batches[14], RANDOM, 14)
        for _ in range(steps):
            engine.step()
        scheduler = engine.scheduler
        for one in leaves.answers:
            kinds = {"waiting": scheduler.waiting, "prefilling": scheduler.prefilling, "decoding": scheduler.decoding}
            stages |= {name for name, some in kinds.items() if one.sequence in some}
        engine.abort(leaves)
        engine.abort(leaves)
        assert leaves.done
        engine.run()
        check_idle(engine)
        assert [one.reason for one in leaves.answers] == ["abort"] * 3
        assert stays.answers[0].tokens == expected.answers[0].tokens
    assert stages == {"waiting", "prefilling", "decoding"}


def test_requests_that_cannot_be_answered(pair, batches):
    model, _ = pair
    engine = Engine(model, pages=3)
    with pytest.raises(ValueError, match=r"needs \d+ pages of 64, and there are 3"):
        engine.add(batches[14], SamplingParams(max_new_tokens=400))
    with pytest.raises(ValueError, match="2 keys for 1 prompts"):
        engine.add(batches[2], GREEDY, keys=[1, 2])
    check_idle(engine)
    (nothing,) = engine.add(batches[0], SamplingParams(max_new_tokens=0))
    assert nothing.done
    assert nothing.answers[0].reason == "length"
    check_idle(engine)
    engine.add(batches[0], SamplingParams(max_new_tokens=2))
    with pytest.raises(RuntimeError, match="1 answers are being generated"):
        engine.clear()
    engine.run()
    engine.clear()
    assert engine.pool.free == engine.pool.pages


def test_stop_tokens_that_clients_name_take_no_room_for_ever():
    pytest.importorskip("llguidance", reason="llguidance (extra grammar) is not installed")
    model, processor = tiny()
    engine = Engine(model, processor, pages=60)
    for token in (2, 3, 4, 2, 5, 6):
        (request,) = engine.add(processor(conversation("?")), SamplingParams(grammar="ab", stop_token_ids=(token,)))
        engine.abort(request)
    assert list(engine.grammars) == [(4,), (2,), (5,), (6,)]
