"""An endpoint with OpenAI's API on a port of this machine: it answers by rules from the truth, and fails by plan.

    with RuleServer(answers_from(truth, recordings), faults=by_hash(7)) as server:
        ...  # {url: server.url, model: rules}

Which request fails depends on what is asked, never on the order of requests, so that the outcome is always the same.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import threading
import wave
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from email.parser import BytesParser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import torch

from afn_model.audio.decode import load_audio
from afn_model.curate.prompt_files import PROMPTS, prompt_file
from afn_model.curate.stand_ins.rules import RULES
from afn_model.curate.stand_ins.rules.rule_input import RuleInput
from afn_model.curate.stand_ins.truth import between, read_truth

Body = Mapping[str, Any]
BUSY = ("429", "500", "drop", "page")  # faults after which the same request is to be sent once more
USELESS = ("garbage", "half", "refusal", "empty", "language", "loop")  # replies that are of no use
_SAID = {
    "garbage": "@@## {{{ ]]] %% ~~ ^^ && ** ||| <<>> \\\\ //",
    "refusal": "I'm sorry, but I can't help with that recording.",
    "empty": "",
    "language": "Ein Mann spricht langsam, danach läutet eine Glocke und ein Hund bellt in der Ferne.",
    "loop": "the bell rings and " * 40,
}
_RATE = 16_000


class RuleServer:
    """The server, while the context lasts.

    Args:
        answer: body of a request -> text of the reply, or data where it is a transcription.
        faults: (body, how often it was sent before) -> one of ``BUSY`` and ``USELESS``, or "".
        model: name that it gives itself.
        key: that requests must have; any if "".

    Attributes:
        url: of the API.
        calls: how often each request was sent, by the hash of its body.
        answered: replies that were sent whole, those of no use too.
        paid: how often each request was answered so, by the hash of its body.
        faulted: faults that were made, by kind.
        most: requests at a time, at most.
    """

    def __init__(
        self,
        answer: Callable[[Body], Any],
        *,
        faults: Callable[[Body, int], str] = lambda body, sent: "",
        model: str = "rules",
        key: str = "",
    ):
        self.answer, self.faults, self.model, self.key = answer, faults, model, key
        self.calls, self.answered, self.most, self.now = Counter[str](), 0, 0, 0
        self.paid, self.faulted = Counter[str](), Counter[str]()
        self.lock = threading.Lock()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/v1"

    def __enter__(self) -> RuleServer:
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        served = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.say(200, json.dumps({"data": [{"id": served.model}]}).encode())

            def do_POST(self) -> None:
                raw = self.rfile.read(int(self.headers["Content-Length"]))
                if served.key and self.headers.get("Authorization") != f"Bearer {served.key}":
                    self.say(401, b'{"error": {"message": "no such key"}}')
                    return
                with served.lock:
                    served.now += 1
                    served.most = max(served.most, served.now)
                try:
                    code, said, headers = served.reply(_body(raw, self.headers.get("Content-Type") or ""))
                finally:
                    with served.lock:
                        served.now -= 1
                if not code:
                    self.close_connection = True
                    return
                with served.lock:  # before the other side can have it
                    served.answered += code == 200
                self.say(code, said, headers)

            def say(self, code: int, said: bytes, headers: Mapping[str, str] | None = None) -> None:
                self.send_response(code)
                for name, value in {"Content-Length": str(len(said)), **(headers or {})}.items():
                    self.send_header(name, value)
                with suppress(ConnectionError):  # the other side was killed
                    self.end_headers()
                    self.wfile.write(said)

            def log_message(self, *_: Any) -> None:
                pass

        return Handler

    def reply(self, body: Body) -> tuple[int, bytes, dict[str, str]]:
        """(status, what is sent, headers) of the reply to a request; status 0 hangs up."""
        name = digest_of(body)
        with self.lock:
            sent, self.calls[name] = self.calls[name], self.calls[name] + 1
        fault = self.faults(body, sent)
        with self.lock:
            self.faulted[fault] += bool(fault)
            self.paid[name] += fault not in BUSY
        if fault in ("429", "500"):
            return int(fault), b'{"error": {"message": "later"}}', {"Retry-After": "0.01"}
        if fault == "drop":
            return 0, b"", {}
        if fault == "page":
            return 200, b"<html>Bad gateway</html>", {}
        try:
            said = self.answer(body)
        except (KeyError, ValueError) as error:
            return 400, json.dumps({"error": {"message": f"no answer to this: {error}"}}).encode(), {}
        if "file" in body:  # a transcription
            return 200, json.dumps({"task": "transcribe", "model": self.model, **said}).encode(), {}
        text, finish = said if isinstance(said, str) else json.dumps(said), "stop"
        if fault == "half":
            text, finish = text[: len(text) // 2], "length"
        text = _SAID.get(fault, text)
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish}
        usage = {"prompt_tokens": len(json.dumps(body["messages"])) // 4, "completion_tokens": len(text) // 4}
        told = {"object": "chat.completion", "model": self.model, "choices": [choice], "usage": usage}
        return 200, json.dumps(told).encode(), {}


def digest_of(body: Body) -> str:
    told = {name: value.hex() if isinstance(value, bytes) else value for name, value in body.items()}
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def by_hash(every: int, kinds: tuple[str, ...] = (*BUSY, *USELESS)) -> Callable[[Body, int], str]:
    """Faults of about one request in so many. A fault of ``BUSY`` comes the first time that a request is sent; a
    useless reply each time, as that of a model without chance would. What is to repair a reply has neither."""

    def fault(body: Body, sent: int) -> str:
        number = int(digest_of(body)[:8], 16)
        repair = len(body.get("messages", ())) > 1
        known = [kind for kind in kinds if kind in BUSY] if "file" in body else kinds
        kind = "" if repair or number % every else known[number // every % len(known)]
        return "" if sent and kind in BUSY else kind

    return fault


def answers_from(truth: str, recordings: Path) -> Callable[[Body], Any]:
    """Answers by rules from the truth, as ``truth.answer`` gives them; a recording is known by its samples, wherever in
    a file of the folder they are.

    Args:
        truth: side file.
        recordings: folder of files that are named by their source ids.
    """
    known, recent, lock = dict[str, bytes](), list[str](), threading.Lock()

    def events_of(sent: bytes) -> list[dict[str, Any]]:
        with lock:
            for path in sorted(recordings.iterdir()):
                if path.stem not in known and path.stem in read_truth(truth):
                    pcm = load_audio(path, max_seconds=1e9, dtype=torch.int16)
                    known[path.stem] = pcm.numpy().astype("<i2").tobytes()
        middle = len(sent) // 4 * 2  # of samples, not of bytes
        piece = sent[max(0, middle - 8_000) : middle + 8_000]
        for name in [*reversed(recent[-8:]), *sorted(known)]:  # requests about one recording come together
            at = known[name].find(piece)
            if at >= 0 and at % 2 == 0:
                recent.append(name)
                start = (at - max(0, middle - 8_000)) / 2 / _RATE
                return between(read_truth(truth)[name], max(0.0, start), start + len(sent) / 2 / _RATE)
        raise KeyError("this recording")

    def answer(body: Body) -> Any:
        if "file" in body:
            return RULES["transcript"](RuleInput("", [events_of(samples_of(body["file"]))]))
        parts = [part for one in body["messages"] for part in _parts(one["content"])]
        text = "\n".join(part["text"] for part in parts if part["type"] == "text")
        sent = [base64.b64decode(part["input_audio"]["data"]) for part in parts if part["type"] == "input_audio"]
        return RULES[name_of(text)](RuleInput(text, [events_of(samples_of(one)) for one in sent]))

    return answer


def name_of(text: str) -> str:
    """The prompt that a text was made of.

    Raises:
        KeyError: none of this package's.
    """
    for path in sorted(PROMPTS.glob("*.txt")):
        if prompt_file(path.stem).instruction in text:
            return path.stem
    raise KeyError(f"a prompt like {text[:60]!r}")


def samples_of(file: bytes) -> bytes:
    """The samples of a wav or flac file, int16."""
    if file[:4] == b"RIFF":
        with wave.open(io.BytesIO(file)) as told:
            return told.readframes(told.getnframes())
    import soundfile

    pcm, _ = soundfile.read(io.BytesIO(file), dtype="int16")
    return np.asarray(pcm).astype("<i2").tobytes()


def _parts(content: Any) -> list[Any]:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def _body(raw: bytes, kind: str) -> dict[str, Any]:
    if not kind.startswith("multipart/"):
        return json.loads(raw)
    message = BytesParser().parsebytes(f"Content-Type: {kind}\r\n\r\n".encode() + raw)
    found: dict[str, Any] = {}
    for part in message.get_payload():
        name = part.get_param("name", header="content-disposition")  # pyright: ignore
        data = part.get_payload(decode=True)  # pyright: ignore
        found[str(name)] = data if name == "file" else data.decode()  # pyright: ignore
    return found
