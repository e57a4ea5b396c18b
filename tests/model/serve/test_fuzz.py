"""Mutated requests to all routes: no error of the server, nobody else harmed, nothing left behind."""

import base64
import gc
import os
import time
from dataclasses import replace

import httpx
import pytest

from afn_model.serve.speaking import SpeechThread
from tests.model.serve.mutated import findings, garbage, generated, own
from tests.model.serve.serving import running, tiny_server, wav
from tests.model.speech.tones import tone_prompt, tones
from tests.tiny import tiny

AUDIO = base64.b64encode(wav(0.3, 7)).decode()
PARTS = [{"type": "input_audio", "input_audio": {"data": AUDIO, "format": "wav"}}, {"type": "text", "text": "What?"}]
GOOD = {"messages": [{"role": "user", "content": PARTS}], "max_tokens": 6}
GROWN = 100 << 20  # bytes of memory that 1,000 requests may leave: caches of one server fill up, a leak goes on


@pytest.fixture(scope="module")
def server():
    voice = SpeechThread(tones(tiny()[1].tokenizer, 16_000), tone_prompt)
    limits = {"max_body_bytes": 4 << 20, "max_new_tokens": 4, "upload_bytes": 4 << 20}
    found = tiny_server(voice=voice, encode_uploads=False, **limits)
    model = found.thread.engine.model  # a short context, as answers may be as long as it is
    model.config = replace(model.config, text=replace(model.config.text, max_positions=200))
    return found


@pytest.fixture(scope="module")
def url(server):
    with running(server) as found:
        yield found


def resident() -> int:
    gc.collect()
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def held(server) -> tuple[int, int, int, int]:
    """Requests, bytes of bodies, recordings that are being decoded, and answers that are being said."""
    return server.limits.requests, server.bodies.bytes, server.intake.waiting, len(server.voice.streams)


def fuzzed(server, url, count, number, *, schema) -> dict[int, int]:
    """Sends so many requests; how many had which status."""
    found, statuses = [], {}
    with httpx.Client(base_url=url, timeout=30) as client:
        id = client.post("/v1/audio", content=wav(0.3, 8)).json()["id"]

        def answer() -> list:
            return client.post("/v1/chat/completions", json=GOOD).json()["choices"]

        right, document = answer(), client.get("/openapi.json").json()
        several = list(generated(document, count // 2, number)) if schema else []
        several += own(count - len(several), number, id)
        for at, sent in enumerate(several):
            reply = client.request(sent[0], sent[1], **sent[2])
            statuses[reply.status_code] = statuses.get(reply.status_code, 0) + 1
            found += findings(sent, reply)
            if at % 25 == 0:
                assert answer() == right, f"after {sent}"
        garbage(url, count // 20, number)
        assert answer() == right
    assert not found, "\n".join(found)
    until = time.monotonic() + 10  # connections of the garbage are being closed
    while any(held(server)) and time.monotonic() < until:
        time.sleep(0.01)
    assert held(server) == (0, 0, 0, 0)
    engine = server.thread.engine
    with engine.lock:
        assert not engine.scheduler.running()
        engine.pool.check()
    assert server.thread.alive
    assert server.voice.alive
    return statuses


def test_requests_of_strangers(server, url):
    statuses = fuzzed(server, url, 100, 1, schema=False)
    assert statuses[200] > 5
    assert statuses[400] > 20


@pytest.mark.slow
def test_hundreds_of_requests_of_strangers(server, url):
    """AFN_FUZZ=1000 in the environment asks for more of them."""
    count = int(os.environ.get("AFN_FUZZ", 300))
    fuzzed(server, url, 100, 2, schema=True)
    before = resident()
    statuses = fuzzed(server, url, count, 3, schema=True)
    assert sum(statuses.values()) >= count
    assert resident() - before < GROWN
