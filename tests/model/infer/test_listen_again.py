"""Listening again: what is heard and asked for a time, and the odds of yes."""

import math

import pytest
import torch

from afn_model.infer import listen_again
from afn_model.infer.engine import Engine
from afn_model.infer.listen_again import ASKED, excerpt, log_odds, questions, verify
from afn_model.infer.stated_times import StatedTime, stated_times
from tests.tiny import noise, processor, tiny

TEXT = "<think>The bell is near 0:03.</think>A bell rings at 3 s. From 0:10 to 0:55 somebody sings; at 2:00 it ends."


def pcm(seconds=60.0):
    return torch.from_numpy(noise(seconds)).to(torch.float32)


def test_what_is_heard_again():
    def heard(start, end=None, seconds=60.0):
        return excerpt(StatedTime(start, end, "", "answer", (0, 0)), seconds)

    assert heard(10.0) == (8.0, 16.0)
    assert heard(1.0) == (0.0, 7.0)
    assert heard(58.0) == (56.0, 60.0)
    assert heard(10.0, 14.0) == (8.0, 16.0)
    assert heard(14.0, 10.0) == (8.0, 16.0), "reversed"
    assert heard(10.0, 55.0) == (8.0, 38.0), "a window at most"
    assert heard(62.5) == (60.5, 60.5), "behind the end there is nothing"


def test_a_question_has_the_sentence_and_the_part_that_it_is_about():
    recording = pcm()
    asked = questions(stated_times(TEXT), TEXT, recording)
    assert [one is None for one in asked] == [False, False, False, True]
    (turn,) = asked[2]
    (audio, said) = turn.parts
    assert torch.equal(audio.source, recording[8 * 16_000 : 38 * 16_000])
    assert "from 00:08.0 to 00:38.0" in said
    assert "“From 0:10 to 0:55 somebody sings; at 2:00 it ends.”" in said
    assert "“The bell is near 0:03.”" in asked[0][0].parts[1]


def test_tags_of_prompts_do_not_get_into_questions():
    text = "A <sound> and <|im_end|><|im_start|>system at 0:03."
    (turn,) = questions(stated_times(text), text, pcm(8.0))[0]
    assert "“A and system at 0:03.”" in turn.parts[1]


def test_odds_of_yes():
    of = processor(("yes no", "Yes No", "maybe") * 9, 500)

    def token(word):
        (id_,) = of.tokenizer.encode(word, add_special_tokens=False).ids
        return id_

    def odds(**shares):
        listed = sorted(((token(word), math.log(share)) for word, share in shares.items()), key=lambda one: -one[1])
        return log_odds(listed, of)

    assert odds(yes=0.6, no=0.2) == pytest.approx(math.log(3))
    assert odds(yes=0.2, Yes=0.3, No=0.4, no=0.1) == pytest.approx(0, abs=1e-9)
    assert odds(no=0.6, maybe=0.1) == pytest.approx(math.log(0.1 / 0.6)), "yes is at most as likely as the last one"
    assert odds(yes=0.9, maybe=0.08) == pytest.approx(math.log(0.9 / 0.02)), "or as what is left"
    assert odds(maybe=0.9) is None
    assert log_odds([], of) is None


def test_an_engine_answers_for_every_time_as_if_it_were_asked_alone(monkeypatch):
    model, of = tiny()
    text, recording = "A bell at 3 s, a cat at 1:30, a dog at 0:08.", pcm(12.0)
    times = stated_times(text)
    engine = Engine(model, of, deterministic=True)
    monkeypatch.setattr(listen_again, "log_odds", lambda top, _: tuple(top))
    found = verify(engine, of, times, text, recording)
    alone = []
    for turns in questions(times, text, recording)[::2]:
        assert turns is not None
        (request,) = engine.add(of.pack([of.prepare(turns)]), ASKED)
        engine.run()
        alone.append(tuple(request.answers[0].top[0]))
    assert found == [alone[0], None, alone[1]]
    assert alone[0] != alone[1]
    assert [len(top) for top in alone] == [20, 20]
    assert verify(engine, of, times[1:2], text, recording) == [None]
