"""What a speech decoder is asked for, as special tokens: Whisper's where Whisper has them, and four more tasks' own."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from tokenizers import AddedToken, Tokenizer

from afn_model.checks import number, shown

START = "<|startoftranscript|>"
NO_TIMESTAMPS = "<|notimestamps|>"
NO_SPEECH = "<|nospeech|>"  # the whole answer about a recording in which nobody speaks
SPEAKER = "<|speaker|>"  # between talkers, who come in order of first appearance
TASKS = ("transcribe", "translate", "caption", "speakers", "target")
TIME_STEP = 0.02  # seconds
LAST_TIME = 30.0  # seconds
_CODE = re.compile("[a-z]{2,3}")
_PROMPT = re.compile(r"<\|([^<>|]+)\|><\|([^<>|]+)\|>(<\|notimestamps\|>)?")


@dataclass(frozen=True)
class SpeechTask:
    """A task; its ``text`` is that of the user's turn, beside the recordings.

    Args:
        task: "transcribe"; "translate", into ``language``; "caption"; "speakers", what all talkers say, one after
            another, with ``SPEAKER`` between them; "target", what the talker of the first recording says in the second.
        language: ISO 639 code of the text that is written, as Whisper's tokens name languages.
        timestamps: whether the text has times, such as ``<|1.24|>``.

    Raises:
        ValueError: no such task, or no such code.
    """

    task: str = "transcribe"
    language: str = "en"
    timestamps: bool = False

    def __post_init__(self):
        if self.task not in TASKS:
            raise ValueError(f"task {shown(self.task)} is none of {', '.join(TASKS)}")
        if not isinstance(self.language, str) or not _CODE.fullmatch(self.language):
            raise ValueError(f"language {shown(self.language)} is no code of two or three small letters, such as en")

    @property
    def tokens(self) -> tuple[str, ...]:
        """Language, task, and ``<|notimestamps|>`` where the text has no times."""
        tokens = (f"<|{self.language}|>", f"<|{self.task}|>")
        return tokens if self.timestamps else (*tokens, NO_TIMESTAMPS)

    @property
    def text(self) -> str:
        """The tokens joined."""
        return "".join(self.tokens)

    @staticmethod
    def read(text: str) -> SpeechTask:
        """The task that a prompt names, the first one if there are several.

        Args:
            text: a prompt, or a user's turn; what stands around the tokens does not matter.

        Raises:
            ValueError: no language followed by a task, or a task that is none.
        """
        found = _PROMPT.search(text.replace(START, ""))
        if found is None:
            raise ValueError(f"no task in {shown(text)}: expected tokens such as {SpeechTask().text}")
        language, task, plain = found.groups()
        return SpeechTask(task, language, timestamps=plain is None)

    def check(self, tokenizer: Tokenizer) -> None:
        """ValueError naming the first of the tokens that a tokenizer has not."""
        for token in self.tokens:
            if tokenizer.token_to_id(token) is None:
                kind = f"language {self.language}" if token == self.tokens[0] else f"task {self.task}"
                raise ValueError(f"{kind}: the tokenizer has no token {token}")


def time_token(seconds: float) -> str:
    """The token of a time, rounded to 20 ms: 1.233 s is ``<|1.24|>``.

    Raises:
        ValueError: a time below 0 or above 30 s.
    """
    if not 0 <= number(seconds, "a time") <= LAST_TIME:
        raise ValueError(f"a time of {seconds:g} s has no token: 0 to {LAST_TIME:g} s have")
    return f"<|{round(seconds / TIME_STEP) * TIME_STEP:.2f}|>"


def special_tokens(languages: Iterable[str], *, times: bool = True) -> list[str]:
    """All tokens of tasks; ``add_task_tokens`` adds them to a tokenizer.

    Args:
        languages: codes.
        times: with the 1,501 times from ``<|0.00|>`` to ``<|30.00|>``.

    Raises:
        ValueError: no such code.
    """
    codes = [SpeechTask(language=language).tokens[0] for language in dict.fromkeys(languages)]
    tokens = [START, *codes, *(f"<|{task}|>" for task in TASKS), NO_SPEECH, NO_TIMESTAMPS]
    return tokens + _in_text(times)


def add_task_tokens(tokenizer: Tokenizer, languages: Iterable[str], *, times: bool = True) -> int:
    """Gives a tokenizer the tokens of ``special_tokens`` that it has not, in place; how many those are.

    Times and ``SPEAKER`` stay in a text that is decoded, as they belong to it; the others are left out.
    """
    tokens, kept = special_tokens(languages, times=times), set(_in_text(times))
    added = [AddedToken(token, special=token not in kept, normalized=False) for token in tokens]
    return tokenizer.add_tokens([token for token in added if tokenizer.token_to_id(token.content) is None])


def _in_text(times: bool) -> list[str]:
    count = round(LAST_TIME / TIME_STEP) + 1 if times else 0
    return [SPEAKER, *(time_token(place * TIME_STEP) for place in range(count))]
