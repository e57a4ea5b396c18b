"""Answers to conversations: batches, order, streams and errors."""

import pytest
import torch

from afn_model.infer.answer import BATCH_TOKENS, answer, answers
from afn_model.infer.engine import Engine
from afn_model.infer.sampling_params import SamplingParams
from afn_model.prompt.conversation import read_conversation
from tests.model.infer.test_generate import asked, conversations
from tests.tiny import noise, record, tiny

SHORT = SamplingParams(max_new_tokens=12)
RANDOM = SamplingParams(max_new_tokens=12, temperature=1.0, seed=3)


@pytest.fixture(scope="module")
def pair():
    return tiny()


def texts(*arguments, **options) -> list[str]:
    return [one.text for one in answer(*arguments, **options)]


def test_an_answer_is_what_generate_returns(pair):
    model, processor = pair
    found = answer(model, processor, conversations(), SHORT)
    batch = processor(conversations())
    expected = model.generate(batch, 12)
    assert [one.text for one in found] == [processor.decode(tokens) for tokens in expected]
    assert [one.answer_tokens for one in found] == [len(tokens) for tokens in expected]
    assert [one.prompt_tokens for one in found] == batch.cu_seqlens.diff().tolist()
    assert all(list(one.seconds) == ["read", "load", "first_token", "total"] for one in found)
    assert all(0 < one.seconds["first_token"] < one.seconds["total"] for one in found)
    assert all(0 < one.seconds["read"] < one.seconds["total"] for one in found)
    assert len({one.seconds["read"] for one in found}) == len({one.seconds["total"] for one in found}) == 6
    assert {one.together for one in found} == {6}


@pytest.mark.parametrize("params", [SHORT, RANDOM, SamplingParams(max_new_tokens=6, temperature=1.0, seed=3, n=3)])
def test_batches_do_not_matter(pair, params):
    model, processor = pair
    alone = texts(model, processor, conversations(), params, batch_size=1)
    assert len(alone) == 6 * params.n
    assert len(set(alone)) > 4 * params.n
    for batch_size in (2, 4, 100):
        assert texts(model, processor, conversations(), params, batch_size=batch_size) == alone


def test_random_answers(pair):
    model, processor = pair
    batch = processor(conversations())
    params = SamplingParams(max_new_tokens=12, temperature=0.8, top_p=0.9, seed=3, n=2, repetition_penalty=1.0)
    rollouts = model.sample(batch, 12, seed=3, samples=2, temperature=0.8, top_p=0.9)
    assert texts(model, processor, conversations(), params) == [processor.decode(one.answer) for one in rollouts]
    unseeded = SamplingParams(max_new_tokens=12, temperature=1.0)
    torch.manual_seed(5)
    first = texts(model, processor, conversations(), unseeded)
    assert texts(model, processor, conversations(), unseeded) != first
    torch.manual_seed(5)
    assert texts(model, processor, conversations(), unseeded) == first


def test_pieces_of_text_add_up_to_the_answers(pair):
    model, processor = pair
    for params in (SHORT, SamplingParams(max_new_tokens=12, temperature=1.0, seed=3, n=2)):
        said = []
        options = {"batch_size": 4, "on_text": lambda *piece, said=said: said.append(piece)}
        found = texts(model, processor, conversations(), params, **options)
        for place, text in enumerate(found):
            pieces = [piece for i, piece in said if i == place]
            assert "".join(pieces) == text
            assert len(pieces) > 1


def test_an_answer_comes_when_it_is_done(pair):
    model, processor = pair
    talks = conversations()
    free = answer(model, processor, talks, SamplingParams(max_new_tokens=12, stop_token_ids=()))
    assert {one.answer_tokens for one in free} == {12}
    # One at a time they come in order; together a short one does not wait for the others.
    assert [place for place, _ in answers(model, processor, talks, SHORT, batch_size=1)] == list(range(6))
    said = model.generate(processor(talks), 12, stop_token_ids=())
    stop = next(token for token in said[3] if all(token not in tokens[:6] for tokens in said[:3] + said[4:]))
    assert said[3].index(stop) < 6
    params = SamplingParams(max_new_tokens=12, stop_token_ids=(stop,))
    assert next(answers(model, processor, talks, params))[0] == 3


