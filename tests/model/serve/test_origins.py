"""What a browser sends for pages of others is refused where no key is asked for."""

import asyncio

import httpx
import pytest
from starlette.datastructures import Headers

from afn_model.serve.app import create_app
from afn_model.serve.errors import ApiError
from afn_model.serve.origins import check_origin
from tests.model.serve.serving import tiny_server


@pytest.mark.parametrize(
    ("host", "origin"),
    [
        ("127.0.0.1:8000", None),
        ("localhost:8000", "http://localhost:8000"),
        ("[::1]:8000", "http://[::1]:8000"),
        ("machine", None),
        ("machine.local:8000", None),
        ("10.0.0.7:8000", "http://10.0.0.7:8000"),
        ("10.0.0.7", None),
        ("[::1", None),
        ("", None),
    ],
)
def test_its_own_page_and_programs(host, origin):
    check_origin(Headers({"host": host} | ({} if origin is None else {"origin": origin})))


@pytest.mark.parametrize(
    ("host", "origin", "code"),
    [
        ("127.0.0.1:8000", "https://example.org", "other_origin"),
        ("127.0.0.1:8000", "null", "other_origin"),
        ("127.0.0.1:8000", "http://127.0.0.1:8001", "other_origin"),
        ("rebound.example.org:8000", None, "other_host"),
        ("rebound.example.org:8000", "http://rebound.example.org:8000", "other_host"),
        ("127.0.0.1.example.org", None, "other_host"),
        ("Rebound.Example.Org.", None, "other_host"),
    ],
)
def test_pages_of_others(host, origin, code):
    with pytest.raises(ApiError) as error:
        check_origin(Headers({"host": host} | ({} if origin is None else {"origin": origin})))
    assert (error.value.status, error.value.code) == (403, code)


def test_with_a_key_they_may():
    async def asked(server, path, **headers):
        transport = httpx.ASGITransport(create_app(server), raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://api.example.org") as client:
            return (await client.get(path, headers=headers)).status_code

    keyless, keyed = tiny_server(), tiny_server(keys=("k",))
    assert asyncio.run(asked(keyless, "/v1/audio")) == 403
    assert asyncio.run(asked(keyless, "/health")) == 503, "who watches asks by any name; the engine does not run"
    assert asyncio.run(asked(keyed, "/v1/audio", authorization="Bearer k", origin="https://example.org")) == 200
