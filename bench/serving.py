"""What HTTP costs: 64 clients of a server in a process of its own, on the same two cores as they are.

    python -m bench.serving --out bench/results/cpu/serving.jsonl [--rounds 3]

The model is replaced by a wait (``bench.serving_server``) where the server alone is measured: a step gives each of 64
answers a token after 8 ms, so that 8,000 tokens per second are the most there can be. Times are the best of the rounds.
A table of the last record is written beside the file.
"""

from __future__ import annotations

import asyncio
import base64
import json
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import torch

from bench.engine import row
from bench.measure import main

CLIENTS, TOKENS = 64, 250
QUESTION = "What is said, and when does the dog bark?"


@dataclass
class Reply:
    """An answer of the server.

    Args:
        seconds: until the first piece of text, and to the end.
        body: what came.
    """

    seconds: list[float] = field(default_factory=list)
    body: bytes = b""

    def events(self) -> list[dict[str, Any]]:
        """The parts of a stream.

        Raises:
            ValueError: it is not whole.
        """
        if not self.body.startswith(b"HTTP/1.1 200") or b"data: [DONE]" not in self.body:
            raise ValueError(f"not a whole stream: {self.body[:200]!r} ... {self.body[-200:]!r}")
        lines = self.body.split(b"\n")
        return [json.loads(line[6:]) for line in lines if line.startswith(b"data: {")]

    def text(self) -> str:
        choices = [choice for event in self.events() for choice in event["choices"]]
        return "".join(choice["delta"].get("content") or "" for choice in choices)

    def added(self) -> float:
        """Seconds to the first text beyond those that the engine took."""
        (timing,) = [event["afn"]["timing"] for event in self.events() if "afn" in event]
        return self.seconds[0] - timing["engine"]


class Client:
    """One connection, which asks one question after another."""

    def __init__(self, port: int):
        self.port = port
        self.reader, self.writer = None, None

    async def ask(self, **fields: Any) -> Reply:
        body = json.dumps(fields | {"stream": True, "stream_options": {"include_usage": True}}).encode()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: s\r\nContent-Length: {len(body)}\r\n\r\n"
        return await self.send(head.encode() + body, b"0\r\n\r\n")

    async def send(self, request: bytes, end: bytes) -> Reply:
        if self.writer is None:
            self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self.port, limit=1 << 20)
        reply, parts, began = Reply(), [], time.perf_counter()
        self.writer.write(request)
        while True:
            part = await self.reader.read(1 << 18)
            parts.append(part)
            if not reply.seconds and b'"content": "' in part.replace(b'"content": ""', b""):
                reply.seconds.append(time.perf_counter() - began)
            if not part or part.endswith(end):
                break
        reply.seconds.append(time.perf_counter() - began)
        reply.body = b"".join(parts)
        return reply

    async def health(self) -> float:
        """Seconds that ``/health`` takes."""
        reply = await self.send(b"GET /health HTTP/1.1\r\nHost: s\r\n\r\n", b"}")
        if not reply.body.startswith(b"HTTP/1.1 200"):
            raise ValueError(f"not healthy: {reply.body!r}")
        return reply.seconds[-1]


