"""Chat templates, and where the rendered prompt holds what the assistant says."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from afn_model.checks import said
from afn_model.prompt.conversation import SOUND, Turn, check_text
from afn_model.prompt.speech_task import START

DEFAULT_TEMPLATE = Path(__file__).with_name("chat_template.jinja")
WHISPER_TEMPLATE = Path(__file__).with_name("whisper_template.jinja")
WHISPER_END = "<|endoftext|>"
_ANSWER = re.compile(r"<\|im_start\|>assistant\n(.*?<\|im_end\|>)", re.DOTALL)


class ChatTemplate:
    """A Jinja chat template, as model folders carry them, in a sandbox (``afn_model.prompt.sandbox``).

    Args:
        source: the template's text.
        variables: further names it may use, such as ``eos_token``.

    Raises:
        ValueError: a template that cannot be read, or is longer than any of a model.
    """

    def __init__(self, source: str, variables: dict[str, str] | None = None):
        from afn_model.prompt.sandbox import MAX_SOURCE, BudgetedEnvironment

        self.source, self.variables = source, variables or {}
        if len(source) > MAX_SOURCE:
            raise ValueError(f"the chat template cannot be read: {len(source)} characters are more than {MAX_SOURCE}")
        for what in (source, *self.variables.values()):
            check_text(what, "the chat template")
        environment = BudgetedEnvironment(_to_json, raise_exception=_refuse, strftime_now=datetime.now().strftime)
        try:
            # transformers' own tag around what the assistant says; it renders as its content.
            plain = re.sub(r"\{%(-?)\s*generation\s*(-?)%\}", r"{%\1 if true \2%}", source)
            plain = re.sub(r"\{%(-?)\s*endgeneration\s*(-?)%\}", r"{%\1 endif \2%}", plain)
            self._template = environment.from_string(plain)
        except Exception as error:
            raise ValueError(f"the chat template cannot be read: {_line(error)}") from None

    def _render(self, messages: list[dict], add_generation_prompt: bool) -> str:
        from afn_model.prompt.sandbox import render

        # transformers defines tools and documents, and templates ask whether they are none.
        names = {"tools": None, "documents": None, **self.variables}
        names |= {"messages": messages, "add_generation_prompt": add_generation_prompt}
        return render(self._template, names, sum(len(str(message["content"])) for message in messages))

    @cached_property
    def _takes_text(self) -> bool:
        """Whether a message's content may be a string; some templates know only lists of parts."""
        try:
            return "probe" in self._render([{"role": "user", "content": "probe"}], False)
        except Exception:  # what is wrong with it is said when it is used
            return False

    def render(self, turns: Sequence[Turn], add_generation_prompt: bool) -> str:
        """The prompt, with ``<sound>`` for each audio.

        Raises:
            ValueError: the template refuses the conversation, loses an audio, or goes on for too long.
        """
        contents = [turn.text if self._takes_text else [{"type": "text", "text": turn.text}] for turn in turns]
        messages = [{"role": turn.role, "content": content} for turn, content in zip(turns, contents, strict=True)]
        try:
            text = self._render(messages, add_generation_prompt)
        except Exception as error:  # a stranger's program may raise anything
            raise ValueError(f"the chat template fails: {_line(error)}") from None
        check_text(text, "what the chat template renders")
        audios = sum(len(turn.audios) for turn in turns)
        if text.count(SOUND) != audios:
            raise ValueError(f"the chat template renders {text.count(SOUND)} {SOUND} placeholders for {audios} audios")
        return text


def _refuse(message: Any = "") -> None:
    """``raise_exception`` of the templates."""
    raise ValueError(message)


def _line(error: Exception) -> str:
    """What an exception says, in one line; its kind where that is nothing."""
    text = said(error) or "it fails"
    return text if isinstance(error, ValueError) else f"{text} ({type(error).__name__})"


def stop_tokens(source: str) -> tuple[str, ...]:
    """Tokens that end an answer in a chat template's prompts: Whisper's has one, the others two."""
    return (WHISPER_END,) if START in source and "<|im_end|>" not in source else ("<|im_end|>", WHISPER_END)


def answer_spans(text: str, turns: Sequence[Turn]) -> list[tuple[int, int]]:
    """Where a rendered conversation holds what the assistant says, closing ``<|im_end|>`` included.

    In Whisper's prompts an answer is the last thing, and closed by ``<|endoftext|>``.

    Args:
        text: from ``ChatTemplate.render``.
        turns: what it was rendered from.

    Returns:
        (first, end) character offsets, one for each assistant turn.

    Raises:
        ValueError: no assistant turn, or the template does not mark them as ``<|im_start|>assistant``.
    """
    spans = [match.span(1) for match in _ANSWER.finditer(text)]
    answers = sum(turn.role == "assistant" for turn in turns)
    if not answers:
        raise ValueError("nothing to learn: the conversation has no assistant message")
    if not spans and answers == 1 and START in text and text.endswith(f"{turns[-1].text}{WHISPER_END}"):
        return [(len(text) - len(turns[-1].text) - len(WHISPER_END), len(text))]
    if len(spans) != answers:
        raise ValueError(f"the chat template marks {len(spans)} of {answers} assistant messages")
    return spans


def _to_json(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False) -> str:
    # Jinja's own filter escapes HTML.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
