"""A text model elsewhere: what it is asked, and everything that it may do instead of answering."""

import itertools

import pytest

from afn_model.infer.elsewhere import ElsewhereError, complete, text_of
from tests.model.infer.text_endpoint import reply, text_endpoint

ASKED = [{"role": "user", "content": "What is it?"}]


def test_what_is_sent():
    with text_endpoint(lambda body: reply(f"{body['model']}!")) as there:
        found = complete(there.url, ASKED, fields={"temperature": 0.5, "model": "no", "messages": []}, key="k")
        assert text_of(found) == "first!"
        listed, posted = there.asked
        assert listed[:2] == ("GET /v1/models", "Bearer k")
        expected = {"model": "first", "messages": ASKED, "temperature": 0.5}
        assert posted == ("POST /v1/chat/completions", "Bearer k", expected)
        complete(f"{there.url}/chat/completions", ASKED, model="own")
        assert there.asked[2:] == [("POST /v1/chat/completions", None, {"model": "own", "messages": ASKED})]


@pytest.mark.parametrize(
    ("answer", "status", "problem"),
    [
        ({"error": {"message": "no\nroom"}}, 429, "429 Too Many Requests: no room"),
        ({"detail": "x"}, 500, "500 Internal Server Error: {"),
        (b"", 503, "503 Service Unavailable"),
        (b"<html>", 200, "the reply is no JSON object"),
        (b"[1]", 200, "the reply is no JSON object"),
        (b'{"choices": [{"message": {"content": "\\ud800"}}]}', 200, "the reply is no JSON object"),
        (b'{"choices": [{"message": {"content": "x"}}], "x": NaN}', 200, "the reply is no JSON object"),
        ({"choices": [{"message": {"content": "x"}}, "x"]}, 200, "there is no text in the reply"),
        ({"choices": [{"message": {"content": "x"}}, {"message": {"content": 1}}]}, 200, "there is no text in"),
        ({"choices": []}, 200, "there is no text in the reply"),
        ({"choices": [{"message": {"content": None}}]}, 200, "there is no text in the reply"),
    ],
)
def test_what_is_no_answer(answer, status, problem):
    with text_endpoint(lambda _: answer, status=status) as there, pytest.raises(ElsewhereError) as error:
        complete(there.url, ASKED, model="own", key="secret")
    assert problem in error.value.said
    assert there.url not in error.value.said
    assert str(error.value).startswith(there.url)
    assert "secret" not in str(error.value)


def test_what_a_second_try_may_change():
    script = [(429, b"", {"Retry-After": "7"}), (503, b"", {"Retry-After": "tomorrow"}), (400, b"", {}), b"<html>"]
    found = []
    with text_endpoint(lambda _: script[len(found)]) as there:
        for _ in script:
            with pytest.raises(ElsewhereError) as error:
                complete(there.url, ASKED, model="own")
            found.append((error.value.status, error.value.after, error.value.may_pass))
    assert found == [(429, 7.0, True), (503, 0.0, True), (400, 0.0, False), (0, 0.0, False)]
    for url, passes in ((there.url, True), ("http://[", False), ("ftp://x", False)):
        with pytest.raises(ElsewhereError) as error:
            complete(url, ASKED, model="own")
        assert (error.value.status, error.value.may_pass) == (0, passes)


def test_the_key_goes_nowhere_else():
    with (
        text_endpoint(lambda _: reply("caught")) as other,
        text_endpoint(lambda _: b"", status=302, location=f"{other.url}/chat/completions") as there,
        pytest.raises(ElsewhereError, match="302 Found"),
    ):
        complete(there.url, ASKED, model="own", key="secret")
    assert other.asked == []


def test_an_answer_without_end(monkeypatch):
    with text_endpoint(lambda _: itertools.repeat(b" " * 1000)) as there:
        with pytest.raises(ElsewhereError, match="no answer in time"):
            complete(there.url, ASKED, model="own", seconds=0.02)
        monkeypatch.setattr("afn_model.infer.elsewhere.MOST", 100_000)
        with pytest.raises(ElsewhereError, match="more than 100,000 bytes"):
            complete(there.url, ASKED, model="own")


def test_nobody_is_there():
    with text_endpoint(lambda _: b"") as there:
        pass
    with pytest.raises(ElsewhereError, match="nobody answers"):
        complete(there.url, ASKED, model="own")
    with pytest.raises(ElsewhereError, match="begins with http"):
        complete("file:///etc/passwd", ASKED, model="own")
