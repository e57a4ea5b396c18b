"""The engine behind a thread: answers come as they grow, and end when nobody wants them."""

import asyncio

import pytest

from afn_model.infer.engine import Engine
from afn_model.infer.request import NotFinite
from afn_model.infer.sampling_params import SamplingParams
from afn_model.serve.engine_thread import Delta, EngineDied, EngineThread
from afn_model.serve.errors import ApiError
from tests.tiny import conversation, noise, tiny

LONG = SamplingParams(max_new_tokens=200, stop_token_ids=())


@pytest.fixture(scope="module")
def pair():
    return tiny()


@pytest.fixture
def thread(pair):
    model, processor = pair
    found = EngineThread(Engine(model, processor, pages=60))
    found.start()
    yield found
    found.stop()
    assert not found.alive


def batch_of(pair, question="What is said?", seconds=1.0):
    return pair[1](conversation(question, noise(seconds)))


def test_deltas_add_up_to_the_answer(pair, thread):
    model, processor = pair
    params = SamplingParams(max_new_tokens=20, stop_token_ids=(), logprobs=2, temperature=1.0, seed=1, n=2)
    alone = Engine(model, processor, pages=60)
    (expected,) = alone.add(batch_of(pair), params, keys=[0])
    alone.run()

    async def asked():
        stream = await thread.submit(lambda engine: engine.add(batch_of(pair), params, keys=[0])[0])
        return await stream.ended()

    found = asyncio.run(asked())
    for delta, answer in zip(found, expected.answers, strict=True):
        assert (delta.tokens, delta.text, delta.reason) == (answer.tokens, answer.finish.text, answer.reason)
        assert len(delta.logprobs) == len(delta.top) == 20


def test_an_answer_that_nobody_wants_frees_its_pages(pair, thread):
    async def asked():
        async with await thread.submit(lambda engine: engine.add(batch_of(pair), LONG)[0]) as stream:
            async for _ in stream:
                break
        steps = await thread.call(lambda engine: engine.steps)
        running = await thread.call(lambda engine: (engine.scheduler.running(), engine.steps))
        assert running[0] == 0
        assert running[1] <= steps + 1
        await thread.call(lambda engine: engine.pool.check([]))

    asyncio.run(asked())


def test_cancelled_while_it_is_added(pair, thread):
    async def asked():
        task = asyncio.create_task(thread.submit(lambda engine: engine.add(batch_of(pair), LONG)[0]))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await thread.call(lambda engine: None)
        assert await thread.call(lambda engine: engine.scheduler.running()) == 0

    asyncio.run(asked())


def test_errors_of_adding_are_those_of_the_caller(pair, thread):
    async def asked():
        with pytest.raises(ValueError, match="keys for 1 prompts"):
            await thread.submit(lambda engine: engine.add(batch_of(pair), LONG, keys=[1, 2])[0])

    asyncio.run(asked())
    assert thread.alive


def test_steps_that_fail_again_and_again_end_it(pair):
    model, processor = pair
    engine = Engine(model, processor, pages=60)
    thread = EngineThread(engine)

    def fails():
        raise RuntimeError("the device is gone")

    engine._step = fails
    thread.start()

    async def asked():
        stream = await thread.submit(lambda engine: engine.add(batch_of(pair), LONG)[0])
        (delta,) = [delta async for delta in stream]
        assert delta.reason == "abort"
        with pytest.raises(EngineDied):
            await thread.call(lambda engine: None)
        with pytest.raises(EngineDied):
            await thread.submit(lambda engine: engine.add(batch_of(pair), LONG)[0])

    asyncio.run(asyncio.wait_for(asked(), 30))
    assert not thread.alive
    assert isinstance(thread.error, EngineDied)


def test_what_fails_in_the_end_leaves_nobody_waiting(pair):
    thread = EngineThread(Engine(*pair, pages=60))

    def fails(_):
        raise RuntimeError("the device is gone")

    async def asked():
        thread.post(fails)
        late = asyncio.ensure_future(thread.call(lambda engine: None))
        await asyncio.sleep(0)
        thread._stopping = True
        thread.start()
        with pytest.raises(EngineDied):
            await late

    asyncio.run(asyncio.wait_for(asked(), 30))


def test_what_cannot_be_completed_is_not_the_clients_fault():
    for error, status in ((NotFinite("nan"), 500), (EngineDied(), 503), (None, 503)):
        with pytest.raises(ApiError) as told:
            Delta(0, reason="abort" if status == 503 else "error", error=error).check()
        assert told.value.status == status
    Delta(0, reason="stop").check()


def test_stopping_ends_what_runs(pair):
    model, processor = pair
    thread = EngineThread(Engine(model, processor, pages=60))
    thread.start()

    async def asked():
        stream = await thread.submit(lambda engine: engine.add(batch_of(pair), LONG)[0])
        thread.stop()
        deltas = [delta async for delta in stream]
        assert deltas[-1].reason == "abort"

    asyncio.run(asyncio.wait_for(asked(), 30))
