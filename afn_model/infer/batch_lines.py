"""Lines of a batch: what they ask, as OpenAI's batch files and the project's records say it, and what answers them."""

from __future__ import annotations

import base64
import binascii
import hashlib
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from afn_model.audio.recording import Audio
from afn_model.checks import is_whole, shown
from afn_model.data.records import parse, parse_sample
from afn_model.hashing import text_key
from afn_model.infer.sampling_params import SamplingParams
from afn_model.prompt.conversation import Turn, read_conversation

URL = "/v1/chat/completions"
OF_LINE = ("custom_id", "method", "url", "body")
# What a line may say of how it is answered -> the field of SamplingParams.
SETTINGS = {
    "max_tokens": "max_new_tokens",
    "max_completion_tokens": "max_new_tokens",
    "max_new_tokens": "max_new_tokens",
    "min_tokens": "min_new_tokens",
} | {
    name: name
    for name in (
        *("temperature", "top_p", "top_k", "min_p", "seed", "n", "stop", "stop_token_ids", "ignore_eos", "logit_bias"),
        *("repetition_penalty", "frequency_penalty", "presence_penalty", "max_thinking_tokens", "loop_tokens"),
    )
}
ASKED = (*SETTINGS, "logprobs", "top_logprobs", "response_format", "prediction")
OF_BODY = ("messages", "model", "stream", "modalities", "user", "metadata", *ASKED)
OF_RECORD = ("id", "axis", "task", "source", "duration", "audios", "audio", "sounds", "sound", "messages")
OF_RECORD += ("conversations", "system", "rewards", "truth", "events", "chosen", "rejected")


@dataclass(frozen=True)
class BatchRequest:
    """What a line asks.

    Args:
        turns: of the conversation, up to where the answer begins.
        params: how it is answered.
        prediction: text that the answer is expected to be; "" for none.
        model: as the line names it.
    """

    turns: list[Turn]
    params: SamplingParams
    prediction: str = ""
    model: str = ""


@dataclass(frozen=True)
class BatchLine:
    """A line of a batch.

    Args:
        number: of the line in its file, from 1.
        openai: whether it is one of OpenAI's batch lines, or a record.
        id: as it is written, "line-N" for a record that has none; None where it cannot be known.
        fields: what the line holds.
        problem: why it cannot be answered; "" where nothing is known yet.
    """

    number: int
    openai: bool
    id: str | int | None
    fields: dict[str, Any]
    problem: str = ""

    @property
    def key(self) -> str:
        """What tells it from other lines, now and when the batch is gone on with."""
        return _key(self.id, self.number)

    @property
    def random_key(self) -> int:
        """The key of its random numbers: the same wherever the line stands."""
        return text_key(str(self.id).encode("utf-8", "surrogatepass"))

    def request(self, folder: str, defaults: SamplingParams) -> BatchRequest:
        """What it asks.

        Args:
            folder: what a record's relative paths start from.
            defaults: how it is answered where it does not say.

        Raises:
            ValueError: what is wrong with it.
        """
        if self.problem:
            raise ValueError(self.problem)
        if not self.openai:
            return _of_record(self.fields, folder, defaults)
        _known(self.fields, OF_LINE, "")
        for name, wanted in (("method", "POST"), ("url", URL)):
            if self.fields.get(name) != wanted:
                raise ValueError(f"{name} must be {wanted!r}, got {shown(self.fields.get(name))}")
        body = self.fields.get("body")
        if not isinstance(body, dict):
            raise ValueError(f"body must be an object, got {shown(body)}")
        return _of_body(body, defaults)

    def answer(self, request: BatchRequest, said: list[Said], usage: Usage) -> dict[str, Any]:
        """The line that answers it."""
        if self.openai:
            choices = [
                {
                    "index": index,
                    "message": {"role": "assistant", "content": one.text, "refusal": None},
                    "logprobs": None if one.logprobs is None else {"content": one.logprobs},
                    "finish_reason": one.finish,
                }
                for index, one in enumerate(said)
            ]
            body = {
                "id": f"chatcmpl-{self.number}",
                "object": "chat.completion",
                "created": int(time.time()),
                "model": request.model,
                "choices": choices,
                "usage": usage.as_json(sum(one.tokens for one in said)),
            }
            return self._response(200, body, None)
        answers = [
            {"answer": one.text, "finish": one.finish, "tokens": one.tokens}
            | ({} if one.logprobs is None else {"logprobs": one.logprobs})
            for one in said
        ]
        prompt = {"prompt_tokens": usage.prompt, "audio_tokens": usage.audio, "cached_tokens": usage.cached}
        return {"id": self.id} | (answers[0] if len(answers) == 1 else {"answers": answers}) | prompt

    def error(self, message: str, code: str = "invalid_request", status: int = 400) -> dict[str, Any]:
        """The line that says why it has no answer."""
        error = {"code": code, "message": message}
        if self.openai:
            kind = "invalid_request_error" if status == 400 else "server_error"
            return self._response(status, {"error": error | {"type": kind, "param": None}}, error)
        return {"id": self.id, "error": error | {"line": self.number}}

    def _response(self, status: int, body: dict[str, Any], error: dict[str, Any] | None) -> dict[str, Any]:
        response = {"status_code": status, "request_id": f"line-{self.number}", "body": body}
        return {"id": f"line-{self.number}", "custom_id": self.id, "response": response, "error": error}


