"""A judge for rules: a chat model behind any OpenAI-compatible endpoint, every reply of which is kept."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from afn_model.files import append_row, appended_rows, fingerprint_of
from afn_model.infer.elsewhere import ElsewhereError, first_model, text_of
from afn_model.infer.retries import WAITS, RetryingEndpoint

OF_A_PROMPT = (400, 413, 422)  # errors of HTTP that tell of one request, not of the endpoint


@dataclass(frozen=True)
class JudgeReply:
    """What the judge said to one prompt, and the model that it says it is, with settings that it would not take."""

    text: str
    served: str


@dataclass(frozen=True)
class _Ask:
    key: str
    messages: list[dict[str, Any]]
    settings: dict[str, Any]
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
        waits: seconds before each further try, where the endpoint is busy, silent or talks nonsense.
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
    waits: Sequence[float] = WAITS
    seconds: float = 120.0
    give_up: int = 16
    name: str = field(init=False, default="")
    asked: int = field(init=False, default=0)
    last_failure: str = field(init=False, default="")

    def __post_init__(self):
        self._lock = threading.Lock()
        self._in_a_row = 0
        self._endpoint = RetryingEndpoint(self.url, key=self.key, seconds=self.seconds, waits=self.waits, broken=True)
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
        self._in_a_row, self._endpoint.closed = 0, threading.Event()
        pool = ThreadPoolExecutor(self.together, thread_name_prefix="judge")
        try:
            list(pool.map(self._answer, todo))
        finally:
            self._endpoint.closed.set()
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
        told = json.dumps([self.model, prompt, system, settings, repeat], sort_keys=True)
        return _Ask(fingerprint_of([told]), [*messages, {"role": "user", "content": prompt}], settings, repeat)

    def _answer(self, ask: _Ask) -> None:
        if self._endpoint.closed.is_set():
            return
        try:
            reply = self._endpoint.complete(ask.messages, ask.settings, model=self.model)
        except ElsewhereError as error:
            with self._lock:
                self._in_a_row += error.status not in OF_A_PROMPT
                self.last_failure = str(error)
                if self._in_a_row >= self.give_up:
                    self._endpoint.closed.set()
            return
        without = [f"without {name}" for name in self._endpoint.without(ask.settings)]
        text, served = text_of(reply), " ".join([str(reply.get("model") or self.model), *without])
        row = {"key": ask.key, "model": self.model, "served": served, "repeat": ask.repeat, "text": text}
        told = {name: reply[name] for name in ("system_fingerprint", "usage") if reply.get(name)}
        with self._lock:
            self._in_a_row, self.asked = 0, self.asked + 1
            self._kept[ask.key] = JudgeReply(text, served)
            if self.cache is not None:
                append_row(Path(self.cache), row | told)


def _read(cache: str | Path | None) -> tuple[dict[str, JudgeReply], set[str]]:
    """Replies by key, and the models they were asked of. What is no line of a cache (a torn one) is left out."""
    kept: dict[str, JudgeReply] = {}
    models: set[str] = set()
    if cache is not None:
        for row in appended_rows(Path(cache)):
            try:
                key, model, text, served = (row[name] for name in ("key", "model", "text", "served"))
            except (KeyError, TypeError):
                continue
            if all(isinstance(one, str) for one in (key, model, text, served)):
                kept[key] = JudgeReply(text, served)
                models.add(model)
    return kept, models
