"""What callers do wrong, and what goes wrong while an engine works: one clear error each, and nothing is kept."""

from dataclasses import replace
from threading import Thread

import pytest
import torch

from afn_model.audio.frames import MIN_SAMPLES, WINDOW
from afn_model.infer.engine import Engine, default_pages
from afn_model.infer.listen import Listening
from afn_model.infer.pages import PagePool
from afn_model.infer.sampling_params import SamplingParams
from afn_model.infer.schedule import Scheduler
from afn_model.infer.sequence import EngineStep, Sequence
from afn_model.infer.tokens import PromptTokens, spans_of
from tests.tiny import conversation, noise, tiny

PARAMS = SamplingParams(max_new_tokens=6, stop_token_ids=())


@pytest.fixture(scope="module")
def pair():
    return tiny()


@pytest.fixture(scope="module")
def batches(pair):
    """Of a conversation with audio, and of one without."""
    return pair[1](conversation("What is said?", noise(1.0, 1))), pair[1](conversation("A dog barks?"))


def made(pair, **options) -> Engine:
    return Engine(*pair, **{"pages": 12, "slots": 3, "chunk": 64} | options)


def assert_nothing_is_kept(engine: Engine) -> None:
    engine.pool.check([])
    assert not any(window.references for window in engine.audio._windows.values())
    assert len(engine.scheduler.slots) == engine.runner.sampler.slots
    assert not any((engine.growing, engine.early, engine.seated, engine.runner.sampler.params))
    assert not any((engine.scheduler.running(), engine.scheduler.making, engine.scheduler.ahead))


def alone(pair, batch, params=PARAMS) -> list[int]:
    engine = made(pair)
    (request,) = engine.add(batch, params)
    engine.run()
    return request.answers[0].tokens


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"max_new_tokens": 1000}, "needs"),
        ({"logit_bias": {10**6: 1.0}}, "token 1000000 of logit_bias"),
        ({"min_new_tokens": 1, "stop_token_ids": (10**6,)}, "token 1000000 of"),
        ({"grammar": "((", "stop_token_ids": (0,)}, "cannot be compiled|needs llguidance"),
        ({"grammar": "a*"}, "a grammar needs a stop token"),
    ],
)
def test_what_cannot_be_answered_is_refused_before_it_begins(pair, batches, changes, says):
    engine = made(pair)
    (neighbour,) = engine.add(batches[1], PARAMS)
    with pytest.raises(ValueError, match=says):
        engine.add(batches[0], replace(PARAMS, **changes))
    engine.run()
    assert neighbour.answers[0].tokens == alone(pair, batches[1])
    assert_nothing_is_kept(engine)


def test_tokens_outside_of_the_vocabulary_are_refused(pair, batches):
    engine, ids = made(pair), batches[1].input_ids.clone()
    ids[0] = -1
    with pytest.raises(ValueError, match="token id -1"):
        engine.add(replace(batches[1], input_ids=ids))
    with pytest.raises(ValueError, match="a prediction of tokens 0 to"):
        engine.submit(PromptTokens([5]), PARAMS, 0, prediction=[5, -1])
    with pytest.raises(ValueError, match="0 slots"):
        made(pair, slots=0)
    assert_nothing_is_kept(engine)


@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.parametrize("name", ["on_token", "on_text"])
def test_what_a_callback_raises_ends_its_answer_alone(pair, batches, name, ahead):
    engine = made(pair, ahead=ahead)
    first, neighbour = (engine.add(batch, PARAMS)[0] for batch in batches)

    def fails(_):
        raise KeyError("mine")

    setattr(first.answers[0], name, fails)
    with pytest.raises(KeyError, match="mine"):
        engine.run()
    engine.run()
    assert first.answers[0].reason == "error"
    assert neighbour.answers[0].tokens == alone(pair, batches[1])
    assert_nothing_is_kept(engine)


def test_a_callback_may_abort_its_request(pair, batches):
    engine = made(pair)
    (request,) = engine.add(batches[0], PARAMS)
    request.answers[0].on_token = lambda _: engine.abort(request)
    engine.run()
    assert (request.answers[0].reason, len(request.answers[0].tokens)) == ("abort", 1)
    assert_nothing_is_kept(engine)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_after_a_step_that_failed_the_engine_goes_on(pair, batches, error):
    """Three answers run, one of the same group waits for a slot: it must not go on from pages of the failed step."""
    engine, random = made(pair), replace(PARAMS, n=4, temperature=1.0, seed=1)
    (request,) = engine.add(batches[0], random)
    layer, calls = pair[0].language_model.layers[1], []

    def fails(*_):
        calls.append(1)
        if len(calls) == 2:
            raise error

    hook = layer.register_forward_pre_hook(fails)
    try:
        with pytest.raises(error):
            engine.run()
    finally:
        hook.remove()
    *ended, last = request.answers
    assert {answer.reason for answer in ended} == {"error" if error is RuntimeError else "abort"}
    assert last.reason is None
    engine.run()
    other = made(pair)
    (again,) = other.add(batches[0], random)
    other.run()
    assert last.tokens == again.answers[3].tokens
    assert_nothing_is_kept(engine)