@dataclass(frozen=True)
class Said:
    """One answer: its text, "stop", "length" or "repetition", tokens without the stop token, and their
    log-probabilities as OpenAI writes them."""

    text: str
    finish: str
    tokens: int
    logprobs: list[dict[str, Any]] | None = None


@dataclass(frozen=True)
class Usage:
    """Tokens of a prompt: all, those of audio, and those whose keys and values had been computed before."""

    prompt: int
    audio: int
    cached: int

    def as_json(self, answers: int, thought: int | None = None) -> dict[str, Any]:
        """OpenAI's ``usage``.

        Args:
            answers: tokens of all answers.
            thought: those of them inside of ``<think>``; None where it is not known.
        """
        text = self.prompt - self.audio
        details = {"audio_tokens": self.audio, "text_tokens": text, "cached_tokens": self.cached}
        tokens = {"prompt_tokens": self.prompt, "completion_tokens": answers, "total_tokens": self.prompt + answers}
        found: dict[str, Any] = tokens | {"prompt_tokens_details": details}
        return found if thought is None else found | {"completion_tokens_details": {"reasoning_tokens": thought}}


def read_line(raw: bytes, number: int) -> BatchLine:
    """A line of either kind; one that cannot be read has a problem."""
    try:
        fields = parse(raw)
    except ValueError as error:
        return BatchLine(number, b'"custom_id"' in raw, None, {}, str(error))
    openai = "custom_id" in fields or "body" in fields
    found = fields.get("custom_id" if openai else "id")
    if not openai and found in (None, ""):
        return BatchLine(number, False, f"line-{number}", fields)
    if isinstance(found, str) and found:
        return BatchLine(number, openai, found, fields)
    if not openai and is_whole(found):
        return BatchLine(number, False, found, fields)
    what = f"{'custom_id' if openai else 'id'} must be text, got {shown(found)}"
    return BatchLine(number, openai, None, fields, what)


def key_of(row: dict[str, Any]) -> str | None:
    """``BatchLine.key`` of the line that a line of output answers; None where it is no such line."""
    response, error = row.get("response"), row.get("error")
    if isinstance(response, dict) and "custom_id" in row and isinstance(row.get("id"), str):
        number, found = row["id"].removeprefix("line-"), row["custom_id"]
    elif isinstance(error, dict) or "answer" in row or "answers" in row:
        number, found = error.get("line") if isinstance(error, dict) else 0, row.get("id")
    else:
        return None
    twice = isinstance(error, dict) and error.get("code") == "duplicate_id"
    return _key(None if twice else found, number)


