"""Lines that a served model answers: what it is sent, what is tried again, and what ends a run."""

import base64
import io
import json
import threading
import wave
from collections import Counter

import numpy as np
import pytest
import soundfile

from afn_model.eval.items import Item, ItemClip
from afn_model.eval.running import endpoint
from afn_model.eval.running.answers import read_answers
from afn_model.eval.running.endpoint import EndpointWorkers, served
from afn_model.eval.running.run import run
from tests.model.eval.running.scripted import asks
from tests.model.infer.text_endpoint import reply, text_endpoint

TEXTS = [Item(f"i{n}", f"Question {n}?", (), ("dog", "cat")) for n in range(12)]


def answered(todo, out, url, **options) -> dict:
    """Item id -> its line."""
    run(todo, out, lambda _: EndpointWorkers(url, options.pop("model", "own"), waits=(0.0, 0.001), **options))
    found = read_answers(out)
    return {ask.item.id: found[ask.key] for ask in todo if ask.key in found}


def test_text_goes_as_text_and_settings_with_it(tmp_path):
    def say(body):
        said = reply(body["messages"][0]["content"].splitlines()[0][:11])
        said["choices"][0]["finish_reason"] = "length"
        return said | {"usage": {"completion_tokens": 3, "prompt_tokens": 20}, "model": "own-2026"}

    with text_endpoint(say) as there:
        found = answered(asks(TEXTS[:2]), tmp_path / "1", there.url, key="k")
        assert {id: row["answer"] for id, row in found.items()} == {"i0": "Question 0?", "i1": "Question 1?"}
        row = {name: found["i1"][name] for name in ("finish", "tokens", "prompt_tokens", "model")}
        assert row == {"finish": "length", "tokens": 3, "prompt_tokens": 20, "model": "own-2026"}
        _, key, body = sorted(there.asked, key=lambda one: str(one[2]["messages"]))[0]
        choices = "Choose the correct option from the following options:\n(A) dog\n(B) cat"
        messages = [{"role": "user", "content": f"Question 0? {choices}"}]
        assert key == "Bearer k"
        assert body == {"model": "own", "messages": messages, "max_tokens": 1024, "temperature": 0.0, "seed": 0}
        fields = {"temperature": None, "max_tokens": None, "max_completion_tokens": 9}
        found = answered(asks(TEXTS[:1]), tmp_path / "2", there.url, fields=fields, model=None)
        assert there.last == {"model": "first", "messages": messages, "max_completion_tokens": 9, "seed": 0}


def test_the_part_that_is_meant_is_sent(tmp_path):
    rng = np.random.default_rng(0)
    pcm = (3000 * rng.standard_normal(16_000)).astype(np.int16)
    soundfile.write(tmp_path / "1.wav", pcm, 16_000, subtype="PCM_16")
    stereo = np.repeat(pcm[:, None], 2, 1)
    soundfile.write(tmp_path / "2.flac", stereo, 16_000, subtype="PCM_16")
    clips = (ItemClip(str(tmp_path / "1.wav"), 0.25, 0.5), ItemClip(str(tmp_path / "2.flac")))
    item, absent = (
        Item("a", "Is <sound-2> like <sound-1>?", clips),
        Item("b", "?", (ItemClip(str(tmp_path / "no.wav")),)),
    )
    with text_endpoint(lambda body: reply("yes")) as there:
        found = answered(asks([item, absent]), tmp_path / "out", there.url)
        assert found["a"]["answer"] == "yes"
        assert "no.wav: no such file" in found["b"]["error"]["message"]
        assert len(there.asked) == 1
        texts, heard = [], []
        for part in there.last["messages"][0]["content"]:
            texts.append(part.get("text"))
            if part["type"] == "input_audio":
                assert part["input_audio"]["format"] == "wav"
                data = io.BytesIO(base64.b64decode(part["input_audio"]["data"]))
                with wave.open(data) as file:
                    assert (file.getnchannels(), file.getframerate(), file.getsampwidth()) == (1, 16_000, 2)
                    heard.append(np.frombuffer(file.readframes(10**6), np.int16))
        assert texts == ["Is ", None, " like ", None, "?"]
        assert np.array_equal(heard[0], pcm)
        assert np.array_equal(heard[1], pcm[4000:8000])
        deaf = answered(asks([item]), tmp_path / "deaf", there.url, audio=False)
        assert deaf["a"]["error"]["message"].endswith("own hears nothing; a text model needs captions")


