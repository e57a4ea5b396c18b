"""Answers that are said while they are made, with a voice that stands in, a clock that steps move, and a real one."""

import pytest
import torch

from afn_model.infer.engine import Engine
from afn_model.infer.sampling_params import SamplingParams
from afn_model.speech.conversation import (
    AHEAD,
    AT_ONCE,
    UNREAD,
    SpeechTimes,
    SpokenTokens,
    VoiceConversation,
    pauses,
    spoken_answers,
)
from tests.model.speech.small_voice import small_voice
from tests.model.speech.tones import AFTER, FRAME, RATE, STEP, tones
from tests.tiny import conversation, noise, tiny

LONG = SamplingParams(max_new_tokens=60, stop_token_ids=())


@pytest.fixture(scope="module")
def pair():
    return tiny()


@pytest.fixture(scope="module")
def tokenizer(pair):
    return pair[1].tokenizer


def ids_of(tokenizer, text):
    return tokenizer.encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize(
    ("text", "thinking", "said"),
    [
        ("A dog barks.", False, "A dog barks."),
        ("<think>\nIs it a dog?\n</think>\nA dog.<|im_end|>", False, "\nA dog."),
        ("Is it? </think>Yes.", True, "Yes."),
        ("## **A dog** `barks`", False, " A dog barks"),
        ("1 < 2 and <thin", False, "1 < 2 and <thin"),
        ("you 你好 <sound>déjà", False, "you 你好 déjà"),
    ],
)
def test_what_is_said_of_an_answer(tokenizer, text, thinking, said):
    tokens, found = SpokenTokens(tokenizer, thinking=thinking), []
    for token in ids_of(tokenizer, text):
        found += tokens.feed([token])
    assert tokenizer.decode(found + tokens.close()) == said


@pytest.mark.parametrize("thinking", [False, True])
def test_what_may_begin_a_tag_does_not_pile_up(tokenizer, thinking):
    tokens, ids = SpokenTokens(tokenizer, thinking=thinking), ids_of(tokenizer, "<" * 300)
    waiting, said = 0, []
    for token in ids:
        said += tokens.feed([token])
        waiting = max(waiting, len(tokens._held))
    assert waiting <= len("</think>")
    assert said + tokens.close() == ([] if thinking else ids)


def test_pauses_are_tokens_that_end_a_sentence(tokenizer):
    found = pauses(tokenizer)
    assert set(ids_of(tokenizer, ".!?\n")) <= found
    assert not found & set(ids_of(tokenizer, "dog 1,"))


def test_times():
    times = SpeechTimes(RATE, asked=1.0)
    assert set(times.as_json().values()) == {None, 0.0}
    times.token(2.0)
    for now in (2.5, 2.55, 2.9, 2.95):  # 0.1 s each: the third comes 0.2 s late
        times.chunk(100, now)
    found = times.as_json()
    assert (found["after_question"], found["after_token"]) == (1.5, 0.5)
    assert found["longest_gap"] == pytest.approx(0.35)
    assert found["mean_gap"] == pytest.approx(0.15)
    assert found["stalled"] == pytest.approx(0.2)
    assert found["real_time_factor"] == pytest.approx(0.95 / 0.4)


def asked(pair, answers, params=LONG):
    """A conversation whose question has been asked."""
    model, processor = pair
    talk = VoiceConversation(Engine(model, processor, pages=60), answers)
    talk.ask(processor(conversation("What is said?", noise(1.0))), params)
    return talk


def test_the_first_sound_comes_with_the_first_token_and_the_others_follow(pair, tokenizer):
    answers, text = tones(tokenizer), []
    model, processor = pair
    talk = VoiceConversation(Engine(model, processor, pages=60), answers)
    params = SamplingParams(max_new_tokens=20, stop_token_ids=())
    answer = talk.ask(processor(conversation("What is said?", noise(1.0))), params, on_text=text.append)
    heard = []
    while talk.busy:
        heard.append(talk.step())
    assert answer.reason == "end"
    stream = answers.engine.all[0]
    assert tokenizer.decode(stream.said).strip() in "".join(text)
    assert len(torch.cat(heard)) == FRAME * (len(stream.said) + AFTER) == answer.times.samples
    found = answer.times.as_json()
    assert found["after_token"] <= STEP + 1e-9
    assert found["longest_gap"] <= STEP + 1e-9  # a step of the language model brings a step of the voice its token
    assert found["stalled"] == 0
    assert not answers.open_ones
    assert not answers.busy


def test_new_speech_ends_the_answer_within_a_step(pair, tokenizer):
    answers = tones(tokenizer)
    talk = asked(pair, answers)
    while not len(talk.step()):
        pass
    first, request = talk.answer, talk.request
    talk.stop()
    assert not talk.busy
    assert (first.reason, answers.engine.streams, answers.open_ones) == ("closed", [], {})
    assert len(talk.step()) == 0
    _, processor = pair
    second = talk.ask(processor(conversation("Which is louder?", noise(1.0, 1))), LONG)
    while not len(talk.step()):
        pass
    assert request.answers[0].reason == "abort"
    assert second.times.chunks == 1
    talk.ask(processor(conversation("What is said?", noise(1.0))), LONG)  # the third ends the second
    assert second.reason == "closed"
    talk.stop()
    talk.engine.step()
    talk.engine.pool.check([])
    assert talk.engine.scheduler.running() == 0


