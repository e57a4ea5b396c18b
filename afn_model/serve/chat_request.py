"""What a request for a chat completion may say, and what it asks of the engine."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from afn_model.infer.batch_lines import ASKED, SETTINGS, asked
from afn_model.infer.sampling_params import SamplingParams
from afn_model.serve.errors import ApiError
from afn_model.serve.settings import Settings

AT_ONCE = 1 << 16  # bytes of a body that are read in the event loop; more are read in a thread
LARGE = 2**31 - 1
ALTERNATIVES = ("str", "VoiceClip")  # what a voice may be: errors name them as if they were fields
MOST_SECONDS = 1e6  # that a part of a recording may begin or end at; what it has is said when it is decoded
ALIASES = {"grammar": "response_format", "schema": "response_format", "answers": "n"}  # what errors say for fields
# What OpenAI's API or another server has and this one has not, and why.
REFUSED = {
    **dict.fromkeys(("tools", "tool_choice", "parallel_tool_calls", "functions", "function_call"), "calls of tools"),
    **dict.fromkeys(("cache_salt", "prompt_cache_breakpoint"), "a cache of one's own"),
    "web_search_options": "the web",
    "reasoning_effort": "levels of reasoning; max_thinking_tokens bounds it",
    "instructions": "how something is to be said",
    "verbosity": "levels of verbosity",
    "documents": "documents",
    "name": "names of those who speak",
    "guided_json": "this name; response_format is supported",
}


class StrictFields(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class InputAudio(StrictFields):
    """A recording in base64. What the format is called does not matter: it is recognised by its bytes."""

    data: str
    format: str = ""


class AudioUrl(StrictFields):
    """A recording by ``data:``, ``afn://sha256/ID`` of an upload, or ``http(s)`` where that is allowed."""

    url: str


class ContentPart(StrictFields):
    """A part of a message; ``start`` and ``end`` are seconds of its recording."""

    type: Literal["text", "input_audio", "audio_url"]
    text: str | None = None
    input_audio: InputAudio | None = None
    audio_url: AudioUrl | None = None
    start: Annotated[float, Field(ge=0, le=MOST_SECONDS)] | None = None
    end: Annotated[float, Field(gt=0, le=MOST_SECONDS)] | None = None

    @model_validator(mode="after")
    def _whole(self) -> ContentPart:
        for name in ("text", "input_audio", "audio_url"):
            if (name == self.type) != (getattr(self, name) is not None):
                raise ValueError(f"a part of type {self.type} {'needs' if name == self.type else 'has no'} {name}")
        if self.type == "text" and (self.start is not None or self.end is not None):
            raise ValueError("start and end are of a recording, not of text")
        if self.start is not None and self.end is not None and self.end <= self.start:
            raise ValueError(f"end {self.end:g} must be above start {self.start:g}")
        return self


class VoiceClip(StrictFields):
    """Somebody's voice: a recording of it, as of ``AudioUrl``, and who has consented to its use, when."""

    audio: str
    consent: str


class ChatVoice(StrictFields):
    """How an answer sounds: whose voice, and the format of its file."""

    voice: str | VoiceClip = "default"
    format: Literal["wav", "aac", "mp3", "flac", "opus", "pcm16"]


class SaidAudio(StrictFields):
    """The sound of an earlier answer, as this server sent it: its transcript is what the model reads."""

    id: str
    data: str | None = None
    transcript: str | None = None
    expires_at: int | None = None


def _parts(content: Any) -> Any:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