def test_what_may_pass_is_tried_again_and_the_rest_is_an_error(tmp_path, monkeypatch):
    times, waits = Counter(), []
    script = {
        "0": [(429, {"error": "busy"}, {"Retry-After": "0.003"}), reply("late")],
        "1": [(500, {"error": "oops"}, {}), (503, b"", {}), reply("later")],
        "2": [(503, {"error": "full"}, {})] * 5,
        "3": [(400, {"error": {"message": "too\nlong"}}, {}), reply("never asked")],
        "4": [reply(None)],
        "5": [b"<html>"],
    }

    def say(body):
        number = body["messages"][0]["content"][9]
        times[number] += 1
        return script[number][times[number] - 1]

    with text_endpoint(say) as there:
        workers = EndpointWorkers(there.url, "own", waits=(0.0, 0.001))
        wait = workers.endpoint.closed.wait
        monkeypatch.setattr(workers.endpoint.closed, "wait", lambda seconds: (waits.append(seconds), wait(seconds))[1])
        todo = asks(TEXTS[:6])
        run(todo, tmp_path, lambda _: workers)
        rows = read_answers(tmp_path)
        found = [rows[ask.key] for ask in todo]
        assert [row.get("answer") for row in found] == ["late", "later", None, None, None, None]
        errors = [row["error"]["message"] for row in found[2:]]
        assert errors[:2] == ["503 Service Unavailable: full", "400 Bad Request: too long"]
        assert errors[2].startswith("there is no text in the reply")
        assert errors[3] == "the reply is no JSON object"
        assert times == {"0": 2, "1": 3, "2": 3, "3": 1, "4": 1, "5": 1}
        assert 0.003 in waits, "as long as the server says"
        assert max(waits) < 0.0031
        script["2"][3:] = [reply("now")]
        assert answered(todo[2:3], tmp_path, there.url)["i2"]["answer"] == "now"


def test_settings_that_a_server_does_not_take(tmp_path):
    def say(body):
        for name, told in (("max_tokens", "Use 'max_completion_tokens' instead."), ("temperature", "Only 1 is.")):
            if name in body:
                return 400, {"error": {"message": f"Unsupported parameter: '{name}' is not supported. {told}"}}
        return reply("yes")

    with text_endpoint(say) as there:
        found = answered(asks(TEXTS[:3]), tmp_path, there.url, together=1)
        assert [row["answer"] for row in found.values()] == ["yes"] * 3
        assert [row["without"] for row in found.values()] == [["temperature"]] * 3
        assert len(there.asked) == 5
        assert {name: value for name, value in there.last.items() if name != "messages"} == {
            **{"model": "own", "max_completion_tokens": 1024, "seed": 0}
        }


def test_so_many_requests_at_a_time(tmp_path):
    together = threading.Barrier(4, timeout=20)

    def say(body):
        together.wait()
        return reply("x")

    with text_endpoint(say) as there:
        assert len(answered(asks(TEXTS), tmp_path, there.url, together=4)) == 12


@pytest.mark.parametrize(("status", "error"), [(401, "401 Unauthorized: no"), (404, "404 Not Found: no")])
def test_what_all_lines_would_have_ends_the_run(tmp_path, status, error):
    with (
        text_endpoint(lambda body: {"error": "no"}, status=status) as there,
        pytest.raises(ValueError, match=rf"{error}; the same command goes on"),
    ):
        answered(asks(TEXTS), tmp_path, there.url, together=1)
    assert len(there.asked) == 1
    assert read_answers(tmp_path) == {}


def test_what_ends_the_run_ends_it_before_anybody_looks():
    with text_endpoint(lambda body: {"error": "no"}, status=401) as there:
        workers = EndpointWorkers(there.url, "own", together=1)
        lines = [json.dumps(ask.record()).encode() for ask in asks(TEXTS)]
        workers.send(0, list(enumerate(lines, 1)))
        workers.pool.shutdown()
        with pytest.raises(ValueError, match="401 Unauthorized: no; the same command goes on"):
            workers.receive()
    assert len(there.asked) == 1


def test_nobody_is_there(tmp_path, monkeypatch):
    monkeypatch.setattr(endpoint, "LOST", 3)
    with text_endpoint(lambda body: reply("x")) as there:
        answered(asks(TEXTS[:2]), tmp_path, there.url)
    with pytest.raises(ValueError, match=r"nobody answers.*; the same command goes on"):
        answered(asks(TEXTS), tmp_path, there.url, together=1)
    rows = read_answers(tmp_path).values()
    assert sum("answer" in row for row in rows) == 2
    assert 0 < sum("error" in row for row in rows) <= 3
    with pytest.raises(ValueError, match="nobody answers"):
        answered(asks(TEXTS), tmp_path, there.url, model=None)


def test_what_keys_call_a_served_model():
    with text_endpoint(lambda body: reply("x")) as there:
        port = there.url.split(":")[2].split("/")[0]
        assert served(there.url) == {"name": "first", "url": f"127.0.0.1:{port}/v1"}
    one = served("https://user:secret@api.example/v1/chat/completions?key=secret", "m")
    assert "secret" not in json.dumps(one)
    assert served("http://api.example/v1/", "m") == {"name": "m", "url": "api.example/v1"}
    others = [served(f"http://api.example{rest}", "m") for rest in (":81/v1", "/v2")]
    others.append(served("http://api.example/v1", "m", fields={"temperature": None}))
    assert len({json.dumps(one) for one in [served("http://api.example/v1", "m"), *others]}) == 4
