"""Answers to conversations: batches, order, streams and errors."""

from pathlib import Path

import pytest
import torch

from afn_model.infer.answer import answer
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
    assert all(list(one.seconds) == ["load", "first_token", "total"] for one in found)
    assert all(0 < one.seconds["first_token"] < one.seconds["total"] for one in found)


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
        given = {}
        found = answer(model, processor, conversations(), SHORT, batch_size=2, on_answer=given.__setitem__, **options)
        assert [given[i] for i in range(6)] == found
        return list(given)

    assert places(in_order=True) == list(range(6))
    # The one without audio first, then by the seconds of all audio: 0.3, 0.7, 1.0, 0.5 + 1.1, 2.2.
    assert places() == [4, 0, 3, 1, 5, 2]


def test_files_are_ordered_by_their_headers(pair, tmp_path):
    model, processor = pair
    files = [record(tmp_path / f"{seconds}.wav", seconds) for seconds in (1.5, 0.5, 1.0)]
    for kind in (str, Path):
        content = [[{"type": "audio", "path": kind(file)}, {"type": "text", "text": "?"}] for file in files]
        given = {}
        talks = [[{"role": "user", "content": parts}] for parts in content]
        answer(model, processor, talks, SamplingParams(max_new_tokens=1), batch_size=1, on_answer=given.__setitem__)
        assert list(given) == [1, 2, 0]


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
    for batch_size in (0, 1.5):
        with pytest.raises(ValueError, match="batch_size must be at least 1"):
            answer(model, processor, [good], SHORT, batch_size=batch_size)


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
        ([{"role": "user", "content": "q\udcff"}], r"a message is not Unicode text: 'q\\udcff'"),
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