def test_a_slow_reader_holds_up_what_is_made(tokenizer):
    answers = tones(tokenizer)
    slow, quick = answers.open(), answers.open()
    words = ids_of(tokenizer, "A dog barks. " * 200)
    for answer in (slow, quick):
        answer.say(words, 0.0)
        answer.end(0.0)
    while answers.busy:
        for answer, pcm in answers.step():
            if answer is quick:
                quick.heard(len(pcm))
    assert (quick.done, slow.done) == (True, False)
    most = UNREAD * RATE + AHEAD * FRAME
    assert UNREAD * RATE < slow.unread <= most
    while not slow.done:
        assert slow.unread <= most + AFTER * FRAME
        assert slow.full == slow.heard(slow.unread)  # it is told when it may go on
        assert not slow.heard(0)
        assert answers.busy
        answers.step()
    assert answers.engine.all[0].said == answers.engine.all[1].said == words


def test_a_long_text_is_looked_at_a_little_at_a_time(tokenizer):
    answers, looked = tones(tokenizer), []
    silent, spoken = answers.open(), answers.open()
    feed = silent.tokens.feed
    silent.tokens.feed = lambda ids: looked.append(answers.engine.steps) or feed(ids)
    silent.say(ids_of(tokenizer, "... ") * 1000 + ids_of(tokenizer, "<think>" + "What is said? " * 500), 0.0)
    silent.end(0.0)
    spoken.say(ids_of(tokenizer, "A dog barks. " * 9), 0.0)
    spoken.end(0.0)
    while answers.busy:
        answers.step()
    assert max(looked.count(step) for step in set(looked) if step) == AT_ONCE
    assert (silent.reason, silent.given, spoken.reason) == ("end", 0, "end")
    assert spoken.times.longest_gap <= STEP + 1e-9


def test_a_watermark_is_of_each_stream_and_of_its_length(tokenizer):
    made = []

    def watermark(rate):
        made.append(count := [rate])

        def mark(pcm):
            count.append(len(pcm))
            return pcm[1:] if len(made) == 2 and made[1] is count and len(count) == 3 else pcm + 0.125

        return mark

    answers = tones(tokenizer, watermark=watermark)
    first, second = answers.open(), answers.open()
    for answer in (first, second):
        answer.say(ids_of(tokenizer, "A dog barks."), 0.0)
        answer.end(0.0)
    heard = [(answer, pcm) for _ in range(50) if answers.busy for answer, pcm in answers.step()]
    assert (first.reason, second.reason) == ("end", "error")
    assert "a watermark of 100 samples gave [99]" in str(second.error)
    assert answers.engine.streams == []
    whole = torch.cat([pcm for answer, pcm in heard if answer is first])
    assert made[0] == [RATE, *[FRAME] * (len(whole) // FRAME)]
    assert whole[0] == pytest.approx(answers.engine.all[0].said[0] / 1000 + 0.125)


@pytest.mark.parametrize("text", ["", " ... !\n" * 9, "<think>Nothing.</think>", "<|im_end|>"])
def test_text_without_sounds_is_not_said(tokenizer, text):
    answers = tones(tokenizer)
    answer = answers.open()
    answer.say(ids_of(tokenizer, text), 0.0)
    assert not answers.busy
    answer.end(0.0)
    assert answers.busy  # somebody has to be told
    answer.say(ids_of(tokenizer, "Late."), 0.0)
    assert [(one, len(pcm)) for one, pcm in answers.step()] == [(answer, 0)]
    assert (answer.reason, answer.given, answers.engine.streams) == ("end", 0, [])
    assert not answers.busy


def test_a_real_voice_says_several_and_gives_everything_back(tokenizer):
    voice = small_voice(tokenizer.get_vocab_size())
    answers = spoken_answers(voice, tokenizer, streams=3)
    frame, pool = voice.config.codec.frame, answers.engine.pool
    alone = {}
    for together in (False, True):
        heard = {}
        for number, text in enumerate(("What is said?", "A dog barks. " * 6, "One two three.")):
            answer = answers.open(seed=number)
            answer.say(ids_of(tokenizer, text), 0.0)
            answer.end(0.0)
            heard[answer] = []
            while answers.busy and not (together and number < 2):
                for one, pcm in answers.step():
                    heard[one].append(pcm)
        sounds = [torch.cat(pieces) for pieces in heard.values()]
        assert pool.used == 0
        assert all(len(pcm) == frame * answer.stream.frames for pcm, answer in zip(sounds, heard, strict=True))
        if together:
            assert all(torch.equal(pcm, alone[at]) for at, pcm in enumerate(sounds))
        alone = dict(enumerate(sounds))
    left = answers.open()
    left.say(ids_of(tokenizer, "A dog barks. " * 9), 0.0)
    answers.step()
    left.stop()
    assert pool.used == 0
    assert answers.step()[0][0] is left


def test_a_voice_for_other_tokens_is_refused(tokenizer):
    with pytest.raises(ValueError, match=r"says 9 tokens and the tokenizer has \d+: they are not made for each other"):
        spoken_answers(small_voice(9), tokenizer)
