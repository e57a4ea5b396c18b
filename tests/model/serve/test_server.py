"""Keys, limits, headers and errors of every route; what an answer says of the server."""

import asyncio
import hmac
import logging
import re
from contextlib import asynccontextmanager, suppress
from types import SimpleNamespace

import httpx
import pytest
from fastapi import APIRouter
from starlette.routing import WebSocketRoute

from afn_model.serve import app
from afn_model.serve.app import HEADERS, KEY, create_app
from afn_model.serve.chat_audio import UPLOAD
from afn_model.serve.errors import ApiError
from tests.model.serve.serving import in_process, tiny_server, wav

SECRET = "what /etc/passwd says"
KEYS = ("first-key", "second-kéy")
QUESTION = {"messages": [{"role": "user", "content": "What is said?"}], "max_tokens": 4}


@pytest.fixture(scope="module")
def server():
    found = tiny_server(keys=KEYS, max_body_bytes=100_000, encode_uploads=False)
    found.thread.start()
    yield found
    found.thread.stop()


@asynccontextmanager
async def client_of(server, key=KEYS[0], extra=None):
    """A client of a server whose engine runs already."""
    made = create_app(server)
    if extra is not None:
        extra(made)
    headers = {} if key is None else {"Authorization": f"Bearer {key}".encode()}
    transport = httpx.ASGITransport(made)
    async with httpx.AsyncClient(transport=transport, base_url="http://server", headers=headers) as client:
        yield client


def paths():
    """(method, path) of every route, WebSockets as "WEBSOCKET"."""
    yield "GET", "/openapi.json"
    for router in [one.router for one in vars(app).values() if isinstance(getattr(one, "router", None), APIRouter)]:
        for route in router.routes:
            path = re.sub(r"\{[^}]*\}", "x", getattr(route, "path", ""))
            if isinstance(route, WebSocketRoute):
                yield "WEBSOCKET", path
            else:
                yield from ((method, path) for method in getattr(route, "methods", None) or ("GET",))


def is_error(reply, status, kind="invalid_request_error") -> dict:
    assert reply.status_code == status, reply.text
    assert set(reply.json()) == {"error"}
    error = reply.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == kind
    has_headers(reply)
    return error


def has_headers(reply):
    assert {name: reply.headers.get(name) for name in HEADERS} == HEADERS


async def websocket(server, path, headers):
    said = []

    async def receive():
        return {"type": "websocket.connect"}

    async def send(message):
        said.append(message)
        if message["type"] == "websocket.accept":
            raise ConnectionError

    listed = [(name.encode(), value.encode()) for name, value in headers.items()]
    names = headers.get("sec-websocket-protocol", "").split(", ")
    scope = {"type": "websocket", "path": path, "headers": listed, "subprotocols": names, "query_string": b""}
    with suppress(ConnectionError):
        await create_app(server)(scope | {"client": ("c", 1), "root_path": ""}, receive, send)
    return said[0]


def test_every_route_asks_for_a_key(server):
    async def asked():
        open_to_all = set()
        async with client_of(server, None) as client:
            for method, path in paths():
                if method == "WEBSOCKET":
                    said = await websocket(server, path, {"authorization": "Bearer third-key"})
                    assert (said["type"], said["code"]) == ("websocket.close", 1008)
                    continue
                for given in (None, "third-key", "", "first-ke", "first-keyy"):
                    headers = {} if given is None else {"Authorization": f"Bearer {given}"}
                    reply = await client.request(method, path, headers=headers)
                    if reply.status_code != 401:
                        open_to_all.add(path)
                    elif method != "HEAD":
                        assert is_error(reply, 401, "authentication_error")["code"] == "invalid_api_key"
            for hidden in ("/nowhere", "/health/", "/healthx", "/v1/%2e%2e/health", "/HEALTH"):
                assert (await client.get(hidden)).status_code in (401, 404), hidden
        return open_to_all

    found = asyncio.run(asked())
    assert "/health" in found
    assert len(asked_of := {path for _, path in paths()}) > 8, asked_of
    assert all(path in ("/", "/health") or path.startswith("/page") for path in found), found


@pytest.mark.parametrize("key", KEYS)
def test_each_key_opens(server, key):
    async def asked():
        async with client_of(server, key) as client:
            return await client.get("/v1/models")

    assert asyncio.run(asked()).status_code == 200


def test_a_browser_says_its_key_as_a_subprotocol(server):
    async def asked(key):
        headers = {"sec-websocket-protocol": f"realtime, {KEY}{key}"}
        return (await websocket(server, "/v1/realtime", headers))["type"]

    assert asyncio.run(asked(KEYS[0])) == "websocket.accept"
    assert asyncio.run(asked("third-key")) == "websocket.close"


def test_keys_are_compared_in_constant_time(server, monkeypatch):
    seen, compare = [], hmac.compare_digest
    monkeypatch.setattr(hmac, "compare_digest", lambda *both: seen.append(both) or compare(*both))
    for given in KEYS:
        seen.clear()
        server.client_of({"authorization": "Bearer " + given.encode().decode("latin-1")})
        assert [right.decode() for _, right in seen] == list(KEYS), "each key is looked at, whichever is right"
    with pytest.raises(ApiError):
        server.client_of({})