class Message(StrictFields):
    """A message. What an answer brings beside its text may come back with it, and is not read again."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[list[ContentPart], BeforeValidator(_parts)] = Field(default_factory=list)
    refusal: None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    audio: SaidAudio | None = None
    annotations: Annotated[list[Any], Field(max_length=0)] | None = None
    tool_calls: Annotated[list[Any], Field(max_length=0)] | None = None
    function_call: None = None

    @model_validator(mode="before")
    @classmethod
    def _spoken(cls, fields: Any) -> Any:
        """An answer that was spoken has its text in its sound, and null here."""
        spoken = isinstance(fields, dict) and fields.get("audio") is not None and fields.get("content", "") is None
        return {name: value for name, value in fields.items() if name != "content"} if spoken else fields

    @model_validator(mode="after")
    def _fits(self) -> Message:
        if self.audio is not None and self.role != "assistant":
            raise ValueError(
                f"audio is of a message of the assistant; a recording of the {self.role} is a part of content"
            )
        if self.audio is None and "content" not in self.model_fields_set:
            raise ValueError("content is missing")
        if self.role == "assistant" and any(part.type != "text" for part in self.content):
            raise ValueError("a message of the assistant holds text alone")
        return self


class StreamOptions(StrictFields):
    include_usage: bool = False
    include_obfuscation: Literal[False] | None = None


class ChatRequest(StrictFields):
    """A request for a chat completion: OpenAI's fields, and those that vLLM and SGLang have beside them."""

    messages: Annotated[list[Message], Field(min_length=1)]
    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: float | None = None
    top_k: Annotated[int, Field(ge=-1, le=LARGE)] | None = None
    min_p: float | None = None
    n: Annotated[int, Field(ge=1, le=16)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: Any = None
    stop_token_ids: list[Annotated[int, Field(ge=0, le=LARGE)]] | None = None
    ignore_eos: bool | None = None
    max_completion_tokens: Annotated[int, Field(ge=0, le=LARGE)] | None = None
    max_tokens: Annotated[int, Field(ge=0, le=LARGE)] | None = None
    min_tokens: Annotated[int, Field(ge=0, le=LARGE)] | None = None
    max_thinking_tokens: Annotated[int, Field(ge=0, le=LARGE)] | None = None
    loop_tokens: Annotated[int, Field(ge=0, le=LARGE)] | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: Annotated[float, Field(ge=0.01, le=100)] | None = None
    logit_bias: dict[str, float] | None = None
    response_format: dict[str, Any] | None = None
    prediction: dict[str, Any] | None = None
    priority: Annotated[int, Field(ge=-LARGE, le=LARGE)] = 0
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    afn_caption: bool | dict[str, Any] | None = None
    afn_verify: bool | None = None
    chat_template_kwargs: Annotated[dict[str, Any], Field(max_length=0)] | None = None
    modalities: Annotated[list[Literal["text", "audio"]], Field(min_length=1)] | None = None
    audio: ChatVoice | None = None
    user: str | None = None
    metadata: dict[str, str] | None = None
    store: bool | None = None
    service_tier: str | None = None
    prompt_cache_key: str | None = None
    safety_identifier: str | None = None


class TokenizeRequest(StrictFields):
    """What is to be counted: a text, or a conversation as it is asked about."""

    model: str | None = None
    prompt: str | None = None
    messages: Annotated[list[Message], Field(min_length=1)] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    return_token_strs: bool | None = None

    @model_validator(mode="after")
    def _one(self) -> TokenizeRequest:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("either prompt or messages is expected")
        return self


CHAT, TOKENIZE = TypeAdapter(ChatRequest), TypeAdapter(TokenizeRequest)


async def read(body: bytes, kind: TypeAdapter) -> Any:
    """A request from the bytes of its JSON.

    Raises:
        ApiError: 400, naming the first field that is wrong.
    """
    try:
        if len(body) <= AT_ONCE:
            return kind.validate_json(body)
        return await asyncio.to_thread(kind.validate_json, body)
    except ValidationError as error:
        raise _refused(error) from None


def opening(messages: Sequence[Message], generation: bool | None, continued: bool | None) -> dict[str, bool]:
    """Where an answer begins, as ``AFNextProcessor.prepare`` is told: a last message of the assistant goes on.

    Args:
        messages: of the request.
        generation, continued: its ``add_generation_prompt`` and ``continue_final_message``.

    Raises:
        ApiError: 400, they exclude each other, or there is nothing to go on from.
    """
    last, where = messages[-1].role == "assistant", "continue_final_message"
    if continued and generation:
        raise ApiError(400, f"{where} and add_generation_prompt exclude each other", param=where)
    if continued and not last:
        raise ApiError(400, f"{where}: the last message must be the assistant's", param=where)
    if last and len(messages) > 1 and (continued or (continued is None and not generation)):
        return {where: True}
    return {"add_generation_prompt": generation is not False}


def _refused(error: ValidationError) -> ApiError:
    first = error.errors(include_url=False, include_input=False)[0]
    where = [part for part in first["loc"] if part not in ALTERNATIVES]
    kind, what = first["type"], first["msg"].removeprefix("Value error, ")
    full = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in where).lstrip(".")[:200]
    param = re.match(r"messages\[\d+\]\.content\[\d+\]|.*", full, re.DOTALL)
    name = str(where[-1]) if where else ""
    if kind == "json_invalid":
        return ApiError(400, f"the body is not JSON: {what.removeprefix('Invalid JSON: ')[:200]}", code="invalid_json")
    if kind == "extra_forbidden":
        known = REFUSED.get(name)
        what = f"not supported: {known}" if known else "unknown field"
    elif name == "chat_template_kwargs" and kind == "too_long":
        what = "the chat template takes none"
    found = full[:1].lower() + full[1:]
    return ApiError(400, f"{found}: {what}" if found else what, param=param[0] if param and param[0] else None)


def sampling(request: ChatRequest, settings: Settings) -> tuple[SamplingParams, str]:
    """How the answers are generated, and the text that is expected.

    Raises:
        ApiError: 400, a value that does not fit.
    """
    fields = request.model_dump(include=set(ASKED), exclude_none=True)
    if fields.get("top_k") == -1:  # all, as vLLM says it
        fields["top_k"] = 0
    stop = request.stop
    if isinstance(stop, list) and len(stop) > 4:
        raise ApiError(400, f"stop: at most 4 texts are expected, got {len(stop)}", param="stop")
    if request.stream_options is not None and not request.stream:
        raise ApiError(400, "stream_options: they are of a stream, and stream is not true", param="stream_options")
    try:
        params, prediction = asked(fields, SamplingParams(max_new_tokens=settings.max_new_tokens))
    except ValueError as error:
        raise misfit(error, fields) from None
    return params, "" if params.logprobs else prediction  # the likeliest tokens are not known of drafts


def misfit(error: ValueError, fields: dict[str, Any]) -> ApiError:
    """What is wrong with a request, by the names that the client has given its settings.

    Args:
        error: of ``asked``, ``SamplingParams``, the processor or the engine, which names what is wrong.
        fields: of the request, those that are not null.
    """
    said = str(error)
    for name, setting in SETTINGS.items():
        said = re.sub(rf"\b{setting}\b", name, said) if name in fields else said
    words = [ALIASES.get(word, word) for word in re.findall(r"[a-z_]+", said)]
    name = next((word for word in words if word in fields), None)
    if name == "logprobs" and "top_logprobs" in fields:
        name = "top_logprobs"
    if name is None and "context" in words:
        said += "; fewer or shorter recordings and texts are expected, or parts of recordings (start and end)"
        return ApiError(400, said, param="messages", code="context_length_exceeded")
    return ApiError(400, said, param=name)
