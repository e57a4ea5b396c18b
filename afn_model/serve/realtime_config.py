"""What a realtime session is told by ``session.update``: OpenAI's transcription session, and two settings of ours."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from afn_model.prompt import questions
from afn_model.serve.errors import ApiError

RATES = (16_000, 24_000, 48_000)
AUDIO, INPUT = "session.audio", "session.audio.input"


@dataclass(frozen=True)
class TurnDetection:
    """As of ``VoiceActivity``."""

    threshold: float = 0.5
    prefix_padding_ms: int = 300
    silence_duration_ms: int = 500


@dataclass(frozen=True)
class SessionConfig:
    """How a session hears and answers.

    Args:
        rate: of the samples, Hz.
        turn_detection: when recordings begin and end; None leaves that to the client.
        language: that is spoken; None does not say.
        prompt: text behind the question.
        question: what is asked of each recording; None asks for a transcript. (Ours.)
        interim_ms: of a recording, after each of which what has been said so far is sent; 0 never. (Ours.)
    """

    rate: int = 24_000
    turn_detection: TurnDetection | None = TurnDetection()
    language: str | None = None
    prompt: str | None = None
    question: str | None = None
    interim_ms: int = 0

    def asked(self) -> str:
        """The question about a recording."""
        if self.question is None:
            return questions.transcription([self.language] if self.language else [], more=self.prompt)
        return self.question if self.prompt is None else f"{self.question} {self.prompt}"

    def shown(self, id: str, model: str) -> dict[str, Any]:
        """As ``session.created`` and ``session.updated`` say it."""
        turns = self.turn_detection
        detection = None if turns is None else {"type": "server_vad", **vars(turns)}
        transcription = {"model": model, "language": self.language, "prompt": self.prompt, "question": self.question}
        audio = {
            "format": {"type": "audio/pcm", "rate": self.rate},
            "noise_reduction": None,
            "transcription": transcription,
            "turn_detection": detection,
        }
        return {
            "id": id,
            "object": "realtime.transcription_session",
            "type": "transcription",
            "audio": {"input": audio},
            "include": None,
            "interim_ms": self.interim_ms,
        }

    def updated(self, session: object, model: str) -> SessionConfig:
        """With what a session's update changes; what it does not name stays.

        Args:
            session: of ``session.update``, or flat as of the older ``transcription_session.update``.
            model: the server's.

        Raises:
            ApiError: 400, an unknown field or a value that is not supported.
        """
        given = _object(session, "session", ("type", "id", "object", "audio", "include", "interim_ms", *_FLAT))
        if given.get("type", "transcription") != "transcription":
            raise _wrong("session.type", given["type"], "'transcription'")
        if given.get("include"):
            raise _wrong("session.include", given["include"], "none: log-probabilities are not sent here")
        found = self
        if "interim_ms" in given:
            found = replace(found, interim_ms=_whole(given["interim_ms"], "session.interim_ms", 0, 600_000))
            if 0 < found.interim_ms < 200:
                raise _wrong("session.interim_ms", found.interim_ms, "0 or at least 200")
        audio = _object(given.get("audio", {}), AUDIO, ("input",)).get("input", {})
        heard = dict(_object(audio, INPUT, ("format", "noise_reduction", "transcription", "turn_detection")))
        names = {name: f"{INPUT}.{name}" for name in heard}
        for flat, name in _FLAT.items():
            if flat in given:
                heard[name], names[name] = given[flat], f"session.{flat}"
        for name, value in heard.items():
            found = found._heard(name, value, names[name], model)
        return found

    def _heard(self, name: str, value: Any, param: str, model: str) -> SessionConfig:
        if name == "noise_reduction":
            if value is not None:
                raise _wrong(param, value, "null: no noise is taken away here")
            return self
        if name == "format":
            return replace(self, rate=_rate(value, param))
        if name == "turn_detection":
            return replace(self, turn_detection=None if value is None else _turns(value, param))
        given = _object(value, param, ("model", "language", "prompt", "question"))
        if given.get("model") not in (None, "", model):
            raise ApiError(
                404, f"there is no model {given['model']!r:.80} here; there is {model!r}", param=f"{param}.model"
            )
        said = {one: _text(given[one], f"{param}.{one}") for one in ("language", "prompt", "question") if one in given}
        if said.get("language"):
            try:
                questions.language(str(said["language"]))
            except ValueError as error:
                raise ApiError(400, str(error), param=f"{param}.language", code="invalid_value") from None
        return replace(self, **said)


_FLAT = {
    "input_audio_format": "format",
    "input_audio_noise_reduction": "noise_reduction",
    "input_audio_transcription": "transcription",
    "turn_detection": "turn_detection",
}


def _wrong(param: str, value: object, expected: str) -> ApiError:
    return ApiError(400, f"{param} is {value!r:.80}; expected is {expected}", param=param, code="invalid_value")


def _object(value: object, param: str, fields: tuple[str, ...]) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise _wrong(param, value, "an object")
    for name in value:
        if name not in fields:
            what = f"{param} has no field {name!r:.80}; it has {', '.join(fields)}"
            raise ApiError(400, what, param=f"{param}.{name:.80}", code="unknown_parameter")
    return value


def _whole(value: object, param: str, least: int, most: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise _wrong(param, value, f"a whole number from {least} to {most}")
    return value


def _text(value: object, param: str) -> str | None:
    if value is not None and (not isinstance(value, str) or len(value) > 20_000):
        raise _wrong(param, value, "a text of up to 20,000 characters")
    return value or None


def _rate(value: object, param: str) -> int:
    if value == "pcm16":
        return 24_000
    given = _object(value, param, ("type", "rate"))
    if given.get("type") != "audio/pcm":
        raise _wrong(f"{param}.type", given.get("type"), "'audio/pcm'")
    if given.get("rate", 24_000) not in RATES:
        raise _wrong(f"{param}.rate", given["rate"], "16000, 24000 or 48000")
    return int(given.get("rate", 24_000))


def _turns(value: object, param: str) -> TurnDetection:
    fields = ("threshold", "prefix_padding_ms", "silence_duration_ms")
    given = _object(value, param, ("type", *fields, "create_response", "interrupt_response", "idle_timeout_ms"))
    if given.get("type", "server_vad") != "server_vad":
        raise _wrong(f"{param}.type", given["type"], "'server_vad' or no turn detection at all, null")
    loud = given.get("threshold", 0.5)
    if isinstance(loud, bool) or not isinstance(loud, (int, float)) or not 0 <= loud <= 1:
        raise _wrong(f"{param}.threshold", loud, "a number from 0 to 1")
    padding = _whole(given.get("prefix_padding_ms", 300), f"{param}.prefix_padding_ms", 0, 5000)
    silence = _whole(given.get("silence_duration_ms", 500), f"{param}.silence_duration_ms", 20, 60_000)
    return TurnDetection(float(loud), padding, silence)
