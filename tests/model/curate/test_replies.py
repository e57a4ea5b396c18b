"""Replies of use and of none."""

import pytest

from afn_model.curate.replies import check, mismatch

SCHEMA = {
    "type": "object",
    "required": ["kind", "score"],
    "additionalProperties": False,
    "properties": {
        "kind": {"enum": ["a", "b"]},
        "score": {"type": "integer", "minimum": 0, "maximum": 10},
        "names": {"type": "array", "minItems": 1, "maxItems": 2, "items": {"type": "string", "pattern": "^[a-z]+$"}},
    },
}


@pytest.mark.parametrize(
    ("value", "wrong"),
    [
        ({"kind": "a", "score": 3, "names": ["x"]}, ""),
        ([], "reply is no object"),
        ({"kind": "a"}, "reply lacks score"),
        ({"kind": "c", "score": 3}, "reply.kind is none of a, b: 'c'"),
        ({"kind": "a", "score": 3.5}, "reply.score is no integer"),
        ({"kind": "a", "score": True}, "reply.score is no integer"),
        ({"kind": "a", "score": 11}, "reply.score is out of range: 11"),
        ({"kind": "a", "score": 3, "more": 1}, "reply has more"),
        ({"kind": "a", "score": 3, "names": []}, "reply.names has 0 entries"),
        ({"kind": "a", "score": 3, "names": ["x", "Y"]}, "reply.names[1] is not like ^[a-z]+$"),
    ],
)
def test_schemas(value, wrong):
    assert mismatch(value, SCHEMA) == wrong


@pytest.mark.parametrize(("text", "wrong"), [("1e308", ""), ("1e999", "no number"), ("1" + "0" * 400, "no number")])
def test_numbers_that_are_no_float(text, wrong):
    assert wrong in check({"text": f"[{text}]"}, {"type": "array", "items": {"type": "number"}}, "")[1]


def test_a_keyword_that_nobody_checks_is_no_schema():
    with pytest.raises(ValueError, match="oneOf is not checked"):
        mismatch({}, {"oneOf": []})


@pytest.mark.parametrize(
    ("text", "data", "wrong"),
    [
        ('{"a": 1}', {"a": 1}, ""),
        ('```json\n{"a": 1}\n```', {"a": 1}, ""),
        ('<think>{"a": 2}</think>\nHere it is: {"a": 1}', {"a": 1}, ""),
        ('{"a": "half of', None, "cut off"),
        ('{"a": 1', None, "cut off"),
        ('{"a": NaN}', None, "no JSON"),
        ('{"a": 1} {"a": 2}', None, "no JSON"),
        ("a bell", None, "no JSON"),
        ("I cannot assist with that.", None, "refused"),
        ("", None, "empty"),
        ("[1]", None, "not as asked: reply is no object"),
        ('{"a": "half of \\ud800 character"}', None, "garbage"),
    ],
)
def test_json(text, data, wrong):
    assert check({"text": text}, {"type": "object"}, "") == (data, wrong)


@pytest.mark.parametrize(
    ("text", "language", "wrong"),
    [
        ("A man says: I'm sorry, I can't come today.", "en", ""),
        ("I can't help with this audio.", "en", "refused"),
        ("Sorry, but I am unable to listen to recordings.", "en", "refused"),
        ("As an AI model, I do not hear.", "en", "refused"),
        ("一个男人在说话，然后铃声响起。", "zh", ""),
        ("一个男人在说话，然后铃声响起。", "en", "another language: zh"),
        ("Un homme parle, puis une cloche sonne dans la rue.", "en", "another language: fr"),
        ("Un homme parle, puis une cloche sonne dans la rue.", "", ""),
        ("Bonjour", "en", ""),  # too short to tell
        ("A bell " + "rings in a hall and " * 3 + "then it", "en", ""),
        (" ".join(f"word{n}" for n in range(40)), "", "cut off"),
        ("\ufffd\ufffd bell", "", "garbage"),
    ],
)
def test_texts(text, language, wrong):
    assert check({"text": text}, None, language) == (None if wrong else text, wrong)


def test_what_the_endpoint_says_of_its_reply():
    assert check({"text": "A bell.", "finish": "length"}, None, "")[1] == "cut off"
    assert check({"text": "", "refused": True}, None, "")[1] == "refused"
    assert check({"text": "", "data": {"text": ""}}, {"type": "object"}, "") == ({"text": ""}, "")  # nobody speaks


def test_data_that_is_nested_too_deeply():
    data = "end"
    for _ in range(5000):
        data = [data]
    assert check({"data": data}, {"type": "array"}, "") == (None, "garbage: nested too deeply")
