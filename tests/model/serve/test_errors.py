"""What clients are told of what goes wrong, whatever it is."""

import asyncio

import httpx
import pytest
from fastapi import FastAPI
from starlette.requests import ClientDisconnect

from afn_model.serve.errors import GONE, add_handlers


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (KeyError("/secret/path"), 500, "internal_error"),
        (ValueError("n must be 1"), 400, None),
        (ClientDisconnect(), GONE, None),
    ],
)
def test_errors_of_any_route(error, status, code):
    app = FastAPI()
    add_handlers(app)

    @app.get("/")
    async def fails():
        raise error

    async def asked():
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
            return await client.get("/")

    reply = asyncio.run(asked())
    assert reply.status_code == status
    assert "secret" not in reply.text
    if status != GONE:
        assert reply.json()["error"]["code"] == code
