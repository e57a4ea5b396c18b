"""An engine that answers the lines of a batch."""

import base64
import json
import os
import sys
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from unittest import mock

import pytest

from afn_model.infer import batch_replica
from afn_model.infer.answer import answer
from afn_model.infer.batch_replica import RayReplicas, Replica
from afn_model.infer.engine import Engine
from afn_model.infer.sampling_params import SamplingParams
from tests.tiny import record, tiny

SHORT = SamplingParams(max_new_tokens=6)


@pytest.fixture(scope="module")
def pair():
    return tiny()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recordings")
    for seed, seconds in enumerate((31.0, 1.5)):
        record(folder / f"{seed}.flac", seconds, seed)
    return folder


def replica(pair, folder, **options) -> Replica:
    model, processor = pair
    return Replica(lambda: Engine(model, processor), processor, folder=str(folder), defaults=SHORT, **options)


def row(name: str, question: str, file: str = "1.flac", **fields) -> dict:
    said = {"from": "human", "value": f"<sound>\n{question}"}
    return {"id": name, "sound": file, "conversations": [said], **fields}


def answered(of: Replica, rows: list[dict]) -> list[dict]:
    """The lines that answer others, in their order."""
    lines = [(number, json.dumps(row).encode()) for number, row in enumerate(rows)]
    found = dict(of.work(lines))
    while len(found) < len(rows):
        found |= dict(of.work([]))
    of.close()
    assert not of.work([])
    return [found[number] for number in range(len(rows))]


def test_a_recording_is_read_and_heard_once(pair, folder, monkeypatch):
    read = []
    monkeypatch.setattr(
        batch_replica, "load", lambda audio, load=batch_replica.load, **o: read.append(1) or load(audio, **o)
    )
    data = base64.b64encode((folder / "0.flac").read_bytes()).decode()
    part = {"type": "input_audio", "input_audio": {"data": data, "format": "flac"}}
    body = {"messages": [{"role": "user", "content": [part, {"type": "text", "text": "Who?"}]}]}
    inline = {"custom_id": "x", "method": "POST", "url": "/v1/chat/completions", "body": body}
    of = replica(pair, folder)
    questions = ["What is said?", "Who?", "When does the dog bark?"]
    found = answered(of, [*(row(question, question, "0.flac") for question in questions), inline])
    assert of.engine is not None
    assert (of.engine.audio.windows_encoded, len(read)) == (2, 2), "once as a file, once as bytes"
    talks = [
        [{"role": "user", "content": [{"type": "audio", "path": f"{folder}/0.flac"}, {"type": "text", "text": q}]}]
        for q in questions
    ]
    model, processor = pair
    expected = [one.text for one in answer(model, processor, talks, SHORT)]
    assert [one["answer"] for one in found[:3]] == expected
    assert found[3]["response"]["body"]["choices"][0]["message"]["content"] == expected[1]
    usage = found[3]["response"]["body"]["usage"]
    details = usage["prompt_tokens_details"]
    assert (details["audio_tokens"], details["text_tokens"]) == (775, usage["prompt_tokens"] - 775)
    cached = [details["cached_tokens"], *(one["cached_tokens"] for one in found[:3])]
    assert sorted(cached) == [0, 768, 768, 768], "of those that come together the shortest goes first"
    assert len({one["answer"] for one in found[:3]}) > 1


def test_the_assistants_last_message_goes_on(pair, folder):
    def line(name, *messages):
        body = {"messages": [{"role": "user", "content": "Who?"}, *messages], "max_tokens": 2}
        return {"custom_id": name, "method": "POST", "url": "/v1/chat/completions", "body": body}

    rows = [line("a"), line("b", {"role": "assistant", "content": "A dog"})]
    plain, begun = [one["response"]["body"]["usage"]["prompt_tokens"] for one in answered(replica(pair, folder), rows)]
    assert begun == plain + len(pair[1].tokenizer.encode("A dog", add_special_tokens=False).ids)