def recordings(turns: Iterable[Turn]) -> tuple[tuple[str, float | None, float | None], ...]:
    """What a conversation is about, each recording once: (path, or digest of its bytes; start; end)."""
    return tuple(dict.fromkeys(recording_key(audio) for turn in turns for audio in turn.audios))


def recording_key(audio: Audio) -> tuple[str, float | None, float | None]:
    source = audio.source
    return (source if isinstance(source, str) else hashlib.sha256(source).hexdigest(), audio.start, audio.end)


def _key(found: Any, number: Any) -> str:
    return f"line {number}" if found is None else f"id {found}"


def _known(fields: Mapping[str, Any], names: Iterable[str], where: str) -> None:
    if unknown := sorted(map(str, set(fields) - set(names))):
        raise ValueError(f"unknown field {', '.join(where + name for name in unknown)}")


def _of_body(body: dict[str, Any], defaults: SamplingParams) -> BatchRequest:
    _known(body, OF_BODY, "body.")
    if body.get("stream"):
        raise ValueError("body.stream: a batch does not stream")
    if body.get("modalities") not in (None, ["text"]):
        raise ValueError(f"body.modalities must be ['text'], got {shown(body['modalities'])}")
    messages = body.get("messages")
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise ValueError(f"body.messages must be a list of objects, got {shown(messages)}")
    turns = read_conversation([_message(message, f"message {index}") for index, message in enumerate(messages)])
    return BatchRequest(turns, *_seeded(body, defaults), model=str(body.get("model") or ""))


def _message(message: dict[str, Any], where: str) -> dict[str, Any]:
    _known(message, ("role", "content"), f"{where}: ")
    role, content = message.get("role"), message.get("content")
    if isinstance(content, list):
        content = [_part(part, where) for part in content]
    return {"role": "system" if role == "developer" else role, "content": content}


def _part(part: Any, where: str) -> dict[str, Any]:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind == "text":
        _known(part, ("type", "text"), f"{where}: ")
        return part
    if kind == "input_audio":
        _known(part, ("type", kind), f"{where}: ")
        given = _object(part.get(kind), f"{where}: {kind}")
        _known(given, ("data", "format"), f"{where}: {kind}.")
        return {"type": "audio", "audio": _bytes(given.get("data"), f"{where}: {kind}.data")}
    if kind == "audio_url":
        _known(part, ("type", kind), f"{where}: ")
        given = _object(part.get(kind), f"{where}: {kind}")
        _known(given, ("url",), f"{where}: {kind}.")
        url = given.get("url")
        head, comma, data = url.partition(",") if isinstance(url, str) else ("", "", "")
        if not (comma and head.startswith("data:") and head.endswith(";base64")):
            what = "must be data:audio/...;base64,...: nothing is fetched or opened for a line"
            raise ValueError(f"{where}: {kind}.url {what}, got {shown(url)}")
        return {"type": "audio", "audio": _bytes(data, f"{where}: {kind}.url")}
    raise ValueError(f"{where}: a part's type must be text, input_audio or audio_url, got {shown(kind)}")


