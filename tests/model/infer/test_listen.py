"""Questions about what has been heard so far; that bits are those of the whole recording: test_engine.py."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from afn_model.config import RoteConfig
from afn_model.infer.engine import Engine
from afn_model.infer.listen import Listening
from afn_model.infer.sampling_params import SamplingParams
from tests.tiny import conversation, noise, tiny

PARAMS = SamplingParams(max_new_tokens=8, stop_token_ids=())


@pytest.fixture(scope="module")
def pair():
    return tiny()


def held(engine):
    return sum(window.references for window in engine.audio._windows.values())


def uploaded(model, processor, pcm, question="What is said?", system=None):
    asked = conversation(question, pcm)
    given = asked if system is None else [{"role": "system", "content": system}, *asked]
    engine = Engine(model, pages=60)
    (request,) = engine.add(processor(given), PARAMS)
    engine.run()
    return request


@pytest.mark.parametrize(("rote", "system"), [(None, "Be brief."), (RoteConfig("paper", text_step=0.5), None)])
def test_the_prompt_is_that_of_the_recording(rote, system):
    model, processor = tiny(rote=rote)
    pcm = noise(31.0, 5).astype(np.float32)
    expected = uploaded(model, processor, pcm, system=system)
    engine = Engine(model, pages=60)
    listening = Listening(engine, processor, system=system)
    listening.push(pcm)
    engine.run()
    assert engine.audio.windows_encoded == 1
    request = listening.ask("What is said?", PARAMS)
    listening.close()
    engine.run()
    assert request.prompt.ids == expected.prompt.ids
    assert request.prompt.clock == expected.prompt.clock
    assert [span.digest for span in request.prompt.windows] == [span.digest for span in expected.prompt.windows]
    assert request.answers[0].tokens == expected.answers[0].tokens
    assert engine.audio.windows_encoded == 2
    assert request.answers[0].sequence.reused >= 704
    engine.pool.check([])
    assert not held(engine)


def test_a_recording_that_ends_before_it_is_computed(pair):
    """Nobody asks, or asks and closes at once: nothing is held, and nothing is computed of what nobody holds."""
    model, processor = pair
    pcm = noise(31.0, 5).astype(np.float32)
    for asks in (False, True):
        engine = Engine(model, pages=60)
        listening = Listening(engine, processor)
        listening.push(pcm)
        request = listening.ask("What is said?", PARAMS) if asks else None
        listening.close()
        engine.run()
        assert request is None or len(request.answers[0].tokens) == 8
        engine.pool.check([])
        assert not held(engine)
        assert not engine.scheduler.making


def test_what_cannot_be_asked_yet_or_any_longer(pair):
    model, processor = pair
    engine = Engine(model, pages=60)
    listening = Listening(engine, processor)
    listening.push(torch.zeros(10))
    with pytest.raises(ValueError, match="10 samples of audio are too few for a token"):
        listening.ask("What is said?")
    whole = model.config
    model.config = replace(whole, text=replace(whole.text, max_positions=100))
    try:
        listening.push(torch.zeros(60_000))
        with pytest.raises(ValueError, match=r"\d+ tokens leave no room for an answer in a context of 100"):
            listening.ask("What is said?")
    finally:
        model.config = whole
    listening.close()
    assert not held(engine)


def test_a_recording_that_outgrows_the_pages_is_heard_on(pair):
    """Its beginning is not computed ahead any longer; only a question says that it does not fit."""
    model, processor = pair
    engine = Engine(model, pages=8)
    listening = Listening(engine, processor)
    listening.push(noise(31.0, 5).astype(np.float32))
    with pytest.raises(ValueError, match=r"needs \d+ pages of 64, and there are 8"):
        listening.ask("What is said?", PARAMS)
    listening.close()
    engine.run()
    assert not held(engine)


def test_a_recording_that_is_abandoned(pair):
    """Nothing of it is held or computed from then on, whether it has been begun or not; a question goes on."""
    model, processor = pair
    pcm = noise(61.0, 5).astype(np.float32)
    for steps in (0, 1):
        engine = Engine(model, pages=60, chunk=64)
        listening = Listening(engine, processor)
        listening.push(pcm[:480_000])
        listening.push(pcm[480_000:])
        assert listening.behind == 2
        for _ in range(steps):
            engine.step()
        listening.abandon()
        assert engine.scheduler.running() == 0
        assert not engine.early
        assert not held(engine)
        assert not engine.scheduler.making
        engine.pool.check([])
    engine = Engine(model, pages=60)
    listening = Listening(engine, processor)
    listening.push(pcm[:490_000])
    request = listening.ask("What is said?", PARAMS, prediction=[5, 6, 7])
    assert request.answers[0].draft is not None
    listening.abandon()
    engine.run()
    assert request.answers[0].tokens == uploaded(model, processor, pcm[:490_000]).answers[0].tokens
    assert not held(engine)