def test_an_answer_is_a_function_of_line_and_id(pair, folder):
    hot = {"temperature": 1.0, "seed": 3, "max_tokens": 5}
    rows = [
        row("a", "What is said?", **hot),
        row("b", "What is said?", **hot),
        row("n", "Who?", **hot, n=3),
        row("greedy", "Who?"),
        row("long", "Who?", max_tokens=9),
        row("likeliest", "Who?", logprobs=True, top_logprobs=2),
        row("expected", "Who?", prediction={"type": "content", "content": "A dog barks at 3.2 s."}),
        row("form", "Who?", response_format={"type": "json_schema", "json_schema": {"schema": {"enum": ["yes"]}}}),
    ]
    found = {one["id"]: one for one in answered(replica(pair, folder), rows)}
    again = answered(replica(pair, folder, together=2), rows[::-1])
    for one in again:
        first = found[one["id"]]
        assert [one.get(key) for key in ("answer", "finish", "tokens")] == [
            first.get(key) for key in ("answer", "finish", "tokens")
        ]
        assert one.get("answers") == first.get("answers")
    assert found["a"]["answer"] != found["b"]["answer"], "their ids differ, and nothing else"
    assert len({one["answer"] for one in found["n"]["answers"]}) > 1
    assert [found[name]["tokens"] for name in ("a", "greedy", "long")] == [5, 6, 9]
    assert found["greedy"]["answer"] == found["likeliest"]["answer"] == found["expected"]["answer"]
    assert found["long"]["answer"].startswith(found["greedy"]["answer"][:-1])
    assert (found["form"]["answer"], found["form"]["finish"]) == ('"yes"', "stop")
    for entry in found["likeliest"]["logprobs"]:
        first, second = entry["top_logprobs"]
        assert entry["token"] == first["token"], "the model's penalty is in these scores as well"
        assert entry["logprob"] == first["logprob"] > second["logprob"]
    assert len(found["likeliest"]["logprobs"]) == 6
    loud = answered(replica(pair, folder, system="Be loud."), [row("greedy", "Who?")])[0]
    assert loud["prompt_tokens"] > 0
    assert loud["prompt_tokens"] != found["greedy"]["prompt_tokens"]


def test_errors_are_lines(pair, folder):
    model, processor = pair
    wide = {"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "nothing"}}}}
    rows = [
        row("there", "Who?"),
        row("gone", "Who?", "gone.flac"),
        row("gone too", "Who?", "gone.flac"),
        row("form", "Who?", **wide),
        row("long", "Who? " * 5000),
        {"id": "shape", "messages": "?"},
        row("much", "Who?", max_tokens=4000),
    ]
    of = replica(pair, folder)
    of.make = lambda: Engine(model, processor, pages=8)
    found = answered(of, rows)
    assert found[0]["finish"] == "length"
    for one, problem in zip(
        found[1:],
        ("gone.flac: no such file",) * 2
        + ("cannot be compiled", "the model's context is", "messages must be a list", "and there are 8"),
        strict=True,
    ):
        assert problem in one["error"]["message"]
    assert of.engine is not None
    assert not of.engine.growing
    assert of.engine.pool.used == 0
    assert not any(window.references for window in of.engine.audio._windows.values())


def test_without_ray_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ValueError, match=r"--replicas needs Ray: pip install 'afn-kernels\[cluster\]'"):
        RayReplicas(print, 2, gpu=None)


def made(folder: Path, stack: ExitStack) -> Replica:
    return replica(tiny(), folder)


@pytest.mark.slow
def test_replicas_of_ray_answer_alike(pair, folder):
    rows = [row(f"{seed}", "What is said?", temperature=1.0, max_tokens=5) for seed in range(6)]
    expected, found = answered(replica(pair, folder), rows), {}
    with mock.patch.dict(os.environ):  # which Ray changes
        pytest.importorskip("ray", reason="Ray is in no test environment: pip install 'afn-kernels[cluster]'")
        workers = RayReplicas(partial(made, folder), 2, gpu=False)
        try:
            for index in range(2):
                workers.send(index, [(n, json.dumps(rows[n]).encode()) for n in range(index, 6, 2)])
            while len(found) < 6:
                index, done = workers.receive()
                found |= dict(done)
                workers.send(index, [])
        finally:
            workers.close()
    assert [found[n]["answer"] for n in range(6)] == [one["answer"] for one in expected]
