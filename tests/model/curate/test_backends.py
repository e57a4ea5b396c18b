"""What is behind annotators: what an endpoint is sent, what a callable is given, how a plan names them."""

import base64
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from afn_model.audio.decode import load_audio
from afn_model.curate.annotators import annotator_of, annotators_of
from afn_model.curate.plan import Plan
from afn_model.curate.stage import NotReady
from afn_model.curate.stand_ins.server import RuleServer, samples_of
from tests.model.curate.test_annotators import annotator, request
from tests.tiny import noise


def test_recordings_are_sent_as_the_reader_cuts_them(tmp_path):
    (tmp_path / "recordings").mkdir()
    soundfile.write(tmp_path / "recordings" / "x.flac", noise(3.0, rate=44_100), 44_100)
    bodies = []

    def answer(body):
        bodies.append(body)
        return (
            {"text": "hello", "words": [{"word": " hello", "start": 0.25, "end": 0.5}]} if "file" in body else "Noise."
        )

    heard = [{"role": "user", "content": [{"audio": {"path": "recordings/x.flac", "start": 0.5, "end": 1.75}}]}]
    with RuleServer(answer, key="k") as server, pytest.MonkeyPatch.context() as patch:
        patch.setenv("A_KEY", "k")
        for api in ("chat", "transcriptions"):
            asked = replace(request(language="en"), messages=heard)
            (found,) = annotator(server, tmp_path, api=api, key_env="A_KEY", model=api)([asked])
            assert not found.error
        assert found.data == {"text": "hello", "language": "", "words": [{"word": "hello", "start": 0.25, "end": 0.5}]}
        (lost,) = annotator(server, tmp_path, key_env="A_KEY")(
            [replace(asked, messages=_at(heard, "recordings/y.flac"))]
        )
        assert "recordings/y.flac" in lost.error
        assert str(tmp_path) not in lost.error
        assert not lost.retryable
    want = load_audio(tmp_path / "recordings/x.flac", start=0.5, end=1.75, dtype=torch.int16).numpy().tobytes()
    sent = bodies[0]["messages"][0]["content"][0]["input_audio"]
    assert sent["format"] == "wav"
    assert samples_of(base64.b64decode(sent["data"])) == want
    assert samples_of(bodies[1]["file"]) == want
    assert bodies[1]["response_format"] == "verbose_json"
    assert bodies[1]["timestamp_granularities[]"] == "word"


def _at(messages, path):
    return [{"role": "user", "content": [{"audio": {**messages[0]["content"][0]["audio"], "path": path}}]}]


@pytest.mark.parametrize(
    ("told", "error"),
    [
        ({"call": "nowhere:f"}, "no module:function"),
        ({"model": "m"}, "expected call: module:function, or url"),
        ({"url": "ftp://x"}, "begins with http"),
        ({"url": "http://x", "api": "images"}, "api is chat or transcriptions"),
        ({"url": "http://x", "key_env": "NO_SUCH_VARIABLE_HERE"}, "NO_SUCH_VARIABLE_HERE"),
        ({"url": "http://x", "max_in_fligth": 1}, "unknown field max_in_fligth"),
        ({"url": "http://x", "max_in_flight": 0}, "max_in_flight must be"),
    ],
)
def test_a_wrong_plan_is_named(tmp_path, told, error):
    with pytest.raises(NotReady, match=f"annotator a: .*{error}"):
        annotator_of("a", told, tmp_path, "0")


def echo(requests, *, word="heard"):
    return [OSError("busy") if "1" in one.messages[0]["content"][0]["text"] else {"word": word} for one in requests]


def test_a_callable_of_a_plan(tmp_path):
    plan = Plan("p", (), annotators={"a": {"call": f"{__name__}:echo", "options": {"word": "told"}, "batch": 2}})
    found = annotators_of(plan, tmp_path, "0")
    assert list(found) == ["a"]
    assert not (tmp_path / "cache").exists()
    found["a"].waits = ()
    good, bad, last = found["a"]([request(n, schema={"type": "object"}) for n in range(3)])
    assert good.data == last.data == {"word": "told"}
    assert good.model == f"{__name__}:echo"
    assert bad.error == "OSError: busy"
    assert bad.retryable
    assert Path(tmp_path / "cache" / "a" / "0.sqlite").exists()
    with pytest.raises(KeyError):
        found["b"]


def test_the_model_is_asked_for_once_where_the_plan_has_none(tmp_path):
    with RuleServer(lambda body: "A bell rings.", model="served") as server:
        ask = annotator(server, tmp_path, model=None)
        (found,) = ask([request()])
        assert ask.model == {"id": "served", "revision": ""}
        assert found.id == request().result_id(ask.model)


def test_pictures_are_sent(tmp_path):
    np.zeros(4, np.uint8).tofile(tmp_path / "a.png")
    bodies = []
    with RuleServer(lambda body: bodies.append(body) or "A dog runs.") as server:
        asked = replace(request(), messages=[{"role": "user", "content": [{"image": {"path": "a.png", "id": "0"}}]}])
        annotator(server, tmp_path)([asked])
    assert bodies[0]["messages"][0]["content"][0]["image_url"] == {"url": "data:image/png;base64,AAAAAA=="}