def test_a_client_sees_its_own_uploads(server):
    async def asked():
        async with client_of(server, KEYS[0]) as first, client_of(server, KEYS[1]) as second:
            id = (await first.post("/v1/audio", content=wav())).json()["id"]
            listed = [len((await client.get("/v1/audio")).json()["data"]) for client in (first, second)]
            parts = [
                {"type": "audio_url", "audio_url": {"url": UPLOAD + id}},
                {"type": "text", "text": "What is said?"},
            ]
            question = QUESTION | {"messages": [{"role": "user", "content": parts}]}
            replies = [await client.post("/v1/chat/completions", json=question) for client in (first, second)]
            gone = [await second.get(f"/v1/audio/{id}"), await second.delete(f"/v1/audio/{id}")]
            return listed, [reply.status_code for reply in replies], gone, await first.get(f"/v1/audio/{id}")

    listed, answered, gone, there = asyncio.run(asked())
    assert listed == [1, 0]
    assert answered == [200, 404]
    assert [is_error(reply, 404, "not_found_error")["code"] for reply in gone] == ["audio_not_found"] * 2
    assert there.status_code == 200


def test_bodies_are_bounded_whether_they_say_their_length_or_not(server):
    async def parts():
        for _ in range(3):
            yield b"x" * 40_000

    async def asked():
        async with client_of(server) as client:
            for path in ("/v1/audio", "/v1/chat/completions", "/tokenize"):
                said, came = [await client.post(path, content=body) for body in (b"x" * 100_001, parts())]
                assert [is_error(reply, 413)["code"] for reply in (said, came)] == ["too_large"] * 2
            odd = await client.post("/tokenize", headers={"Content-Length": "1e9"}, content=b"")
            assert is_error(odd, 413)
            assert (await client.post("/tokenize", json={"prompt": "x" * 90_000})).status_code == 200

    asyncio.run(asked())
    assert server.bodies.bytes == 0


def test_errors_are_openais(server):
    async def asked():
        async with client_of(server) as client:
            is_error(await client.get("/nowhere"), 404, "not_found_error")
            wrong = await client.put("/v1/chat/completions")
            is_error(wrong, 405)
            assert wrong.headers["allow"] == "POST"
            assert is_error(await client.post("/tokenize", content=b"{"), 400)
            other = await client.post("/v1/chat/completions", json=QUESTION | {"model": "other"})
            assert is_error(other, 404, "not_found_error")["param"] == "model"
            unknown = await client.post("/v1/chat/completions", json=QUESTION | {"colour": 1})
            assert is_error(unknown, 400)["param"] == "colour"
            for good in ("/health", "/v1/models", "/version"):
                has_headers(await client.get(good))

    asyncio.run(asked())


def test_what_nobody_expected_says_nothing_of_itself(server, caplog):
    def routes(made):
        @made.get("/odd/{what}")
        async def odd(what: str, count: int = 0) -> None:
            raise {"value": ValueError, "key": KeyError, "memory": MemoryError}[what](SECRET)

    async def asked():
        async with client_of(server, extra=routes) as client:
            assert is_error(await client.get("/odd/value"), 400)["message"] == SECRET
            assert is_error(await client.get("/odd/value?count=x"), 400)["param"] == "query.count"
            for what in ("key", "memory"):
                reply = await client.get(f"/odd/{what}")
                assert is_error(reply, 500, "server_error")["code"] == "internal_error"
                assert SECRET not in reply.text

    with caplog.at_level(logging.DEBUG):
        asyncio.run(asked())
    failures = [record.getMessage() for record in caplog.records if record.name == "afn.serve"]
    assert [re.match(r"'GET' '/odd/\w+' failed: (\w+)", one)[1] for one in failures] == ["KeyError", "MemoryError"]
    assert all("test_server.py" in one and SECRET not in one for one in failures)


@pytest.mark.parametrize("content", [False, True])
def test_prompts_are_logged_where_that_is_wanted(caplog, content):
    async def asked():
        async with in_process(tiny_server(log_content=content)) as client:
            said = {"messages": [{"role": "user", "content": "Which xylophone?"}], "max_tokens": 2}
            assert (await client.post("/v1/chat/completions", json=said)).status_code == 200
            await client.post("/v1/chat/completions", json=said | {"colour": "Which xylophone?"})

    with caplog.at_level(logging.DEBUG, "afn"):
        asyncio.run(asked())
    assert ("xylophone" in caplog.text) == content


def test_an_answer_says_what_its_bits_depend_on(server):
    server.fingerprint = "fp_0123456789ab"

    async def asked():
        async with client_of(server) as client:
            whole = (await client.post("/v1/chat/completions", json=QUESTION)).json()
            return whole["system_fingerprint"], (await client.get("/version")).json()["system_fingerprint"]

    assert asyncio.run(asked()) == ("fp_0123456789ab",) * 2


def test_pages_are_kept_when_the_server_ends():
    server, closed = tiny_server(), []
    server.thread.engine.offload = SimpleNamespace(close=lambda: closed.append(server.thread.alive))

    async def ended():
        async with in_process(server):
            assert not closed

    asyncio.run(ended())
    assert closed == [False], "by its own thread alone, while it runs"


@pytest.mark.parametrize("path", ["/health", "/nowhere", "/tokenize"])
def test_a_connection_that_breaks_is_no_error_of_the_server(server, caplog, path):
    async def receive():
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(_):
        raise RuntimeError("a state that is not HTTP's")

    scope = {"type": "http", "method": "GET", "path": path, "query_string": b"", "root_path": "", "client": ("c", 1)}
    scope["headers"] = [(b"authorization", b"Bearer " + KEYS[0].encode())]
    with caplog.at_level(logging.DEBUG, "afn.serve"):
        asyncio.run(create_app(server)(scope, receive, send))
    assert [record.getMessage() for record in caplog.records] == [f"{path!r} cannot be answered: RuntimeError"]