@contextmanager
def server(kind: str) -> Iterator[tuple[int, int]]:
    """(port, process id) of a server."""
    process = subprocess.Popen([sys.executable, "-m", "bench.serving_server", kind], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield int(process.stdout.readline()), process.pid
    finally:
        process.terminate()
        process.wait(60)


def cpu_seconds(pid: int) -> float:
    with open(f"/proc/{pid}/stat") as file:
        fields = file.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


def text_of(clients: int = 0, tokens: int = TOKENS, **more: Any) -> dict[str, Any]:
    said = f"{clients} {QUESTION}"
    return {"messages": [{"role": "user", "content": said}], "max_tokens": tokens, "ignore_eos": True} | more


async def together(port: int, clients: int, tokens: int, times: int = 1) -> tuple[list[Reply], list[float], float]:
    """(replies, seconds of /health meanwhile, seconds) of clients that ask at the same time, each so many times."""

    async def asking(number: int, client: Client) -> list[Reply]:
        return [await client.ask(**text_of(number, tokens)) for _ in range(times)]

    began = time.perf_counter()
    async with watched(port) as healths:
        replies = await asyncio.gather(*(asking(number, Client(port)) for number in range(clients)))
        seconds = time.perf_counter() - began
    return [reply for some in replies for reply in some], healths, seconds


@asynccontextmanager
async def watched(port: int) -> AsyncIterator[list[float]]:
    """Seconds that ``/health`` takes, asked again and again."""
    client, healths = Client(port), []

    async def watching() -> None:
        while True:
            healths.append(await client.health())
            await asyncio.sleep(0.02)

    watch = asyncio.ensure_future(watching())
    try:
        yield healths
    finally:
        watch.cancel()
        with suppress(asyncio.CancelledError):
            await watch


def health(healths: list[float], meanwhile: str) -> dict:
    healths = sorted(healths)
    median, last = statistics.median(healths), healths[int(0.99 * (len(healths) - 1))]
    said = f"/health while {meanwhile}, ms"
    return row(said, "median <= 20", round(1e3 * median, 2), median <= 0.020, p99=round(1e3 * last, 2))


def counted(replies: Sequence[Reply]) -> tuple[int, int]:
    """(tokens, pieces of text) of whole answers."""
    events = [event for reply in replies for event in reply.events()]
    tokens = sum(event["usage"]["completion_tokens"] for event in events if event.get("usage"))
    return tokens, sum(bool(event["choices"] and event["choices"][0]["delta"].get("content")) for event in events)


def throughput(port: int, pid: int, rounds: int) -> list[dict]:
    """Tokens per second of 64 streams, and /health meanwhile."""
    best: dict[str, Any] = {"rate": 0.0}
    asyncio.run(together(port, 8, 8))  # warms up
    for _ in range(rounds):
        cpu = cpu_seconds(pid)
        replies, healths, seconds = asyncio.run(together(port, CLIENTS, TOKENS))
        tokens, pieces = counted(replies)
        spent = cpu_seconds(pid) - cpu
        if tokens / seconds > best["rate"]:
            best = {"rate": tokens / seconds, "pieces": pieces, "tokens": tokens, "cpu": spent, "healths": healths}
    whole = best["tokens"] == CLIENTS * TOKENS
    return [
        row(
            "64 streams of 250 tokens, tokens per second",
            ">= 5000, each answer whole",
            round(best["rate"]),
            best["rate"] >= 5000 and whole,
            tokens=best["tokens"],
            pieces=best["pieces"],
            microseconds_of_cpu_per_token=round(1e6 * best["cpu"] / best["tokens"], 1),
        ),
        health(best["healths"], "64 streams are sent"),
    ]


@contextmanager
def loaded(port: int, clients: int) -> Iterator[None]:
    """Clients in a process of their own, which ask one question after another."""
    command = [sys.executable, "-c", f"from bench.serving import load; load({port}, {clients})"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True) if clients else None
    try:
        if process is not None and process.stdout is not None:
            process.stdout.readline()
        yield
    finally:
        if process is not None:
            process.kill()
            process.wait()


def load(port: int, clients: int) -> None:
    """Asks for ever."""

    async def asking(number: int, client: Client) -> None:
        at = number
        while True:
            await client.ask(**text_of(number, 64 + 7 * at % 64))
            at += 5

    async def all() -> None:
        asked = [asyncio.ensure_future(asking(number, Client(port))) for number in range(clients)]
        await asyncio.sleep(1.0)
        print("loaded", flush=True)
        await asyncio.gather(*asked)

    asyncio.run(all())


def latency(port: int, rounds: int) -> list[dict]:
    """How much later than the engine's own the first token is at a client."""

    async def asked(times: int) -> list[Reply]:
        client = Client(port)
        return [await client.ask(**text_of(at, 3 + at % 5)) for at in range(times)]

    rows = []
    for name, others in (("alone", 0), (f"beside {CLIENTS - 1} streams", CLIENTS - 1)):
        found = []
        with loaded(port, others):
            for _ in range(rounds):
                late = sorted(reply.added() for reply in asyncio.run(asked(80)))
                found.append((statistics.median(late), late[int(0.95 * len(late))]))
        median, last = min(found)
        rows.append(
            row(
                f"first token at a client after the engine's, {name}, ms",
                "median <= 3",
                round(1e3 * median, 2),
                median <= 0.003,
                p95=round(1e3 * last, 2),
            )
        )
    bursts = [asyncio.run(together(port, CLIENTS, 3))[0] for _ in range(rounds)]
    median = min(statistics.median(reply.added() for reply in burst) for burst in bursts)
    said = f"first token after the engine's, {CLIENTS} clients that ask in the same moment, ms"
    return [*rows, row(said, "measured", round(1e3 * median, 2), True)]


def recordings(port: int, clients: int = CLIENTS) -> list[dict]:
    """Questions about recordings that come at the same time, against an engine that has one at a time."""
    from afn_model.audio.decode import stream_audio
    from afn_model.audio.recording import Audio
    from afn_model.audio.source import AudioSource
    from afn_model.infer.engine import Engine
    from afn_model.infer.sampling_params import SamplingParams
    from afn_model.prompt.conversation import Turn
    from tests.model.serve.serving import wav
    from tests.tiny import tiny

    model, processor = tiny()
    files = [wav(0.3 + 0.02 * number, number) for number in range(clients)]
    engine, right = Engine(model, processor, pages=2000, deterministic=True), []
    for data in files:
        pcm = torch.cat(list(stream_audio(AudioSource("recording", data), dtype=processor.pcm_dtype)))
        batch = processor.pack([processor.prepare([Turn("user", (Audio(pcm), QUESTION))])])
        (request,) = engine.add(batch, SamplingParams(max_new_tokens=12))
        engine.run()
        right.append(request.answers[0].finish.text)

    async def asked() -> tuple[list[Reply], list[float]]:
        def parts(data: bytes) -> list[dict]:
            audio = {"type": "input_audio", "input_audio": {"data": base64.b64encode(data).decode(), "format": "wav"}}
            return [audio, {"type": "text", "text": QUESTION}]

        bodies = [{"messages": [{"role": "user", "content": parts(data)}], "max_tokens": 12} for data in files]
        async with watched(port) as healths:
            return await asyncio.gather(*(Client(port).ask(**body) for body in bodies)), healths

    replies, healths = asyncio.run(asked())
    said = [reply.text() for reply in replies]
    same = sum(one == other for one, other in zip(said, right, strict=True))
    found = row(
        f"{clients} clients with recordings, answers equal to those of the engine alone",
        "all",
        same,
        same == clients,
        different_answers=len(set(said)),
    )
    return [found, health(healths, "the tiny model answers about recordings")]


def measure(rounds: int, device: str) -> dict:
    """Measure and print; returns the record that ``main`` writes."""
    with server("stub") as (port, pid):
        rows = [*throughput(port, pid, rounds), *latency(port, rounds)]
    with server("tiny") as (port, _):
        rows += recordings(port)
    return {"benchmark": "serving", "rows": rows}


def table(record: dict) -> str:
    lines = [
        f"A server and its clients on the same two cores, {record['date'][:10]}: `python -m bench.serving`.",
        "But for the rows about recordings the model is a wait of 8 ms for each step: at most 8,000 tokens per second.",
        "",
        "| claim | bar | measured | holds |",
        "|---|---|---|---|",
    ]
    for one in record["rows"]:
        holds = "yes" if one["holds"] else "**no**"
        more = {name: value for name, value in one.items() if name not in ("claim", "bar", "value", "holds")}
        beside = ", ".join(f"{name.replace('_', ' ')} {value:,}" for name, value in more.items())
        lines.append(f"| {one['claim']} | {one['bar']} | {one['value']:,} ({beside}) | {holds} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main(__doc__, measure, rounds=3, table=table)
