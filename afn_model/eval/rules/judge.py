"""A judge for rules: a chat model behind any OpenAI-compatible endpoint, every reply of which is kept."""

from __future__ import annotations

import json
import os
import random
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from afn_model.files import fingerprint_of
from afn_model.infer.elsewhere import ElsewhereError, complete, first_model, text_of

OF_A_PROMPT = (400, 413, 422)  # errors of HTTP that tell of one request, not of the endpoint
LONGEST_PAUSE = 60.0  # seconds between two tries, whatever the endpoint asks for


@dataclass(frozen=True)
class JudgeReply:
    """What the judge said to one prompt, and the model that it says it is, with settings that it would not take."""

    text: str
    served: str


@dataclass(frozen=True)
class _Ask:
    key: str
    body: dict[str, Any]  # of the request, without the model
    repeat: int


@dataclass
class RemoteJudge:
    """A ``score.AnswerGrader``. Replies are lines of a file, so that scoring again asks nothing again and a process
    that is killed goes on where it was; grades are read in them anew each time. What did not come is not asked for
    again by the same object, so that a report that scores in several ways waits for a dead endpoint once.

    Args:
        url: of the API, such as ``http://127.0.0.1:8000/v1``.
        model: its name there; the first that the endpoint lists if None.
        key: ``Authorization: Bearer KEY``, if there is one.
        cache: of the replies, JSON Lines, only ever appended to; several processes may share it. None keeps none.
        together: requests at a time.
        tries: of a request in all, where the endpoint is busy, silent or talks nonsense.
        backoff: seconds before the second try; doubled for each further one, at most ``LONGEST_PAUSE``.
        seconds: that a reply may take.
        give_up: requests in a row without any reply after which no more are sent.

    Attributes:
        name: models that gave the replies of the last ``grade``, as they call themselves.
        asked: requests that were answered, as against those found in the cache.
        failures: grades that are missing because no reply came, each counted once.
        unparsed: grades that are missing because none could be read in the reply, each counted once.
        last_failure: why the last reply did not come.
    """

    url: str
    model: str | None = None
    key: str | None = field(default=None, repr=False)
    cache: str | Path | None = None
    together: int = 8
    tries: int = 6
    backoff: float = 1.0
    seconds: float = 120.0
    give_up: int = 16
    name: str = field(init=False, default="")
    asked: int = field(init=False, default=0)
    last_failure: str = field(init=False, default="")

    def __post_init__(self):
        self._lock = threading.Lock()
        self._in_a_row, self._stop, self._refused = 0, threading.Event(), set[str]()
        self._lost, self._unread = set[str](), set[str]()
        self._kept, self._models = _read(self.cache)
        self.name = self.model or ""

    @property
    def failures(self) -> int:
        return len(self._lost)

    @property
    def unparsed(self) -> int:
        return len(self._unread)

    def grade(
        self,
        prompts: Sequence[str],
        parse: Callable[[str], float | None],
        *,
        system: str = "",
        repeats: int = 1,
        **settings: Any,
    ) -> list[list[float | None]]:
        """Grades of each prompt, ``repeats`` of them: None where no reply came, which ``failures`` counts, or where
        ``parse`` finds none in it, which ``unparsed`` counts.

        Args:
            prompts: of the user.
            parse: text of a reply -> its grade.
            system: message before each prompt, if there is one.
            repeats: replies to each prompt.
            settings: fields of the request, such as temperature, top_p and max_tokens.
        """
        known = self._knows_its_model()
        asks = [[self._ask_of(prompt, system, repeat, settings) for repeat in range(repeats)] for prompt in prompts]
        waiting = {ask.key: ask for some in asks for ask in some if ask.key not in self._kept}
        todo = [ask for key, ask in waiting.items() if known and key not in self._lost]
        self._in_a_row, self._stop = 0, threading.Event()
        pool = ThreadPoolExecutor(self.together, thread_name_prefix="judge")
        try:
            list(pool.map(self._answer, todo))
        finally:
            self._stop.set()
            pool.shutdown(cancel_futures=True)
        replies = [[self._kept.get(ask.key) for ask in some] for some in asks]
        grades = [[parse(reply.text) if reply else None for reply in some] for some in replies]
        came = [reply for some in replies for reply in some if reply]
        self.name = " + ".join(sorted({reply.served for reply in came})) or str(self.model)
        pairs = [(ask.key, grade) for n, some in enumerate(asks) for ask, grade in zip(some, grades[n], strict=True)]
        self._lost |= waiting.keys() - self._kept.keys()
        self._unread |= {key for key, grade in pairs if grade is None} - self._lost
        return grades

    def _knows_its_model(self) -> bool:
        if self.model is None:
            try:
                self.model = first_model(self.url, key=self.key, seconds=self.seconds)
            except ElsewhereError as error:
                self.last_failure = str(error)
                if len(self._models) == 1:  # what one judge has said can be read without it
                    (self.model,) = self._models
        return self.model is not None

    def _ask_of(self, prompt: str, system: str, repeat: int, settings: dict[str, Any]) -> _Ask:
        messages = [{"role": "system", "content": system}] if system else []
        body = {**settings, "messages": [*messages, {"role": "user", "content": prompt}]}
        told = json.dumps([self.model, prompt, system, settings, repeat], sort_keys=True)
        return _Ask(fingerprint_of([told]), body, repeat)

    def _answer(self, ask: _Ask) -> None:
        if self._stop.is_set():
            return
        try:
            reply = self._patiently(ask)
        except ElsewhereError as error:
            with self._lock:
                self._in_a_row += error.status not in OF_A_PROMPT
                self.last_failure = str(error)
                if self._in_a_row >= self.give_up:
                    self._stop.set()
            return
        without = [f"without {name}" for name in ask.body if name in self._refused]
        text, served = text_of(reply), " ".join([str(reply.get("model") or self.model), *without])
        row = {"key": ask.key, "model": self.model, "served": served, "repeat": ask.repeat, "text": text}
        told = {name: reply[name] for name in ("system_fingerprint", "usage") if reply.get(name)}
        with self._lock:
            self._in_a_row, self.asked = 0, self.asked + 1
            self._kept[ask.key] = JudgeReply(text, served)
            _append(self.cache, row | told)

    def _patiently(self, ask: _Ask) -> dict[str, Any]:
        for left in reversed(range(self.tries)):
            fields = {name: value for name, value in ask.body.items() if name not in self._refused}
            messages = fields.pop("messages")
            try:
                return complete(self.url, messages, model=self.model, key=self.key, fields=fields, seconds=self.seconds)
            except ElsewhereError as error:
                unsupported = error.status == 400 and "unsupported" in error.said.lower()
                if left and unsupported and (refused := {name for name in fields if f"'{name}'" in error.said}):
                    self._refused |= refused  # some models take no temperature: ``name`` says so
                    continue
                # A reply that is no JSON, or has no text, has no status either.
                if left == 0 or not (error.may_pass or error.status == 0):
                    raise
                pause = max(error.after, self.backoff * 2 ** (self.tries - 1 - left) * random.uniform(0.5, 1))
                if self._stop.wait(min(pause, LONGEST_PAUSE)):
                    raise
        raise AssertionError("the last try returns or raises")


