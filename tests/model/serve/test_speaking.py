"""The voice behind a thread: many answers at once, each to whoever asked, and nothing left of those who go."""

import asyncio
import threading

import pytest
import torch

from afn_model.serve.errors import ApiError
from afn_model.serve.speaking import SpeechThread
from afn_model.serve.step_thread import EngineDied
from afn_model.speech.conversation import AHEAD, UNREAD
from tests.model.speech.tones import AFTER, FRAME, RATE, tone_prompt, tones
from tests.tiny import tokenizer

TOKENS = tokenizer()
LONG = TOKENS.encode("What is said? " * 300).ids


@pytest.fixture
def voice():
    found = SpeechThread(tones(TOKENS), tone_prompt, places=3)
    found.start()
    yield found
    found.stop()
    assert not found.alive
    assert (found.engine.engine.streams, found.streams) == ([], {})


async def nothing_left(voice):
    """Soon: several calls may be done between two steps, and it is the next step that frees what was stopped."""
    left = None
    for _ in range(2000):
        left = await voice.call(
            lambda answers: (list(answers.engine.streams), {**answers.open_ones}, {**voice.streams})
        )
        if left == ([], {}, {}):
            return
        await asyncio.sleep(0.001)
    raise AssertionError(f"left: {left}")


def test_each_hears_its_own_and_all_are_said_together(voice):
    async def said(text):
        ids = TOKENS.encode(text).ids
        async with voice.open() as stream:
            for token in ids:
                stream.say([token])
                await asyncio.sleep(0)
            stream.end()
            pcm = torch.cat([one async for one in stream])
        assert pcm[::FRAME].tolist() == pytest.approx([*(token / 1000 for token in ids), *[-0.5] * AFTER])

    async def run():
        await asyncio.gather(*map(said, ("What is said?", "A dog barks.", "One two three.", "déjà vu", "你好")))
        await nothing_left(voice)

    asyncio.run(run())
    assert len(voice.engine.engine.all) == 5


def test_who_goes_leaves_nothing(voice):
    async def said(after):
        async with voice.open() as stream:
            stream.say(LONG)
            count = 0
            async for _ in stream:
                if (count := count + 1) > after:
                    break
            if after == 2:
                raise KeyError("a client's error")

    async def run():
        await said(0)
        steps = await voice.call(lambda answers: answers.engine.steps)
        await nothing_left(voice)
        assert await voice.call(lambda answers: answers.engine.steps) <= steps + 1
        with pytest.raises(KeyError):
            await said(2)
        for turns in range(4):  # cancelled at every moment, before there is a place or a stream too
            tasks = [asyncio.create_task(said(10**6)) for _ in range(5)]
            for _ in range(turns):
                await asyncio.sleep(0)
            for task in tasks:
                task.cancel()
            assert all(
                isinstance(one, asyncio.CancelledError) for one in await asyncio.gather(*tasks, return_exceptions=True)
            )
        await nothing_left(voice)
        async with voice.open(), voice.open(), voice.open():  # every place is free again
            pass

    asyncio.run(asyncio.wait_for(run(), 30))


def test_a_reader_that_does_not_read_is_bounded(voice):
    async def run():
        async with voice.open() as stream:
            stream.say(LONG)
            stream.end()
            while not stream.answer.full:
                await asyncio.sleep(0.001)
            while await voice.call(lambda answers: answers.busy):  # until it waits for its reader
                await asyncio.sleep(0.001)
            assert stream.answer.unread <= UNREAD * RATE + AHEAD * FRAME
            held = await voice.call(lambda answers: answers.engine.steps)
            await asyncio.sleep(0.01)
            assert await voice.call(lambda answers: answers.engine.steps) == held  # nothing is computed for it
            assert sum([len(pcm) async for pcm in stream]) == FRAME * (len(LONG) + AFTER)

    asyncio.run(asyncio.wait_for(run(), 30))


def test_what_is_said_goes_on_while_a_speaker_is_found(voice):
    begun, spoken = threading.Event(), threading.Event()

    def prompt(pcm, rate, consent):
        begun.set()
        assert spoken.wait(5)
        return tone_prompt(pcm, rate, consent)

    async def run():
        voice.prompt = prompt
        async with voice.open() as stream:
            finding = asyncio.create_task(voice.speaker(torch.ones(2000), 1000, "Ann"))
            await asyncio.to_thread(begun.wait)
            stream.say(LONG)
            assert len(await anext(aiter(stream)))
            spoken.set()
            assert (await finding).consent == "Ann"

    asyncio.run(asyncio.wait_for(run(), 30))


def test_a_voice_that_dies_tells_all_who_wait():
    voice = SpeechThread(tones(TOKENS), tone_prompt)
    voice.start()

    async def run():
        async with voice.open() as stream:
            voice.engine.engine.broken = True
            stream.say(LONG)
            with pytest.raises(ApiError) as told:
                async for _ in stream:
                    pass
            assert told.value.code == "engine_died"
        with pytest.raises(EngineDied, match="the voice has died"):
            async with voice.open():
                pass

    asyncio.run(asyncio.wait_for(run(), 30))
    assert not voice.alive
