"""What is measured of a server is whole, and what is not whole is said."""

import asyncio

import pytest

from bench import serving, serving_server
from bench.serving import Reply, counted, health, recordings, table, throughput
from tests.model.serve.serving import running, tiny_server

DONE = b'HTTP/1.1 200 OK\r\n\r\ndata: {"choices": [], "usage": {"completion_tokens": 3}}\n\ndata: [DONE]\n\n'


def test_streams_are_counted_and_timed(monkeypatch):
    monkeypatch.setattr(serving, "CLIENTS", 4)
    monkeypatch.setattr(serving, "TOKENS", 6)
    monkeypatch.setattr(serving_server, "STEP", 0.001)
    server = tiny_server()
    serving_server.stubbed(server.thread.engine)
    with monkeypatch.context() as patched:
        for owner, name in ((serving_server.EngineThread, "submit"), (serving_server.Choice, "extra")):
            patched.setattr(owner, name, getattr(owner, name))  # to be as they were afterwards
        serving_server.tell_times()
        with running(server) as url:
            port = int(url.rsplit(":", 1)[1])
            rows = throughput(port, 1, 1)
            reply = asyncio.run(serving.Client(port).ask(**serving.text_of(0, 3)))
    first, healthy = rows
    assert first["tokens"] == 24
    assert 0 < first["pieces"] <= 24
    assert first["value"] > 0
    assert healthy["value"] > 0
    assert 0 < reply.added() < reply.seconds[0] < reply.seconds[1]


def test_the_same_answers_as_the_engine_alone(monkeypatch):
    with running(tiny_server(engine={"deterministic": True})) as url:
        same, healthy = recordings(int(url.rsplit(":", 1)[1]), 3)
    assert same["holds"]
    assert same["value"] == 3
    assert same["different_answers"] > 1
    assert healthy["value"] > 0


def test_what_is_cut_off_is_no_answer():
    assert counted([Reply([0.1, 0.2], DONE)]) == (3, 0)
    for body in (DONE.replace(b"data: [DONE]", b""), DONE.replace(b"200 OK", b"500 x"), b""):
        with pytest.raises(ValueError, match="not a whole stream"):
            Reply([0.1], body).events()


def test_a_bar_that_is_missed_is_in_the_table():
    rows = [health([0.001, 0.002, 0.003], "it rests"), health([0.03, 0.04], "it works")]
    assert [(one["value"], one["holds"]) for one in rows] == [(2.0, True), (35.0, False)]
    lines = table({"date": "2026-11-30T00:00", "rows": rows}).splitlines()
    assert [line.rsplit("|", 2)[1].strip() for line in lines[-2:]] == ["yes", "**no**"]
