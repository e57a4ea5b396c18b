"""A web server on this machine that sends parts of files, counts what it sends, and can refuse or fail."""

from __future__ import annotations

import hashlib
import re
import threading
from functools import lru_cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class RangeServer(ThreadingHTTPServer):
    """Serves ``files`` (name → content) under ``url``.

    Attributes:
        files: what there is.
        sent: bytes of bodies so far.
        asked: (method, name, Range header or None) of every request.
        ranges: whether parts are sent; else the whole file always is.
        errors: statuses that the next requests get.
        forbidden: names that get a 403.
        redirects: names that are elsewhere, and where.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, bytes] = {}
        self.sent, self.ranges = 0, True
        self.asked: list[tuple[str, str, str | None]] = []
        self.errors: list[int] = []
        self.forbidden: set[str] = set()
        self.redirects: dict[str, str] = {}
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()

    def close(self) -> None:
        self.shutdown()
        self.thread.join()
        self.server_close()

    def since(self) -> int:
        """Bytes sent since the last call; what was asked is forgotten."""
        sent, self.sent = self.sent, 0
        self.asked.clear()
        return sent


@lru_cache(maxsize=64)
def _tag(data: bytes) -> str:
    return hashlib.md5(data).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: RangeServer

    def do_GET(self):
        self._answer(True)

    def do_HEAD(self):
        self._answer(False)

    def log_message(self, *_):
        pass

    def _answer(self, whole: bool) -> None:
        server, name = self.server, self.path.lstrip("/")
        wanted = self.headers.get("Range")
        server.asked.append((self.command, name, wanted))
        status = server.errors.pop(0) if server.errors else 403 if name in server.forbidden else 200
        if name in server.redirects:
            self.send_response(302)
            self.send_header("Location", server.redirects[name])
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        data = server.files.get(name)
        if status == 200 and data is None:
            status = 404
        if status != 200:
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        assert data is not None
        size, tag = len(data), _tag(data)
        part = re.fullmatch(r"bytes=(\d*)-(\d*)", wanted or "") if server.ranges else None
        if part is not None:
            begin = int(part[1]) if part[1] else size - int(part[2])
            end = min(size, int(part[2]) + 1) if part[1] and part[2] else size
            if begin >= size:
                self.send_response(416)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            data, status = data[begin:end], 206
        self.send_response(status)
        if part is not None:
            self.send_header("Content-Range", f"bytes {begin}-{end - 1}/{size}")
        if server.ranges:
            self.send_header("Accept-Ranges", "bytes")
        self.send_header("ETag", f'"{tag}"')
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if whole:
            server.sent += len(data)
            self.wfile.write(data)