def _read(cache: str | Path | None) -> tuple[dict[str, JudgeReply], set[str]]:
    """Replies by key, and the models they were asked of. What is no line of a cache (a torn one) is left out."""
    kept: dict[str, JudgeReply] = {}
    models: set[str] = set()
    if cache is not None:
        for row in _rows(Path(cache)):
            try:
                key, model, text, served = (row[name] for name in ("key", "model", "text", "served"))
            except (KeyError, TypeError):
                continue
            if all(isinstance(one, str) for one in (key, model, text, served)):
                kept[key] = JudgeReply(text, served)
                models.add(model)
    return kept, models


def _rows(path: Path) -> Iterator[Any]:
    if path.is_file():
        for line in path.read_bytes().split(b"\n"):
            try:
                yield json.loads(line)
            except (ValueError, RecursionError):
                continue


def _append(cache: str | Path | None, row: dict[str, Any]) -> None:
    """One write for each line, so that processes do not tear each other's; a line that was torn is ended first."""
    if cache is None:
        return
    path = Path(cache)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b", buffering=0) as file:
        if end := file.seek(0, os.SEEK_END):
            file.seek(end - 1)
        torn = end and file.read(1) != b"\n"
        file.write((b"\n" if torn else b"") + json.dumps(row).encode() + b"\n")
