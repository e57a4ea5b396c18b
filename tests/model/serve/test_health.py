"""What who watches a server asks, and clients first."""

import asyncio
import time

import openai
import pytest

import afn_kernels
from tests.model.serve.serving import in_process, running, tiny_server


def test_models_as_clients_of_openai_see_them():
    server = tiny_server(keys=("secret",))
    with running(server) as address, openai.OpenAI(base_url=f"{address}/v1", api_key="secret") as client:
        (model,) = client.models.list()
        assert (model.id, model.object, model.owned_by, model.created) == ("tiny", "model", "afn", server.started)
        assert model.max_model_len == server.processor.max_positions
        assert client.models.retrieve("tiny") == model
        with pytest.raises(openai.NotFoundError, match="there is no model 'gpt-4o' here") as found:
            client.models.retrieve("gpt-4o")
        assert (found.value.code, found.value.param) == ("model_not_found", "model")
        with pytest.raises(openai.AuthenticationError):
            client.with_options(api_key="wrong").models.list()


def test_health_needs_no_key_and_no_engine(monkeypatch):
    server = tiny_server(keys=("secret",), step_seconds=5.0)

    async def asked():
        async with in_process(server) as client:
            assert (await client.get("/health")).json() == {"status": "ok", "busy": False}
            for path in ("/metrics", "/version", "/v1/models"):
                assert (await client.get(path)).status_code == 401
            thread = server.thread
            thread.stepping_since = time.monotonic() - 4.0
            busy = await client.get("/health")
            assert (busy.status_code, busy.json()["busy"]) == (200, True)
            thread.stepping_since = time.monotonic() - 6.0
            stuck = await client.get("/health")
            assert (stuck.status_code, stuck.json()["error"]["code"]) == (503, "engine_stuck")
            thread.stepping_since = None
            await asyncio.to_thread(thread.stop)
            dead = await client.get("/health")
            assert (dead.status_code, dead.json()["error"]["code"]) == (503, "engine_died")

    asyncio.run(asked())


def test_metrics_and_version():
    server = tiny_server(keys=("secret",))

    async def asked():
        async with in_process(server, "secret") as client:
            found = await client.get("/metrics")
            assert found.headers["content-type"].startswith("text/plain; version=0.0.4")
            assert 'vllm:num_requests_running{model_name="tiny"} 0.0' in found.text
            assert (await client.get("/version")).json() == {
                "version": afn_kernels.__version__,
                "system_fingerprint": None,
            }

    asyncio.run(asked())
