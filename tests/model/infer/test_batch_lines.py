"""Lines of a batch: what they ask, and the lines that answer them."""

import base64
import json
import math

import pytest

from afn_model.infer import batch_lines
from afn_model.infer.batch_lines import BatchLine, Said, Usage, key_of, read_line, recordings
from afn_model.infer.sampling_params import SamplingParams
from afn_model.prompt.conversation import read_conversation

DATA = base64.b64encode(b"samples").decode()
HEARD = {"type": "input_audio", "input_audio": {"data": DATA, "format": "wav"}}
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}
USAGE = Usage(40, 25, 0)


def said(*parts) -> list[dict]:
    return [{"role": "user", "content": [*parts, {"type": "text", "text": "What is said?"}]}]


def asked(messages=None, **fields) -> dict:
    body = {"model": "afn", "messages": said() if messages is None else messages, **fields}
    return {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": body}


def line(fields: dict, number: int = 7) -> BatchLine:
    return read_line(json.dumps(fields).encode(), number)


def request(fields: dict, folder: str = "talks", **defaults):
    return line(fields).request(folder, SamplingParams(**defaults))


def test_forms_of_a_recording():
    url = {"type": "audio_url", "audio_url": {"url": f"data:audio/wav;base64,{DATA}"}}
    for part in (HEARD, url):
        (turn,) = request(asked(said(part))).turns
        assert ([audio.source for audio in turn.audios], turn.text) == ([b"samples"], "<sound>What is said?")
        assert recordings([turn, turn]) == recordings([turn])
    asked_of = {"conversations": [{"from": "human", "value": "<sound>\nWhat is said?"}], "sound": "one.wav"}
    ours = {"messages": [{"role": "user", "content": "<sound>What is said?"}], "audios": [{"path": "one.wav"}]}
    for record in (asked_of, ours):
        answer = {"role": "assistant", "content": "Hello.", "from": "gpt", "value": "Hello."}
        name = "messages" if "messages" in record else "conversations"
        for fields in (record, record | {name: [*record[name], answer], "task": "asr", "duration": 3.0}):
            (turn,) = request(fields).turns
            assert ([audio.source for audio in turn.audios], turn.text) == (["talks/one.wav"], "<sound>What is said?")
    messages = [{"role": "developer", "content": "Be brief."}, *said()]
    assert [turn.role for turn in request(asked(messages)).turns] == ["system", "user"]


def test_settings_of_a_line():
    given = {"temperature": 0.5, "top_p": 0.9, "max_tokens": 9, "seed": 4, "n": 2, "stop": ["x"], "logprobs": True}
    given |= {"top_logprobs": 3, "logit_bias": {"12": -1.0}, "presence_penalty": 0.5, "top_k": None}
    expected = SamplingParams(
        temperature=0.5,
        top_p=0.9,
        max_new_tokens=9,
        seed=4,
        n=2,
        stop=("x",),
        logprobs=3,
        logit_bias={12: -1.0},
        presence_penalty=0.5,
        min_p=0.1,
    )
    record = {"id": 3, "messages": [{"role": "user", "content": "What?"}]}
    for fields in (asked(**given), record | given):
        assert request(fields, min_p=0.1, max_new_tokens=5).params == expected
    assert request(record, max_new_tokens=5).params == SamplingParams(max_new_tokens=5, seed=0)
    assert request(asked(logprobs=True)).params.logprobs == 0
    for form, grammar in (
        ({"type": "json_schema", "json_schema": {"name": "x", "strict": True, "schema": SCHEMA}}, SCHEMA),
        ({"type": "json_object"}, {"type": "object"}),
        ({"type": "text"}, None),
    ):
        assert request(asked(response_format=form)).params.grammar == grammar
    for content in ("Hello you.", [{"type": "text", "text": "Hello "}, {"type": "text", "text": "you."}]):
        assert request(asked(prediction={"type": "content", "content": content})).prediction == "Hello you."


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        (asked(temprature=1.0), "unknown field body.temprature"),
        (asked() | {"priority": 1}, "unknown field priority"),
        ({"id": 1, "messages": said(), "splt": 1}, "unknown field splt"),
        (asked([{"role": "user", "content": "?", "name": "x"}]), "unknown field message 0: name"),
        (asked(said(HEARD | {"start": 1})), "unknown field message 0: start"),
        (asked(said({"type": "audio", "path": "/etc/passwd"})), "a part's type must be text, input_audio or audio_url"),
        (asked(said({"type": "image_url", "image_url": {}})), "a part's type must be text, input_audio or audio_url"),
        (asked(said({"type": "audio_url", "audio_url": {"url": "https://x.org/a.wav"}})), "nothing is fetched"),
        (asked(said({"type": "audio_url", "audio_url": {"url": "file:///a.wav"}})), "nothing is fetched or opened"),
        (asked(said({"type": "input_audio", "input_audio": {"data": "?"}})), "input_audio.data is not base64"),
        ({"sound": "https://x.org/a.wav", "messages": [{"role": "user", "content": "<sound>"}]}, "from the web"),
        (asked() | {"method": "GET"}, "method must be 'POST', got 'GET'"),
        (asked() | {"url": "/v1/embeddings"}, "url must be '/v1/chat/completions'"),
        (asked() | {"body": []}, "body must be an object"),
        (asked(stream=True), "a batch does not stream"),
        (asked(temperature="hot"), "temperature must be a number, got 'hot'"),
        (asked(top_p=2), "out of range: top_p=2"),
        (asked(max_tokens=3, max_completion_tokens=4), "another value of the same setting is 3"),
        (asked(top_logprobs=2), "true for top_logprobs"),
        (asked(n=2), "would be the same at temperature 0"),
        (asked(response_format={"type": "xml"}), "text, json_object or json_schema"),
        (asked(prediction="Hello"), "prediction must be"),
        (asked([]), "the conversation has no messages"),
        (asked([{"role": "tool", "content": "?"}]), "role 'tool' is none of"),
        ({"messages": [{"role": "assistant", "content": "Hello."}]}, "nothing is asked"),
        ({"id": "x"}, "a record needs either 'messages' or 'conversations'"),
        ({"id": [1], "messages": said()}, r"id must be text, got \[1\]"),
        ({"custom_id": "", "body": {}}, "custom_id must be text, got ''"),
    ],
)
def test_what_cannot_be_answered(fields, problem):
    with pytest.raises(ValueError, match=problem):
        request(fields)


