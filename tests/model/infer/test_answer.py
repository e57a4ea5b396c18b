"""Answers to conversations: batches, order, streams and errors."""

from pathlib import Path

import pytest
import torch

from afn_model.infer.answer import BATCH_TOKENS, answer, answers
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
    for batch_size in (2, 4, 6, 100):
        for in_order in (False, True):
            assert texts(model, processor, conversations(), params, batch_size=batch_size, in_order=in_order) == alone


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


def test_answers_come_batch_by_batch(pair):
    model, processor = pair

    def places(**options) -> list[int]:
        given = {place: one.text for place, one in answers(*asking, batch_size=2, **options)}
        assert [given[i] for i in range(6)] == texts(*asking)
        return list(given)

    asking = model, processor, conversations(), SHORT

    assert places(in_order=True) == list(range(6))
    # The one without audio first, then by the seconds of all audio: 0.3, 0.7, 1.0, 0.5 + 1.1, 2.2.
    assert places() == [4, 0, 3, 1, 5, 2]


def test_files_are_ordered_by_their_headers(pair, tmp_path):
    model, processor = pair
    files = [record(tmp_path / f"{seconds}.wav", seconds) for seconds in (1.5, 0.5, 1.0)]
    for kind in (str, Path):
        content = [[{"type": "audio", "path": kind(file)}, {"type": "text", "text": "?"}] for file in files]
        talks = [[{"role": "user", "content": parts}] for parts in content]
        given = answers(model, processor, talks, SamplingParams(max_new_tokens=1), batch_size=1)
        assert [place for place, _ in given] == [1, 2, 0]


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
        found = list(answers(model, processor, talks, params, batch_size=batch_size, in_order=True))
        assert [place for place, _ in found][:n] == list(range(2 * n, 3 * n)), "what cannot be read comes first"
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


def test_batches_are_bounded_by_tokens(pair):
    model, processor = pair
    lengths = [1.0, 1.0, 10.0, 1.0, 1.0, 20.0, 4.0]
    talks = [asked("What?", noise(seconds, i)) for i, seconds in enumerate(lengths)]
    tokens = processor(talks).cu_seqlens.diff().tolist()
    params = SamplingParams(max_new_tokens=2)
    alone = [one.text for one in answer(model, processor, talks, params, batch_size=1)]

    def together(limit, **options) -> list[int]:
        found = answer(model, processor, talks, params, batch_tokens=limit, in_order=True, **options)
        assert [one.text for one in found] == alone
        return [one.together for one in found]

    ten, twenty = tokens[2], tokens[5]
    assert together(7 * twenty) == [7] * 7
    assert together(3 * ten) == [3, 3, 3, 2, 2, 1, 1]
    assert together(1) == [1] * 7
    assert max(together(7 * twenty, batch_size=2)) == 2
    twice = SamplingParams(max_new_tokens=2, n=2, temperature=1.0, seed=0)
    found = answer(model, processor, talks[:2], twice, batch_tokens=2 * tokens[0])
    assert [one.together for one in found] == [1] * 4, "each sample has keys and values of its own"


def test_half_an_hour_is_answered_alone():
    # A recording of 30 minutes has 45,000 tokens, so that two of them are never together.
    assert 45_000 < BATCH_TOKENS < 2 * 45_000
    assert BATCH_TOKENS > 8 * (3 * 60 * 25 + 1000), "eight of three minutes are"


def test_progress(pair):
    model, processor = pair
    told = []
    talks = conversations()[:3]
    answer(
        model,
        processor,
        talks,
        SamplingParams(max_new_tokens=5, stop_token_ids=()),
        batch_size=2,
        in_order=True,
        on_progress=lambda *step: told.append(step),
    )
    layers = len(model.encoder.layers) + len(model.language_model.layers)
    expected = []
    for batch in ([0, 1], [2]):
        expected += [("read", [index], 0, 1) for index in batch]
        expected += [("prefill", batch, done, layers) for done in range(layers + 1)]
        expected += [("decode", batch, done, 5) for done in range(1, 6)]
    assert told == expected
    assert not any(module._forward_hooks for module in model.modules())
