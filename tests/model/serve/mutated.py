"""Requests that nobody in his right mind sends: mutated ones of ours, and those that schemathesis makes."""

from __future__ import annotations

import base64
import json
import random
import socket
import warnings
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import httpx
from hypothesis import HealthCheck, Phase, given, seed, settings

from afn_model.serve.chat_audio import UPLOAD
from bench.fuzz_mutations import NASTY, flipped, structure
from tests.model.serve.serving import wav

JSON = {"content-type": "application/json"}
SPEECH = {
    "model": ("tiny",),
    "response_format": ("json", "text", "srt", "vtt", "verbose_json"),
    "stream": ("true", "false"),
    "temperature": ("0", "0.5"),
    "language": ("en", "de"),
    "prompt": ("A dog",),
    "timestamp_granularities[]": ("segment", "word"),
    "chunking_strategy": ("auto",),
    "colour": ("red",),
}
Sent = tuple[str, str, dict[str, Any]]  # method, path, and what httpx takes beside


def generated(document: dict[str, Any], count: int, number: int) -> Iterator[Sent]:
    """About ``count`` requests for the routes of an OpenAPI document, half of them against its rules."""
    import schemathesis
    from schemathesis import GenerationMode

    schema = schemathesis.openapi.from_dict(document)
    operations = [found.ok() for found in schema.get_all_operations()]
    each, made = -(-count // (2 * len(operations))), []
    for operation in operations:
        for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
            try:
                strategy = operation.as_strategy(generation_mode=mode)

                @seed(number)
                @settings(
                    max_examples=each,
                    database=None,
                    deadline=None,
                    phases=[Phase.generate],
                    suppress_health_check=list(HealthCheck),
                )
                @given(case=strategy)
                def collect(case):
                    made.append(case)

                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    collect()
            except Exception as error:  # a route without anything to get wrong
                if "Unsatisfiable" not in type(error).__name__:
                    raise
    for case in made:
        body = case.body
        headers = {name: value for name, value in (case.headers or {}).items() if value.isascii()}
        options: dict[str, Any] = {"headers": {name: str(value) for name, value in headers.items()}}
        if isinstance(body, (dict, list, str, int, float, bool)) or body is None:
            options |= {"content": json.dumps(body).encode(), "headers": options["headers"] | JSON}
        if case.query:
            options["params"] = {name: str(value) for name, value in case.query.items()}
        yield case.method, case.formatted_path, options


def questions(rng: random.Random, id: str) -> dict[str, Any]:
    """A good request that uses many fields."""
    data = base64.b64encode(wav(0.3)).decode()
    parts = [
        {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}},
        {"type": "audio_url", "audio_url": {"url": rng.choice((UPLOAD + id, f"data:audio/wav;base64,{data}"))}},
        {"type": "text", "text": "What is said?"},
    ]
    told = {"role": "system", "content": "Be brief."}
    asked = {"messages": [told, {"role": "user", "content": parts[rng.randrange(2) :]}], "max_tokens": 4}
    fields = {
        "stream": rng.random() < 0.3,
        "temperature": 0.5,
        "seed": 3,
        "n": 2,
        "logprobs": True,
        "top_logprobs": 2,
        "stop": ["x", "yy"],
        "response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "object"}}},
        "stream_options": {"include_usage": True},
        "logit_bias": {"3": 1},
        "prediction": {"type": "content", "content": "A dog barks."},
        "priority": 1,
        "user": "somebody",
        "modalities": ["text", "audio"],
        "audio": {"voice": "default", "format": "wav"},
    }
    chosen = rng.sample(sorted(fields), rng.randrange(len(fields)))
    return asked | {name: fields[name] for name in chosen}