def test_no_line_reads_standard_input():
    record = {"sound": "-", "messages": [{"role": "user", "content": "<sound>"}]}
    with pytest.raises(ValueError, match="-: no line is about standard input"):
        request(record, folder="")


def test_what_is_no_json():
    for raw, openai in ((b'{"id": 1', False), (b'{"custom_id": "a", ', True), (b"[]", False), (b"\xff", False)):
        found = read_line(raw, 4)
        assert (found.id, found.openai, found.number) == (None, openai, 4)
        with pytest.raises(ValueError, match=r"not JSON|a record is an object"):
            found.request("", SamplingParams())


@pytest.mark.parametrize("fields", [asked(), {"id": "a"}, {"id": 5}, {}, {"custom_id": 3}, {"id": "line-4"}])
def test_a_line_is_known_by_what_answers_it(fields):
    of, turns = line(fields), read_conversation([{"role": "user", "content": "?"}])
    rows = [of.error("no")]
    if of.id is not None:
        asks = type("Asks", (), {"turns": turns, "model": "m"})
        rows += [of.answer(asks, [Said("x", "stop", 2)] * n, USAGE) for n in (1, 2)]
        twice = of.error("no", "duplicate_id")
        assert key_of(twice) == "line 7" != of.key
    assert {key_of(json.loads(json.dumps(row))) for row in rows} == {of.key}
    assert line(fields, 8).key == of.key or of.id in (None, "line-7")
    assert all(json.dumps(row).startswith('{"id": ') for row in rows)


def test_ids_decide_random_numbers():
    assert line(asked(), 3).random_key == line(asked(temperature=1), 9).random_key
    assert line(asked()).random_key != line(asked() | {"custom_id": "b"}).random_key


def test_lines_of_output_are_openais():
    row = line(asked()).answer(
        request(asked()), [Said("Hi", "stop", 2, [{"token": "Hi"}]), Said("Ho", "length", 3)], USAGE
    )
    body = row["response"].pop("body")
    assert row.pop("response") == {"status_code": 200, "request_id": "line-7"}
    assert row == {"id": "line-7", "custom_id": "a", "error": None}
    assert (body["object"], body["model"]) == ("chat.completion", "afn")
    assert body["usage"] == {
        "prompt_tokens": 40,
        "completion_tokens": 5,
        "total_tokens": 45,
        "prompt_tokens_details": {"audio_tokens": 25, "text_tokens": 15, "cached_tokens": 0},
    }
    assert [choice["message"]["content"] for choice in body["choices"]] == ["Hi", "Ho"]
    assert [choice["finish_reason"] for choice in body["choices"]] == ["stop", "length"]
    assert [choice["logprobs"] for choice in body["choices"]] == [{"content": [{"token": "Hi"}]}, None]
    wrong = line(asked()).error("why")
    assert wrong["response"]["status_code"] == 400
    assert wrong["response"]["body"]["error"]["message"] == wrong["error"]["message"] == "why"
    assert [key_of(row) for row in ({}, {"id": 1}, {"id": 1, "text": "x"}, {"id": 1, "response": "x"})] == [None] * 4


def test_a_stop_that_is_no_number_is_no_other_value():
    with pytest.raises(ValueError, match=r"^stop must be text"):
        batch_lines.asked({"stop": math.nan}, SamplingParams())
