"""Connections that say nothing, say it too slowly or do not listen."""

import json
import resource
import socket
import time
from contextlib import contextmanager
from urllib.parse import urlsplit

import pytest

from afn_model.serve.web import allow_files, bound
from tests.model.serve.serving import running, tiny_server

GOOD = b"GET /health HTTP/1.1\r\nHost: s\r\n\r\n"


@pytest.fixture(scope="module")
def server():
    return tiny_server(header_seconds=0.5, body_seconds=0.4, write_seconds=0.3, max_connections=4)


@pytest.fixture(scope="module")
def address(server):
    with running(server, send_buffer=4096) as url:
        parts = urlsplit(url)
        yield parts.hostname, parts.port


@contextmanager
def connected(address, said=b""):
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.settimeout(30)
        client.connect(address)
        client.sendall(said)
        yield client


def rest(client, dripped=b"") -> bytes:
    """What comes until the connection ends, while one byte after another is sent."""
    found = b""
    client.settimeout(0.02 if dripped else 30)
    until = time.monotonic() + 30
    while time.monotonic() < until:
        try:
            if dripped:
                client.sendall(dripped)
            part = client.recv(1 << 16)
        except TimeoutError:
            continue
        except (ConnectionResetError, BrokenPipeError):
            return found
        if not part:
            return found
        found += part
    raise AssertionError("the connection does not end")


def test_who_says_nothing_is_not_waited_for(address):
    with connected(address) as client:
        assert rest(client) == b""


def test_a_header_that_comes_byte_by_byte_is_not_waited_for(address):
    with connected(address, b"GET /health HTTP/1.1\r\nX: ") as client:
        assert rest(client, b"x") == b""


def test_a_second_header_is_not_waited_for_either(address):
    with connected(address, GOOD + b"GET /health HTTP/1.1\r\nX: ") as client:
        assert rest(client, b"x").startswith(b"HTTP/1.1 200")


def test_a_body_that_comes_byte_by_byte_is_408(address):
    with connected(address, b"POST /v1/audio HTTP/1.1\r\nHost: s\r\nContent-Length: 10000\r\n\r\n") as client:
        said = rest(client, b"x")
    assert said.startswith(b"HTTP/1.1 408")
    assert json.loads(said[said.index(b"{") : said.rindex(b"}") + 1])["error"]["code"] == "too_slow"


def test_a_stream_that_nobody_reads_ends(server, address):
    asked = {"messages": [{"role": "user", "content": "What is said?"}], "stream": True, "n": 8, "max_tokens": 200}
    body = json.dumps(asked | {"logprobs": True, "top_logprobs": 5, "ignore_eos": True, "temperature": 1}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: s\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    with connected(address, head + body) as client:
        until = time.monotonic() + 30
        for waiting, what in ((True, "the request does not come"), (False, "held for who does not read it")):
            while bool(server.limits.requests) != waiting:
                assert time.monotonic() < until, what
                time.sleep(0.001)
        said = rest(client)
    assert said.startswith(b"HTTP/1.1 200")
    assert b"[DONE]" not in said
    assert len(said) < 200_000


def test_those_that_wait_longest_make_room(address):
    with connected(address) as first, connected(address), connected(address), connected(address):
        with connected(address, GOOD.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")) as good:
            assert rest(good).startswith(b"HTTP/1.1 200")
        began = time.monotonic()
        assert rest(first) == b""
        assert time.monotonic() - began < 0.4, "its time had not come"


def test_a_port_that_is_taken_is_said_in_a_line():
    with bound("127.0.0.1", 0) as first:
        first.listen()
        with pytest.raises(ValueError, match=r"--port \d+: Address already in use"):
            bound("127.0.0.1", first.getsockname()[1])
    with pytest.raises(ValueError, match="--port 70000"):
        bound("127.0.0.1", 70000)


def test_files_may_be_open_as_far_as_the_system_lets(monkeypatch):
    set_to = []
    monkeypatch.setattr(resource, "setrlimit", lambda _, limits: set_to.append(limits))
    for limits in ((1024, 4096), (1024, 1500), (1024, resource.RLIM_INFINITY), (4096, 4096)):
        monkeypatch.setattr(resource, "getrlimit", lambda _, limits=limits: limits)
        allow_files(2048)
    assert set_to == [(2048, 4096), (1500, 1500), (2048, resource.RLIM_INFINITY)]
