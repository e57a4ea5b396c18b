"""What the form of a transcription or a translation asks for."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any, TypeVar

from fastapi import Request
from starlette.datastructures import UploadFile

from afn_model.infer.sampling_params import SamplingParams
from afn_model.infer.transcripts import transcript_tokens
from afn_model.prompt import questions
from afn_model.serve.errors import ApiError

T = TypeVar("T")
FORMS = ("json", "text", "srt", "verbose_json", "vtt", "diarized_json")
FILES = ("srt", "vtt")  # formats that are whole files
SHORTEST = 1.0  # seconds of a piece
PART_BYTES = 1 << 20  # of a field of the form
BOTH = ("file", "model", "language", "prompt", "response_format", "temperature", "timestamps", "chunk_seconds")
FIELDS = {
    "transcribe": (
        *BOTH,
        "timestamp_granularities",
        "stream",
        "include",
        "chunking_strategy",
        "keywords",
        "languages",
        "known_speaker_names",
        "known_speaker_references",
    ),
    "translate": BOTH,
}
LISTS = ("timestamp_granularities", "include", "keywords", "languages")
STORED = "afn://sha256/"  # a recording that was uploaded before


@dataclass(frozen=True)
class SpeechRequest:
    """What is asked about a recording.

    Args:
        task: "transcribe" or "translate".
        question: of the model.
        form: ``response_format``.
        language: English name of the answer's language in lower case, or "unknown".
        temperature: of sampling.
        stream: whether the answer is sent as it grows.
        logprobs: whether those of its tokens are.
        by_grammar: whether the answer is held to a grammar of timed lines.
        chunk_seconds: of a piece at most; None for what the model takes.
    """

    task: str
    question: str
    form: str
    language: str
    temperature: float
    stream: bool
    logprobs: bool
    by_grammar: bool
    chunk_seconds: float | None

    def sampling(self, seconds: float) -> SamplingParams:
        """How a piece of so many seconds is answered."""
        return SamplingParams(
            max_new_tokens=transcript_tokens(seconds),
            temperature=self.temperature,
            logprobs=0 if self.logprobs or self.form == "verbose_json" else None,
            grammar=self.grammar(seconds) if self.by_grammar else None,
        )

    def grammar(self, seconds: float) -> str:
        """What an answer with times up to the end of a piece matches.

        Raises:
            ApiError: 400, there is no such grammar in this version.
        """
        try:
            module = import_module("afn_model.infer.time_grammar")
        except ModuleNotFoundError:
            raise ApiError(400, "timestamps: grammar is not in this version", param="timestamps") from None
        return module.timed_transcript_grammar(seconds)


async def read_form(request: Request, task: str) -> tuple[dict[str, Any], bytes | str]:
    """The fields of a form, lists where they may come several times, and the file, or the id of an upload.

    Raises:
        ApiError: 400, no form, no file, an unknown field, one that comes twice.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "multipart/form-data":
        raise ApiError(400, f"multipart/form-data with a file is expected, got {kind or 'no content-type'!r:.80}")
    found: dict[str, Any] = {}
    form = await request.form(max_files=2, max_fields=256, max_part_size=PART_BYTES)
    try:
        for key, value in form.multi_items():
            name = key.removesuffix("[]")
            if name.partition("[")[0] == "chunking_strategy" != name:
                what = "chunking_strategy: numbers of server_vad are not supported; recordings are cut where they are"
                raise ApiError(400, f'{what} quietest: "auto", or chunk_seconds', param="chunking_strategy")
            if name not in FIELDS[task]:
                raise ApiError(400, f"there is no field {name!r:.80} here", param=name[:80], code="unknown_field")
            if isinstance(value, UploadFile) != (name == "file") and not (name == "file" and isinstance(value, str)):
                raise ApiError(400, f"{name} must be text, got a file", param=name)
            if name in LISTS:
                found.setdefault(name, []).append(value)
            elif name in found:
                raise ApiError(400, f"{name} is given twice", param=name)
            else:
                found[name] = value
        file = found.pop("file", None)
        if isinstance(file, UploadFile):
            return found, await file.read()
    finally:
        await form.close()
    if isinstance(file, str) and file.startswith(STORED):
        return found, file.removeprefix(STORED)
    raise ApiError(400, f"file must be a recording, or {STORED}ID of one that was uploaded", param="file")


