"""What is behind an annotator: a Python callable, or chat completions or transcriptions of an endpoint."""

from __future__ import annotations

import base64
import mimetypes
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import torch

from afn_model.audio.decode import load_audio
from afn_model.audio.encode import flac, wav
from afn_model.checks import is_number, named, number, said, shown, whole
from afn_model.curate.requests import AnnotationRequest, parts_of
from afn_model.curate.stage import NotReady
from afn_model.infer.elsewhere import PATH, ElsewhereError, base_of, first_model, post, post_file

# {"text", "model", "tokens_in", "tokens_out", "seconds", "finish"}, and "data" or "refused" where there are some
Reply = dict[str, Any]
SECONDS = 120.0
FATAL = (401, 403, 404)  # no key, no such model: every other request would have the same error
TRANSCRIPTIONS = "/audio/transcriptions"


class CallError(Exception):
    """No reply came.

    Args:
        said: what is wrong.
        retryable: another try may have a reply.
        after: seconds that the endpoint asks to wait.
        status: of the HTTP response; 0 where there was none.
        fatal: every other request would have the same error.
    """

    def __init__(self, said: str, *, retryable: bool = False, after: float = 0.0, status: int = 0, fatal: bool = False):
        super().__init__(said)
        self.said, self.retryable, self.after, self.status, self.fatal = said, retryable, after, status, fatal


class Backend(Protocol):
    """What is asked; ``batch`` requests in a call."""

    batch: int

    def model(self) -> dict[str, str]: ...

    def ask(self, requests: Sequence[AnnotationRequest]) -> Sequence[Reply | CallError]: ...


class CallableBackend:
    """A Python callable: list of requests -> for each a text, a dict or list that is its data, or an exception. Paths
    in requests are absolute. What it raises is the error of all; time-outs and errors of the system may pass.

    Args:
        function: the callable.
        name, revision: of the model.
        out: folder of the run.
        batch: requests in a call.
    """

    def __init__(
        self, function: Callable[[list[AnnotationRequest]], Any], name: str, revision: str, out: Path, batch: int
    ):
        self.function, self.name, self.revision, self.out, self.batch = function, name, revision, out, batch

    def model(self) -> dict[str, str]:
        return {"id": self.name, "revision": self.revision}

    def ask(self, requests: Sequence[AnnotationRequest]) -> list[Reply | CallError]:
        began = time.monotonic()
        try:
            found = list(self.function([self._placed(one) for one in requests]))
            if len(found) != len(requests):
                raise ValueError(f"{len(found)} replies to {len(requests)} requests")
        except ImportError as error:
            return [CallError(f"{self.name}: {said(error)}", fatal=True) for _ in requests]
        except Exception as error:
            found = [error] * len(requests)
        seconds = (time.monotonic() - began) / len(requests)
        return [self._reply(one, seconds) for one in found]

    def _placed(self, request: AnnotationRequest) -> AnnotationRequest:
        messages = [{**one, "content": [_placed(part, self.out) for part in parts_of(one)]} for one in request.messages]
        return replace(request, messages=messages)

    def _reply(self, found: Any, seconds: float) -> Reply | CallError:
        if isinstance(found, Exception):
            told = f"{type(found).__name__}: {said(found)}"
            return CallError(told, retryable=isinstance(found, OSError), status=1)  # somebody is there
        told = {"text": found} if isinstance(found, str) else {"data": found}
        return {**told, "model": self.name, "seconds": seconds}