def test_forms_of_a_conversation(pair):
    model, processor = pair
    one = asked("What is said?", noise(0.5))
    expected = texts(model, processor, [one], SHORT)
    assert texts(model, processor, one, SHORT) == expected
    assert texts(model, processor, [read_conversation(one)], SHORT) == expected
    assert answer(model, processor, []) == []


def test_the_model_is_asked_for_after_the_first_recordings(pair, tmp_path):
    model, processor = pair
    calls = []

    def load():
        calls.append(1)
        return model

    bad = [{"role": "user", "content": [{"type": "audio", "path": "nowhere.wav"}, {"type": "text", "text": "?"}]}]
    with pytest.raises(ValueError, match=r"nowhere\.wav: no such file"):
        answer(load, processor, [bad], SHORT)
    assert not calls
    answer(load, processor, conversations()[:1], SHORT)
    assert calls == [1]


def test_errors_name_the_recording_or_the_conversation(pair, tmp_path):
    model, processor = pair
    good, long = asked("What is said?"), "What? " * 5000
    file = record(tmp_path / "talk.wav", 1.0)
    about_file = [{"role": "user", "content": [{"type": "audio", "path": file}, {"type": "text", "text": long}]}]
    for talks, problem in (
        ([good, asked(long)], "^conversation 1: .* tokens, but the model's context is 4096"),
        ([good, about_file], f"^{file}: .* tokens, but the model's context is 4096"),
        ([good, [{"role": "nobody", "content": "?"}]], "^conversation 1: role 'nobody'"),
        ([[{"role": "nobody", "content": "?"}]], "^role 'nobody'"),
    ):
        with pytest.raises(ValueError, match=problem):
            answer(model, processor, talks, SHORT)
    for name in ("batch_size", "batch_tokens"):
        for value in (0, 1.5):
            with pytest.raises(ValueError, match=f"{name} must be at least 1, got {value}"):
                answers(model, processor, [good], SHORT, **{name: value})


def test_what_is_no_conversation(pair):
    model, processor = pair
    text = {"type": "text", "text": "?"}

    def about(source, **part) -> list[dict]:
        return [{"role": "user", "content": [{"type": "audio", "audio": source, **part}, text]}]

    for talks, problem in (
        ("hi", "a conversation or a list of them is expected, got 'hi'"),
        (5, "a conversation or a list of them is expected, got 5"),
        (["hi"], "must be a record or a list of messages, got 'hi'"),
        ([None], "must be a record or a list of messages, got None"),
        ({"conversations": "x"}, "must be a record or a list of messages, got 'x'"),
        ([{"role": ["user"], "content": "?"}], r"role \['user'\] is none of"),
        (about(5), "a path, bytes, an open file or an array, got 5"),
        (about(noise(0.5), sampling_rate="16000"), "sampling_rate of a recording must be a number, got '16000'"),
        (about(noise(0.5), sampling_rate=0), "sampling_rate of a recording must be above 0, got 0"),
        (about(noise(0.5), start="0"), "start of a recording must be a number, got '0'"),
        ([{"role": "user", "content": "q\udcff"}], r"message 0 is not Unicode text: 'q\\udcff'"),
    ):
        with pytest.raises(ValueError, match=problem):
            answer(model, processor, talks, SHORT)


def test_a_prompt_as_long_as_the_context(pair):
    model, processor = pair
    good = asked("What is said?")
    whole, processor.max_positions = processor.max_positions, len(processor(good).input_ids)
    try:
        with pytest.raises(ValueError, match=r"conversation 1: .* tokens leave no room for an answer"):
            answer(model, processor, [asked("?"), good], SHORT)
    finally:
        processor.max_positions = whole


@pytest.mark.parametrize("n", [1, 2])
def test_an_error_takes_the_place_of_the_answers_it_prevents(pair, tmp_path, n):
    model, processor = pair
    params = SamplingParams(max_new_tokens=12, temperature=1.0, seed=3, n=n)
    good = conversations()
    talks = [*good[:2], [{"role": "nobody", "content": "?"}], good[3], asked("What? " * 5000), good[5]]
    expected = dict(answers(model, processor, [*good[:2], good[4], good[3], good[4], good[5]], params))
    for batch_size in (1, 2, 8):
        found = list(answers(model, processor, talks, params, batch_size=batch_size))
        by_place = dict(found)
        assert len(found) == len(by_place) == 6 * n
        for index, problem in ((2, "conversation 2: role 'nobody'"), (4, "conversation 4: ")):
            for place in range(index * n, index * n + n):
                assert isinstance(by_place[place], ValueError)
                assert str(by_place[place]).startswith(problem)
        for index in (0, 1, 3, 5):
            for place in range(index * n, index * n + n):
                assert by_place[place].text == expected[place].text


