"""Any served model as what answers: lines go to an OpenAI-compatible endpoint, several at a time.

workers = EndpointWorkers("http://127.0.0.1:8000/v1", "audio-flamingo-next", folder=str(out / "questions"))
run(asks, out, lambda questions: workers)
"""

from __future__ import annotations

import base64
import queue
import urllib.parse
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

from afn_model.audio.encode import wav
from afn_model.audio.recording import Audio, load
from afn_model.checks import said
from afn_model.infer.batch_lines import ASKED, read_line
from afn_model.infer.batch_replica import Lines, Rows
from afn_model.infer.elsewhere import SECONDS, ElsewhereError, base_of, first_model, text_of
from afn_model.infer.retries import WAITS, RetryingEndpoint
from afn_model.infer.sampling_params import SamplingParams
from afn_model.prompt.conversation import Turn

OURS = (401, 404)  # no key, no such model: the next line would have the same error
LOST = 16  # lines one after another that found nobody, after which it is given up
DEFAULTS = SamplingParams()


def served(
    url: str, model: str | None = None, *, key: str | None = None, fields: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """What keys of questions call a model that somebody serves: its name, and where.

    Nobody can see a served model's weights, so that the address stands for them: host, port and path, without scheme,
    user, password and query. Another port is another model, as it may be another quantisation; a server that moves is
    asked again.

    Args:
        url: of the API.
        model: its name there; the first that is listed if None.
        key, fields: as of ``EndpointWorkers``.

    Raises:
        ElsewhereError: no name is given, and nobody says one.
    """
    model = model or first_model(url, key=key)
    found = urllib.parse.urlsplit(base_of(url))
    place = found.netloc.rpartition("@")[2] + found.path.rstrip("/")
    return {"name": model, "url": place} | ({"fields": dict(fields)} if fields else {})


class EndpointWorkers:
    """Workers of a batch whose lines are answered elsewhere.

    Requests are tried again as ``RetryingEndpoint`` does; what fails in the end is a line with an error, and settings
    that the server does not take are named under ``without``. Where a key or a model is wrong, or nobody is there for
    many lines, the run ends, and the same command goes on.

    Args:
        url: of the API, such as ``http://127.0.0.1:8000/v1``.
        model: its name there; the first that is listed, when the first line is there, if None.
        folder: what relative paths of recordings start from.
        key: ``Authorization: Bearer KEY``, if there is one.
        together: requests at a time.
        seconds: that a request may take.
        fields: of every request, in the place of what lines say; None leaves a field out: {"temperature": None}.
        audio: whether the model hears; recordings are sent as ``input_audio``, wav at 16 kHz of the part that is meant.
        waits: seconds before each further try.
    """

    count = 1

    def __init__(
        self,
        url: str,
        model: str | None = None,
        *,
        folder: str = "",
        key: str | None = None,
        together: int = 8,
        seconds: float = SECONDS,
        fields: Mapping[str, Any] | None = None,
        audio: bool = True,
        waits: tuple[float, ...] = WAITS,
    ):
        self.endpoint = RetryingEndpoint(url, key=key, seconds=seconds, waits=waits)
        self.model, self.folder, self.fields, self.audio = model, folder, dict(fields or {}), audio
        self.pool = ThreadPoolExecutor(together, "afn-endpoint")
        self.done: queue.Queue[tuple[int, dict[str, Any]] | BaseException] = queue.Queue()
        self.lost = 0
        self.failed: BaseException | None = None

    def send(self, index: int, lines: Lines) -> None:
        self.model = self.model or first_model(self.endpoint.url, key=self.endpoint.key)
        for number, raw in lines:
            self.pool.submit(self._work, number, raw)

    def receive(self) -> tuple[int, Rows]:
        rows: Rows = []
        while True:
            try:
                one = self.done.get(block=not rows and self.failed is None)
            except queue.Empty:
                break
            if isinstance(one, BaseException):
                self.failed = self.failed or one
            else:
                rows.append(one)
        if not rows and self.failed is not None:
            raise self.failed
        return 0, rows

    def close(self) -> None:
        self.endpoint.closed.set()
        self.pool.shutdown(wait=False, cancel_futures=True)

    def _work(self, number: int, raw: bytes) -> None:
        """In a thread: a line's answer, or its error, or what ends the run, after which nobody is asked."""
        if self.endpoint.closed.is_set():
            return
        try:
            self.done.put((number, self._answer(number, raw)))
        except BaseException as error:
            self.endpoint.closed.set()
            self.done.put(error)

    def _answer(self, number: int, raw: bytes) -> dict[str, Any]:
        line = read_line(raw, number)
        try:
            turns = line.request(self.folder, DEFAULTS).turns
            messages = [self._message(turn) for turn in turns]
        except ValueError as error:
            return line.error(said(error))
        body = line.fields.get("body", {}) if line.openai else line.fields
        fields = {name: body[name] for name in ASKED if name in body} | self.fields
        fields = {name: value for name, value in fields.items() if value is not None}
        try:
            reply = self.endpoint.complete(messages, fields, model=self.model)
            self.lost = 0
        except ElsewhereError as error:
            self.lost = self.lost + 1 if error.may_pass and not error.status else 0
            if error.status in OURS or self.lost >= LOST:
                raise ValueError(f"{error}; the same command goes on from there") from None
            return line.error(error.said, "elsewhere", error.status or 503)
        without = self.endpoint.without(fields)
        return {"id": line.id} | _said(reply) | ({"without": without} if without else {})

    def _message(self, turn: Turn) -> dict[str, Any]:
        if not turn.audios:
            return {"role": turn.role, "content": "".join(map(str, turn.parts))}
        if not self.audio:
            raise ValueError(f"{turn.audios[0].source}: {self.model} hears nothing; a text model needs captions")
        return {"role": turn.role, "content": [_sent(part) for part in turn.parts]}


def _sent(part: str | Audio) -> dict[str, Any]:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    data = base64.b64encode(wav(load(part, dtype=torch.int16))).decode()
    return {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}}


def _said(reply: dict[str, Any]) -> dict[str, Any]:
    """What a line of output has beside its id."""
    choice, usage = reply["choices"][0], reply.get("usage")
    usage = usage if isinstance(usage, dict) else {}
    counts = {"tokens": usage.get("completion_tokens"), "prompt_tokens": usage.get("prompt_tokens")}
    found = {"answer": text_of(reply), "finish": choice.get("finish_reason") or "stop"} | counts
    return found | {name: reply[name] for name in ("model", "system_fingerprint") if reply.get(name)}
