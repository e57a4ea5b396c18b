"""A text model's API on a free port of this machine, which answers as a test says."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class TextEndpoint:
    """Where it listens, and what it was asked: (method and path, key, body)."""

    url: str = ""
    asked: list[tuple[str, str | None, Any]] = field(default_factory=list)

    @property
    def last(self) -> Any:
        return self.asked[-1][2]


def reply(text: str) -> dict[str, Any]:
    return {"object": "chat.completion", "choices": [{"message": {"role": "assistant", "content": text}}]}


def listed() -> dict[str, Any]:
    return {"object": "list", "data": [{"id": "first"}, {"id": "second"}]}


@contextmanager
def text_endpoint(answer: Callable[[Any], Any], *, status: int = 200, location: str = "") -> Iterator[TextEndpoint]:
    """Lists two models, and answers what is posted by ``answer(body)``: an object, bytes, an iterator of bytes, the
    number of an error, or a tuple of that, one of these, and headers if need be."""
    found = TextEndpoint()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.told(None)
            self.say(200, json.dumps(listed()).encode())

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            self.told(body)
            said = answer(body)
            if isinstance(said, int):
                said = said, b""
            code, said, *headers = said if isinstance(said, tuple) else (status, said)
            self.say(code, json.dumps(said).encode() if isinstance(said, dict) else said, *headers)

        def told(self, body: Any) -> None:
            found.asked.append((f"{self.command} {self.path}", self.headers.get("Authorization"), body))

        def say(self, code: int, said: Any, headers: dict[str, str] | None = None) -> None:
            self.send_response(code)
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            if location:
                self.send_header("Location", location)
            self.end_headers()
            try:
                for block in [said] if isinstance(said, bytes) else said:
                    self.wfile.write(block)
            except OSError:  # who asked has gone
                pass

        def log_message(self, *_: Any) -> None:
            pass

    class Listening(ThreadingHTTPServer):
        request_queue_size = 128

    server = Listening(("127.0.0.1", 0), Handler)
    found.url = f"http://127.0.0.1:{server.server_port}/v1"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield found
    finally:
        server.shutdown()
        server.server_close()
        thread.join(30)