class ChatEndpoint:
    """Chat completions. Recordings are sent as ``input_audio``, wav at 16 kHz of the part that is meant.

    Args:
        url: of the API, such as ``http://127.0.0.1:8000/v1``.
        name: of the model; the first that is listed if None.
        revision: of the model, where that is known.
        out: folder of the run.
        key: ``Authorization: Bearer KEY``, if there is one.
        seconds: that a reply may take.
        structured: whether schemas are sent as ``response_format``.
    """

    batch = 1

    def __init__(
        self,
        url: str,
        name: str | None,
        revision: str,
        out: Path,
        *,
        key: str | None = None,
        seconds: float = SECONDS,
        structured: bool = False,
    ):
        self.url, self.name, self.revision, self.out = base_of(url), name, revision, out
        self.key, self.seconds, self.structured = key, seconds, structured

    def model(self) -> dict[str, str]:
        if self.name is None:
            try:
                self.name = first_model(self.url, key=self.key, seconds=self.seconds)
            except ElsewhereError as error:
                raise NotReady(f"{error}; name the model in the plan, or start it") from None
        return {"id": self.name, "revision": self.revision}

    def ask(self, requests: Sequence[AnnotationRequest]) -> list[Reply | CallError]:
        return [self._one(request) for request in requests]

    def _one(self, request: AnnotationRequest) -> Reply | CallError:
        began = time.monotonic()
        try:
            reply = self._sent(request)
        except ElsewhereError as error:
            # What is no JSON comes of what stands before a server.
            passes = error.may_pass or error.status == 0
            fatal = error.status in FATAL or (error.status == 400 and "unsupported" in error.said.lower())
            told = str(error) if fatal else error.said
            return CallError(told, retryable=passes, after=error.after, status=error.status, fatal=fatal)
        except ValueError as error:  # of a recording
            return CallError(said(error))
        return {"model": self.name, **reply, "seconds": round(time.monotonic() - began, 3)}

    def _sent(self, request: AnnotationRequest) -> Reply:
        messages = [
            {
                "role": one["role"],
                "content": one["content"]
                if isinstance(one["content"], str)
                else [self._part(part) for part in one["content"]],
            }
            for one in request.messages
        ]
        body = {name: value for name, value in request.settings.items() if value is not None}
        if self.structured and request.schema is not None:
            told = {"name": "reply", "schema": dict(request.schema), "strict": True}
            body["response_format"] = {"type": "json_schema", "json_schema": told}
        body = {**body, "model": self.name, "messages": messages}
        reply = post(self.url, PATH, body, key=self.key, seconds=self.seconds)
        try:
            choice = reply["choices"][0]
            text, refused = choice["message"].get("content"), choice["message"].get("refusal")
            usage: Any = reply.get("usage") or {}
            counts = {"tokens_in": usage.get("prompt_tokens"), "tokens_out": usage.get("completion_tokens")}
        except (KeyError, IndexError, TypeError, AttributeError):
            raise ElsewhereError(self.url, f"no message in the reply: {shown(reply)}", may_pass=True) from None
        found: Reply = {"text": text if isinstance(text, str) else "", "finish": choice.get("finish_reason") or ""}
        found |= {name: value for name, value in counts.items() if isinstance(value, int)}
        found |= {"refused": True} if refused else {}
        return found | ({"model": reply["model"]} if isinstance(reply.get("model"), str) else {})

    def _part(self, part: Mapping[str, Any]) -> dict[str, Any]:
        if "text" in part:
            return {"type": "text", "text": part["text"]}
        if "audio" in part:
            data = base64.b64encode(wav(heard(part["audio"], self.out))).decode()
            return {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}}
        path = self.out / part["image"]["path"]
        try:
            data = base64.b64encode(path.read_bytes()).decode()
        except OSError as error:
            raise ValueError(f"{part['image']['path']}: {error.strerror}") from None
        kind = mimetypes.guess_type(path.name)[0] or "image/jpeg"
        return {"type": "image_url", "image_url": {"url": f"data:{kind};base64,{data}"}}