def _object(value: Any, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{what} must be an object, got {shown(value)}")
    return value


def _bytes(data: Any, what: str) -> bytes:
    try:
        return base64.b64decode(data if isinstance(data, str) else "-", validate=True)
    except (binascii.Error, ValueError):
        raise ValueError(f"{what} is not base64: {shown(data)}") from None


def _of_record(fields: dict[str, Any], folder: str, defaults: SamplingParams) -> BatchRequest:
    _known(fields, (*OF_RECORD, *ASKED), "")
    record = {name: fields[name] for name in OF_RECORD if name in fields}
    for name, said in (
        ("messages", {"role": "assistant", "content": "-"}),
        ("conversations", {"from": "gpt", "value": "-"}),
    ):
        if record.get(name) and isinstance(record[name], list):
            record[name] = [*record[name], said]  # to be left out with the record's own last answer
    turns = parse_sample(record, folder).turns
    while turns and turns[-1].role == "assistant":
        turns = turns[:-1]
    if not turns:
        raise ValueError("nothing is asked: the record has no message but an answer")
    for turn in turns:
        for audio in turn.audios:
            if audio.source.lower().startswith(("http://", "https://")):
                raise ValueError(f"{shown(audio.source)}: nothing is fetched from the web for a line")
            if audio.source == "-":
                raise ValueError("-: no line is about standard input")
    return BatchRequest(turns, *_seeded(fields, defaults))


def _seeded(fields: dict[str, Any], defaults: SamplingParams) -> tuple[SamplingParams, str]:
    """As ``asked``; the same seed for all lines that have none."""
    params, prediction = asked(fields, defaults)
    return (params if params.seed is not None else replace(params, seed=0)), prediction


def asked(fields: dict[str, Any], defaults: SamplingParams) -> tuple[SamplingParams, str]:
    """How an answer is wanted, and the text that is expected.

    Args:
        fields: ``ASKED`` as OpenAI's API says them; others are not looked at.
        defaults: what they change.

    Raises:
        ValueError: a field's value that does not fit, which the error begins with or names by its setting.
    """
    given: dict[str, Any] = {}
    for name, field in SETTINGS.items():
        if (value := fields.get(name)) is None:
            continue
        if field in given and given[field] != value:
            raise ValueError(f"{name} {shown(value)}: another value of the same setting is {shown(given[field])}")
        given[field] = value
    if isinstance(bias := given.get("logit_bias"), dict):
        try:
            given["logit_bias"] = {int(token): value for token, value in bias.items()}
        except ValueError:
            raise ValueError(f"logit_bias must be numbers by token id, got {shown(bias)}") from None
    if isinstance(given.get("stop"), list):
        given["stop"] = tuple(given["stop"])
    if isinstance(given.get("stop_token_ids"), list):
        given["stop_token_ids"] = tuple(given["stop_token_ids"])
    wanted, top = fields.get("logprobs"), fields.get("top_logprobs")
    if wanted not in (None, True, False) or (top is not None and wanted is not True):
        raise ValueError(f"logprobs must be true or false, and true for top_logprobs, got {shown(wanted)}")
    if wanted:
        given["logprobs"] = 0 if top is None else top
    if (form := grammar_of(fields.get("response_format"))) is not None:
        given["grammar"] = form
    return replace(defaults, **given), prediction_of(fields.get("prediction"))


def grammar_of(form: Any) -> dict[str, Any] | None:
    """The JSON schema of a ``response_format``; None for text."""
    if form is None:
        return None
    kind = form.get("type") if isinstance(form, dict) else None
    if kind not in ("text", "json_object", "json_schema"):
        raise ValueError(f"response_format's type must be text, json_object or json_schema, got {shown(form)}")
    _known(form, ("type", "json_schema") if kind == "json_schema" else ("type",), "response_format.")
    if kind == "text":
        return None
    if kind == "json_object":
        return {"type": "object"}
    given = _object(form.get("json_schema"), "response_format.json_schema")
    _known(given, ("name", "description", "schema", "strict"), "response_format.json_schema.")
    return _object(given.get("schema"), "response_format.json_schema.schema")


def prediction_of(given: Any) -> str:
    """The text of a ``prediction``."""
    if given is None:
        return ""
    content = given.get("content") if isinstance(given, dict) and given.get("type") == "content" else None
    if isinstance(content, list) and all(isinstance(part, dict) and part.get("type") == "text" for part in content):
        content = "".join(str(part.get("text")) for part in content)
    if not isinstance(content, str):
        raise ValueError(f"prediction must be {{'type': 'content', 'content': text}}, got {shown(given)}")
    return content