def test_how_an_answer_ended(pair):
    model, processor = pair
    (free,) = answer(model, processor, asked("What?"), SamplingParams(max_new_tokens=6, stop_token_ids=()))
    assert (free.finish, free.answer_tokens) == ("length", 6)
    (tokens,) = model.generate(processor(asked("What?")), 6, stop_token_ids=())
    (stopped,) = answer(model, processor, asked("What?"), SamplingParams(max_new_tokens=6, stop_token_ids=(tokens[3],)))
    assert (stopped.finish, stopped.answer_tokens) == ("stop", tokens.index(tokens[3]))


def test_what_is_answered_together_is_bounded_by_tokens(pair):
    model, processor = pair
    lengths = [1.0, 1.0, 10.0, 1.0, 1.0, 20.0, 4.0]
    talks = [asked("What?", noise(seconds, i)) for i, seconds in enumerate(lengths)]
    needs = [tokens + 2 for tokens in processor(talks).cu_seqlens.diff().tolist()]
    params = SamplingParams(max_new_tokens=2, stop_token_ids=())
    alone = [one.text for one in answer(model, processor, talks, params, batch_size=1)]

    def together(limit, **options) -> list[int]:
        found = answer(model, processor, talks, params, batch_tokens=limit, **options)
        assert [one.text for one in found] == alone
        return [one.together for one in found]

    assert together(sum(needs)) == [7] * 7
    assert together(sum(needs) - 1)[:6] == [6] * 6
    assert together(1) == [1] * 7, "what is longer is answered alone"
    assert max(together(sum(needs), batch_size=2)) == 2
    twice = SamplingParams(max_new_tokens=2, n=2, temperature=1.0, seed=0)
    for limit, expected in ((2 * (needs[0] + 2), 2), (2 * (needs[0] + 2) - 1, 1)):
        found = answer(model, processor, talks[:2], twice, batch_tokens=limit)
        assert found[0].together == expected, "answers to one prompt share its keys and values"


def test_half_an_hour_is_answered_alone():
    # A recording of 30 minutes has 45,000 tokens, so that two of them are never together.
    assert 45_000 < BATCH_TOKENS < 2 * 45_000
    assert BATCH_TOKENS > 8 * (3 * 60 * 25 + 1000), "eight of three minutes are"


def test_progress(pair):
    model, processor = pair
    told = []
    talks, params = conversations()[:3], SamplingParams(max_new_tokens=5, stop_token_ids=())
    answer(model, processor, talks, params, batch_size=2, on_progress=lambda *step: told.append(step))
    tokens = [len(processor(talk).input_ids) for talk in talks]
    reading = [[("read", [i], 0, 1), ("prefill", [i], 0, tokens[i])] for i in range(3)]
    read = [("prefill", [i], tokens[i], tokens[i]) for i in range(3)]
    expected = [*reading[0], *reading[1], *read[:2], *[("decode", [0, 1], done, 5) for done in range(1, 6)]]
    expected += [*reading[2], read[2], *[("decode", [2], done, 5) for done in range(1, 6)]]
    assert told == expected
    told.clear()
    engine = Engine(model, chunk=128)
    long = asked("What is said?", noise(12.0))
    answer(engine, processor, long, params, on_progress=lambda *step: told.append(step))
    tokens = len(processor(long).input_ids)
    assert [done for stage, _, done, _ in told if stage == "prefill"] == [0, 128, 256, tokens]


def test_an_engine_keeps_what_it_has_computed(pair):
    model, processor = pair
    engine, talk = Engine(model), [asked("What is said?", noise(33.0))[0]]
    first = answer(engine, processor, [talk], SHORT)[0]
    assert (first.reused, engine.audio.windows_encoded) == (0, 2)
    for question in ("And then?", "Which is louder?"):
        talk = [*talk, {"role": "assistant", "content": first.text}, *asked(question)]
        again, expected = answer(engine, processor, [talk], SHORT)[0], answer(model, processor, [talk], SHORT)[0]
        assert again.text == expected.text
        assert again.reused > 800
        assert engine.audio.windows_encoded == 2
    assert not engine.growing
    engine.pool.check([])