class TranscriptionEndpoint(ChatEndpoint):
    """``/audio/transcriptions``: the one recording of a request is sent as flac at 16 kHz. The data are {"text",
    "language", "words": [{"word", "start", "end"}]}, in seconds of what was sent; words are None where it has none.
    """

    def _sent(self, request: AnnotationRequest) -> Reply:
        audio = [part["audio"] for one in request.messages for part in parts_of(one) if "audio" in part]
        if len(audio) != 1:
            raise ValueError(f"one recording is transcribed at a time, got {len(audio)}")
        fields = [("model", str(self.name)), ("response_format", "verbose_json"), ("timestamp_granularities[]", "word")]
        fields += [(name, str(value)) for name, value in request.settings.items() if value is not None]
        file = f"{Path(audio[0]['path']).stem}.flac", flac(heard(audio[0], self.out))
        reply = post_file(self.url, TRANSCRIPTIONS, fields, file, key=self.key, seconds=self.seconds)
        if not isinstance(reply.get("text"), str):
            raise ElsewhereError(self.url, f"no text in the reply: {shown(reply)}", may_pass=True)
        text, words = reply["text"].strip(), _words(reply.get("words"))
        language = reply["language"] if isinstance(reply.get("language"), str) else ""
        found: Reply = {"text": text, "data": {"text": text, "language": language, "words": words}}
        usage: Any = reply.get("usage")
        usage = usage if isinstance(usage, dict) else {}
        counts = {"tokens_in": usage.get("input_tokens"), "tokens_out": usage.get("output_tokens")}
        found |= {name: value for name, value in counts.items() if isinstance(value, int)}
        return found | ({"model": reply["model"]} if isinstance(reply.get("model"), str) else {})


def _words(listed: Any) -> list[dict[str, Any]] | None:
    try:
        words = [
            {"word": str(one["word"]).strip(), "start": round(one["start"], 3), "end": round(one["end"], 3)}
            for one in listed
        ]
    except (TypeError, KeyError):
        return None
    return [one for one in words if one["word"] and is_number(one["start"]) and is_number(one["end"])]


def heard(audio: Mapping[str, Any], out: Path) -> torch.Tensor:
    """Samples [n] int16 at 16 kHz of {"path", "start", "end"}.

    Raises:
        ValueError: the reader refuses it, with the path inside of the run's folder.
    """
    start, end, name = audio.get("start"), audio.get("end"), str(audio["path"])
    return load_audio(out / name, start=start, end=end, max_seconds=1e9, dtype=torch.int16, name=name)


def _placed(part: Mapping[str, Any], out: Path) -> dict[str, Any]:
    return {
        kind: value if kind == "text" else {**value, "path": str(out / value["path"])} for kind, value in part.items()
    }


def backend_of(told: dict[str, Any], out: Path) -> Backend:
    """What a plan describes, as ``annotators.annotator_of`` says.

    Raises:
        ValueError: an unknown or wrong field, no such function, no such key.
    """
    name, revision = told.pop("model", None), str(told.pop("revision", ""))
    if "call" in told:
        call, options, batch = str(told.pop("call")), told.pop("options", None) or {}, told.pop("batch", 16)
        _none_left(told)
        function = named(call, "call:")
        given = (lambda requests: function(requests, **options)) if options else function
        return CallableBackend(given, name or call, revision, out, whole(batch, "batch", 1, 1 << 16))
    if "url" not in told:
        raise ValueError("expected call: module:function, or url: of an endpoint")
    api, key_env = told.pop("api", "chat"), told.pop("key_env", None)
    if api not in ("chat", "transcriptions"):
        raise ValueError(f"api is chat or transcriptions, got {shown(api)}")
    if key_env is not None and not os.environ.get(key_env):
        raise ValueError(f"the environment variable {key_env}, which key_env names, is not set")
    kind = ChatEndpoint if api == "chat" else TranscriptionEndpoint
    seconds, structured = number(told.pop("timeout", SECONDS), "timeout", above=0), bool(told.pop("structured", False))
    url, key = str(told.pop("url")), os.environ.get(key_env) if key_env else None
    _none_left(told)
    return kind(url, name, revision, out, key=key, seconds=seconds, structured=structured)


def _none_left(told: Mapping[str, Any]) -> None:
    if told:
        raise ValueError(f"unknown field {', '.join(sorted(map(str, told)))}")