def test_prompts_that_end_with_audio(pair):
    """The window is not part of any chunk: the last token, with which an answer begins, is all that there is of it."""
    model, pcm = pair[0], torch.from_numpy(noise(1.0, 3)[:MIN_SAMPLES]).float()
    sound = model.config.audio_token_id
    for before in ([], [5] * 64):
        engine = made(pair)
        ids, digests = [*before, sound], engine.audio.add([pcm], [len(pcm)])
        request = engine.submit(PromptTokens(ids, spans_of(ids, [[len(pcm)]], sound, digests)), PARAMS, 0)
        engine.run()
        assert request.answers[0].reason == "length"
        assert_nothing_is_kept(engine)


def test_a_recording_may_be_closed_before_it_is_computed(pair, batches):
    engine = made(pair, pages=40)
    listening = Listening(engine, pair[1])
    listening.push(torch.from_numpy(noise(30.0)).float()[:WINDOW])
    (request,) = engine.add(batches[1], PARAMS)
    listening.close()
    engine.run()
    engine.step()
    assert request.answers[0].tokens == alone(pair, batches[1])
    assert_nothing_is_kept(engine)


def test_threads_share_an_engine(pair, batches):
    engine, found = made(pair), {}
    expected = [alone(pair, batch) for batch in batches]

    def ask(place: int) -> None:
        for _ in range(3):
            (request,) = engine.add(batches[place % 2], PARAMS)
            while not request.done:
                engine.step()
            found.setdefault(place, []).append(request.answers[0].tokens)

    threads = [Thread(target=ask, args=(place,)) for place in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {place: [expected[place % 2]] * 3 for place in range(4)}
    assert_nothing_is_kept(engine)


def compute(scheduler: Scheduler, step: EngineStep) -> list[Sequence]:
    """What a step draws, once it is computed."""
    scheduler.launched(step)
    return [sequence for sequence, draws in zip(step.rows, step.draws, strict=True) if draws]


def draw(scheduler: Scheduler, sequences: list[Sequence]) -> None:
    for sequence in sequences:
        scheduler.drawn(sequence, len(sequence.tokens))
        if len(sequence.tokens) == sequence.limit:
            scheduler.finish(sequence)


def test_pages_left_to_an_answer_that_waits_are_taken_back():
    """The other one needs all pages there are."""
    pool = PagePool(4)
    scheduler, prompt = Scheduler(pool, slots=1, chunk=64), PromptTokens(list(range(100)))
    first = Sequence(prompt, 20)
    heir, other = Sequence(prompt, 20, leader=first), Sequence(PromptTokens([7] * 100), 150, priority=1)
    for sequence in (first, heir):
        scheduler.add(sequence)
    while not first.tokens:
        draw(scheduler, compute(scheduler, scheduler.plan()))
    scheduler.add(other)
    scheduler.finish(first)
    assert heir.pages
    for _ in range(300):
        draw(scheduler, compute(scheduler, scheduler.plan()))
    assert not scheduler.running()
    assert (len(heir.tokens), len(other.tokens)) == (20, 150)
    pool.check([])


def test_a_token_that_is_not_known_yet_is_not_drawn_twice():
    """One step ahead: an answer that gives up its pages when there would at once be others for it."""
    pool = PagePool(6)
    scheduler = Scheduler(pool, slots=4, chunk=64)
    first, second = (Sequence(PromptTokens([token] * token), 150) for token in (192, 55))
    for sequence in (first, second, Sequence(second.prompt, 150, leader=second)):
        scheduler.add(sequence)
    pending: list[tuple[Sequence, int]] = []
    for _ in range(600):
        step = scheduler.plan()
        drawing = compute(scheduler, step)
        for sequence, number in pending:
            if number < sequence.limit:
                assert number == len(sequence.tokens)
                draw(scheduler, [sequence])
        places = dict(zip(step.rows, step.places, strict=True))
        pending = [(one, places[one] + 1 - len(one.prompt.ids)) for one in drawing]
    assert scheduler.preempted
    assert not scheduler.running()


def test_keys_leave_room_for_audio_and_activations(pair):
    config, room = pair[0].config.text, 10**9
    page = config.layers * 2 * 64 * config.kv_heads * config.head_dim * 2
    used = default_pages(pair[0], torch.bfloat16, room, room // 4) * page + room // 4
    assert 0.9 * room - page < used <= 0.9 * room


def test_what_others_wait_for_is_as_urgent_as_they_are():
    """A recording computed ahead, a question about it, and in every step another prompt that takes all of the step."""
    scheduler, prompt = Scheduler(PagePool(64), slots=8, chunk=64), [5] * 300
    scheduler.add(Sequence(PromptTokens(prompt), 0, priority=-1))
    draw(scheduler, compute(scheduler, scheduler.plan()))
    question = Sequence(PromptTokens([*prompt, 6]), 1, priority=1)
    scheduler.add(question)
    for place in range(20):
        scheduler.add(Sequence(PromptTokens([10 + place] * 65), 1))
        draw(scheduler, compute(scheduler, scheduler.plan()))
    assert question.tokens
