"""Reading answers: what is said in the end, the same thing written differently, and the times that are named."""

from __future__ import annotations

import re

SECONDS = re.compile(r"(\d+(?:\.\d+)?)\s*(?:s\b|sec|seconds?)?")
_TIME = re.compile(r"(?:\d+:)?\d+:\d\d(?:\.\d+)?|(\d+(?:\.\d+)?)\s*(?:s\b|secs?\b|seconds?\b)")
_NUMBER = re.compile(r"\d+(?:\.\d+)?")
_TAGGED = re.compile(r"\s*<think>(.*?)</think>\s*<answer>(.*?)</answer>\s*", re.DOTALL)
_ANSWER = re.compile(r"<answer>(.*?)(?:</answer>|$)", re.DOTALL)
_REFUSAL = re.compile(
    r"\b(i (can(no|')t|can not|won't|will not|am unable|am not able|must decline|have to decline|refuse)"
    r"|i'm (unable|not able|sorry,? (but )?i (can|won))|sorry,? (but )?i (can(no|')t|won't)"
    r"|(can(no|')t|unable to) (help|assist|comply|answer))\b"
)
_CLAUSE = re.compile(r"[,;\n]|[.!?](?!\d)")


def normalise(answer: str) -> str:
    """Lower case, no surrounding space or final punctuation."""
    return answer.strip().lower().rstrip(".!?").strip()


def seconds_in(answer: str) -> float | None:
    """The first number of an answer, read as seconds; None when there is none."""
    found = SECONDS.search(answer)
    return float(found.group(1)) if found else None


def thought_and_answer(text: str) -> tuple[str, str] | None:
    """The two parts of ``<think>…</think><answer>…</answer>``; None where the text is not that and nothing else."""
    found = _TAGGED.fullmatch(text)
    if found is None or "<think>" in found[1] or "<answer>" in found[1] + found[2]:
        return None
    return found[1].strip(), found[2].strip()


def answer_in(text: str) -> str:
    """What stands in ``<answer>…</answer>``; without these tags what follows ``</think>``, or all of it."""
    found = _ANSWER.search(text)
    return (found[1] if found else text.rpartition("</think>")[2]).strip()


def answer_span(text: str, *, thinking: bool = False) -> tuple[int, int]:
    """The characters that ``answer_in`` reads, first and last + 1; none of a text that ends inside of ``<think>``.

    Args:
        text: what a model has said.
        thinking: it begins inside of ``<think>``, which the prompt has opened.
    """
    if found := _ANSWER.search(text):
        return found.span(1)
    opened, closed = text.rfind("<think>"), text.rfind("</think>")
    if opened > closed or (thinking and closed < 0):
        return len(text), len(text)
    return (closed + len("</think>") if closed >= 0 else 0), len(text)


def final_answer(text: str) -> str:
    """What an output says in the end, without its reasoning; "" where the reasoning does not end."""
    return text[slice(*answer_span(text))].strip()


def clock_seconds(clock: str) -> float:
    """``[hours:]minutes:seconds``, the fraction behind a point or a comma, in seconds."""
    *hours, minutes, seconds = clock.replace(",", ".").split(":")
    return 3600 * int(hours[0] if hours else 0) + 60 * int(minutes) + float(seconds)


def times_in(text: str) -> list[float]:
    """Seconds of every time in a text: ``3.5 s``, ``1:02.5``, ``1:00:00``; plain numbers where there are none."""
    found = [float(m[1]) if m[1] else clock_seconds(m[0]) for m in _TIME.finditer(text)]
    return found or [float(number) for number in _NUMBER.findall(text)]


def clauses(text: str) -> list[str]:
    """A text cut at commas, semicolons, line breaks and ends of sentences; the point of a number cuts nothing."""
    return [clause.strip() for clause in _CLAUSE.split(text) if clause.strip()]


def says(text: str, phrase: str) -> bool:
    """Whether a text holds a phrase as whole words, in any case."""
    return re.search(rf"(?<!\w){re.escape(normalise(phrase))}(?!\w)", text.lower()) is not None


def words_in(text: str) -> list[str]:
    """The words of a text in lower case; square brackets count as words."""
    return re.findall(r"[^\W_]+|\[|\]", text.lower())


def refuses(answer: str) -> bool:
    """Whether an answer declines to answer: somebody who "cannot come" in a transcript does not."""
    return _REFUSAL.search(answer.lower().replace("\u2019", "'")) is not None
