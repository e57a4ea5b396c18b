"""Several servers behind one address; with Ray Serve two of them answer, and see the same uploads."""

import asyncio
import os
import sys
from argparse import Namespace
from types import ModuleType
from unittest.mock import patch

import pytest

from afn_model.serve import replicas


def test_what_is_missing_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.setattr(replicas, "find_spec", lambda _: None)
    with pytest.raises(ValueError, match=r'pip install "ray\[serve\]"'):
        replicas.serve_replicas(Namespace(quiet=True), 2, host="127.0.0.1", port=1, requests=4)


def test_each_makes_its_own(monkeypatch):
    made = ModuleType("made")
    made.application = lambda args: [args.model]  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "made", made)
    args = Namespace(model="m")
    first, second = (replicas.make("made:application", args) for _ in range(2))
    assert first == second == ["m"]
    assert first is not second


@pytest.mark.slow
@patch.dict(os.environ)  # Ray sets some of its own
def test_two_by_ray_serve(tmp_path):
    pytest.importorskip("ray.serve", reason="Ray Serve is not installed")
    import httpx
    import ray
    from ray import serve

    from tests.model.serve.serving import wav

    ray.init(num_cpus=3, include_dashboard=False, log_to_driver=False)
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": 8199})
        args = Namespace(folder=str(tmp_path))
        serve.run(replicas.deployment(args, 2, requests=8, build="tests.model.serve.serving:application"))

        async def asked():
            async with httpx.AsyncClient(base_url="http://127.0.0.1:8199", timeout=60) as client:
                id = (await client.post("/v1/audio", content=wav(1.0))).json()["id"]
                parts = [
                    {"type": "audio_url", "audio_url": {"url": f"afn://sha256/{id}"}},
                    {"type": "text", "text": "?"},
                ]
                body = {"messages": [{"role": "user", "content": parts}], "max_completion_tokens": 4}
                found = [await client.post("/v1/chat/completions", json=body) for _ in range(12)]
                return [(one.status_code, one.json()["choices"][0]["message"]["content"]) for one in found]

        answers = asyncio.run(asked())
        assert {status for status, _ in answers} == {200}
        assert len({text for _, text in answers}) == 1
    finally:
        serve.shutdown()
        ray.shutdown()