def own(count: int, number: int, id: str) -> Iterator[Sent]:
    """Mutations of good requests: JSON, forms and raw bodies."""
    for at in range(count):
        rng = random.Random(f"{number} {at}")
        kind = rng.choice(
            ("chat", "chat", "chat", "say", "tokenize", "bytes", "raw", "form", "speech", "path", "range")
        )
        if kind == "chat":
            body = structure(json.dumps(questions(rng, id)).encode(), False, rng)
            yield "POST", "/v1/chat/completions", {"content": body, "headers": JSON}
        elif kind == "say":
            voice = rng.choice(("default", {"audio": f"afn://sha256/{id}", "consent": "Ann"}))
            asked = {
                "input": "A dog barks.",
                "voice": voice,
                "response_format": "wav",
                "stream_format": "sse",
                "seed": 1,
            }
            yield (
                "POST",
                "/v1/audio/speech",
                {"content": structure(json.dumps(asked).encode(), False, rng), "headers": JSON},
            )
        elif kind == "tokenize":
            asked = {"prompt": "What is said?", "return_token_strs": True}
            if rng.random() < 0.5:
                asked = {"messages": questions(rng, id)["messages"]}
            yield "POST", "/tokenize", {"content": structure(json.dumps(asked).encode(), False, rng), "headers": JSON}
        elif kind == "bytes":
            body = flipped(json.dumps(questions(rng, id)).encode(), rng)
            yield "POST", "/v1/chat/completions", {"content": body, "headers": JSON}
        elif kind == "raw":
            said = rng.choice(("audio/wav", "application/json", "", "multipart/form-data", "x/y;;"))
            yield "POST", "/v1/audio", {"content": flipped(wav(0.2, at), rng), "headers": {"content-type": said}}
        elif kind == "form":
            mark = b"--edge\r\nContent-Disposition: form-data; name="
            name = rng.choice((b'"file"; filename="a.wav"', b'"file"', b'"model"', b'""', b"file", b'"file"; odd'))
            body = (mark + name + b"\r\n\r\n" + wav(0.2, at) + b"\r\n") * rng.choice((1, 1, 2, 9)) + b"--edge--\r\n"
            kinds = ("edge", "edge", "edge", "", "e" * 300, '"edge"', "\u00e9")
            boundary = f"multipart/form-data; boundary={rng.choice(kinds)}".encode("latin-1")
            path = rng.choice(("/v1/audio", "/v1/audio/transcriptions"))
            yield "POST", path, {"content": flipped(body, rng), "headers": {"content-type": boundary}}
        elif kind == "speech":
            fields = {
                name: str(rng.choice((*good, *NASTY[:40]))) for name, good in SPEECH.items() if rng.random() < 0.4
            }
            fields = {name: value.encode("utf-8", "replace") for name, value in fields.items()}
            files = {rng.choice(("file", "file", "file", "fil")): ("a.wav", wav(0.3, at % 5))}
            yield "POST", "/v1/audio/transcriptions", {"data": fields, "files": files}
        elif kind == "path":
            parts = ("v1", "audio", "content", "models", "..", "%00", "%ff", id, "x" * 3000, "%2f", "", "\u00e9")
            path = "/" + "/".join(rng.choice(parts) for _ in range(rng.randrange(1, 5)))
            yield rng.choice(("GET", "POST", "DELETE", "PUT", "OPTIONS", "HEAD", "ODD")), path, {}
        else:
            spans = ("bytes=0-", "bytes=-5", "bytes=9-3", "bytes=" + "9" * 15 + "-", "bytes=0-1,3-4", "x", "bytes=-0")
            yield "GET", f"/v1/audio/{id}/content", {"headers": {"range": rng.choice(spans)}}


def garbage(url: str, count: int, number: int) -> None:
    """Sends what is next to HTTP, each over a connection of its own, and waits for its end."""
    where = urlsplit(url)
    for at in range(count):
        rng = random.Random(f"{number} {at} garbage")
        good = b'POST /tokenize HTTP/1.1\r\nHost: s\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{"a"\r\n0\r\n\r\n'
        with socket.create_connection((where.hostname or "", where.port or 0), timeout=30) as client:
            client.sendall(flipped(good, rng))
            client.shutdown(socket.SHUT_WR)
            try:
                while client.recv(1 << 16):
                    pass
            except ConnectionError:
                pass


def findings(sent: Sent, reply: httpx.Response) -> list[str]:
    """What is wrong with an answer."""
    found, body = [], reply.text
    if reply.status_code >= 500:
        found.append("an error of the server")
    if reply.status_code >= 400 and sent[0] != "HEAD" and reply.status_code != 416:
        try:
            error = json.loads(body)["error"]
            if set(error) != {"message", "type", "param", "code"} or "\n" in error["message"]:
                found.append("not an error as OpenAI writes them")
        except (ValueError, KeyError, TypeError):
            found.append("not JSON")
        if len(body) > 4000:
            found.append("an endless error")
    elif "text/event-stream" in reply.headers.get("content-type", "") and '"internal_error"' in body:
        found.append("an error of the server in a stream")
    said = f"{sent[0]} {sent[1][:80]} {str(sent[2])[:600]} -> {reply.status_code} {body[:300]}"
    return [f"{one}: {said}" for one in found]