def read_request(fields: dict[str, Any], task: str) -> SpeechRequest:
    """What the fields of ``read_form`` ask for.

    Raises:
        ApiError: 400 naming the field.
    """
    for name in ("known_speaker_names", "known_speaker_references"):
        if name in fields:
            raise ApiError(400, f"{name} is not supported: speakers are told apart, not recognised", param=name)
    form = _one_of(fields, "response_format", FORMS if task == "transcribe" else FORMS[:-1], "json")
    granularities = fields.get("timestamp_granularities", [])
    for one in granularities:
        if one != "segment":
            known = "word times are not supported; segment" if one == "word" else "segment"
            raise ApiError(400, f"{known} is expected, got {one!r:.80}", param="timestamp_granularities")
    if granularities and form != "verbose_json":
        raise ApiError(400, "needs response_format verbose_json", param="timestamp_granularities")
    include = fields.get("include", [])
    if any(one != "logprobs" for one in include):
        raise ApiError(400, f"include: logprobs is expected, got {include!r:.80}", param="include")
    if include and form != "json":
        raise ApiError(400, f"include: logprobs come with response_format json, not {form}", param="include")
    _one_of(fields, "chunking_strategy", ("auto",), "auto")
    stream = _one_of(fields, "stream", ("true", "false"), "false") == "true"
    if stream and form in FILES:
        raise ApiError(400, f"stream: {form} is a whole file; json is expected", param="stream")
    chunk = _number(fields, "chunk_seconds", SHORTEST, math.inf)
    languages = _named(fields)
    return SpeechRequest(
        task=task,
        question=_question(fields, task, languages, form == "diarized_json"),
        form=form,
        language="english" if task == "translate" else languages[0].lower() if len(languages) == 1 else "unknown",
        temperature=_number(fields, "temperature", 0.0, 1.0) or 0.0,
        stream=stream,
        logprobs=bool(include),
        by_grammar=_one_of(fields, "timestamps", ("model", "grammar"), "model") == "grammar",
        chunk_seconds=chunk,
    )


def _named(fields: dict[str, Any]) -> list[str]:
    """English names of the languages that may be spoken."""
    given, several = fields.get("language"), fields.get("languages", [])
    if given and several:
        raise ApiError(400, "language and languages both say what is spoken", param="languages")
    param = "language" if given else "languages"
    return [_told(param, questions.language, one.strip()) for one in ([given] if given else several)]


def _question(fields: dict[str, Any], task: str, languages: list[str], diarize: bool) -> str:
    more = fields.get("prompt") or None
    if keywords := [word.strip() for word in fields.get("keywords", []) if word.strip()]:
        listed = f"Words that may come up: {', '.join(keywords)}."
        more = f"{more} {listed}" if more else listed
    if task == "translate":
        return questions.translation(languages[0] if languages else None, more=more)
    return questions.transcription(languages, diarize=diarize, more=more)


def _one_of(fields: dict[str, Any], name: str, known: tuple[str, ...], default: str) -> str:
    given = fields.get(name, default)
    if given not in known:
        raise ApiError(400, f"{name}: {' or '.join(known)} is expected, got {given!r:.80}", param=name)
    return given


def _number(fields: dict[str, Any], name: str, least: float, most: float) -> float | None:
    if name not in fields:
        return None
    try:
        value = float(fields[name])
    except ValueError:
        value = math.nan
    if not (least <= value <= most and math.isfinite(value)):
        between = f"from {least:g} to {most:g}" if math.isfinite(most) else f"{least:g} or more"
        raise ApiError(400, f"{name}: a number {between} is expected, got {fields[name]!r:.80}", param=name)
    return value


def _told(param: str, read: Callable[[str], T], value: str) -> T:
    """What is read of a field; its errors name it."""
    try:
        return read(value)
    except ValueError as error:
        raise ApiError(400, f"{param}: {error}", param=param) from None
