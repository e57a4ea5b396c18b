"""A judge: a chat model behind an OpenAI-compatible endpoint that grades answers against a rubric."""

from __future__ import annotations

import http.client
import json
import math
import os
import queue
import re
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass

INSTRUCTION = (
    "You grade an answer about a recording against a rubric. You cannot hear the recording; trust the rubric. "
    "Reply with one whole number from 0 (worst) to 10 (best) and nothing else."
)
_GRADE = re.compile(r"\D*?(?<!-)(\d+(?:\.\d+)?)(?:\s*/\s*10)?\D*", re.DOTALL)
_AGAIN = (408, 409, 429)
MOST_DEADLINE = 480.0  # seconds: ranks wait for each other's grades, and a collective gives up after 600


@dataclass(frozen=True)
class Endpoint:
    """URL, timeouts and retries of the judge.

    Args:
        url: up to and without ``/chat/completions``, such as ``http://localhost:8000/v1``.
        model: the name the server knows it by.
        key_variable: environment variable that holds the access key; "" sends none.
        timeout: seconds for one request.
        retries: requests after the first.
        backoff: seconds before the first of them, doubled each time.
        concurrency: requests at a time.
        deadline: seconds for all answers of a step, retries included; those without a grade by then have failed.
    """

    url: str
    model: str
    key_variable: str = ""
    timeout: float = 30.0
    retries: int = 3
    backoff: float = 1.0
    concurrency: int = 8
    deadline: float = 240.0

    def __post_init__(self):
        if not self.url.startswith(("http://", "https://")) or not self.model:
            raise ValueError(f"judge: url {self.url!r} and model {self.model!r} are expected to name an endpoint")
        if not 0 < self.timeout < math.inf or self.retries < 0 or self.backoff < 0 or self.concurrency < 1:
            raise ValueError(f"judge: timeout, retries, backoff or concurrency is out of range: {self}")
        if not 0 < self.deadline <= MOST_DEADLINE:
            raise ValueError(
                f"judge: deadline is {self.deadline} s; more than 0 and at most {MOST_DEADLINE:g} are expected, "
                "for the other ranks wait"
            )
        if self.key_variable and not os.environ.get(self.key_variable):
            raise ValueError(f"judge: the environment variable {self.key_variable} is not set")


@dataclass(frozen=True)
class GradeRequest:
    """What is graded: an answer to a question, against a rubric."""

    question: str
    answer: str
    rubric: str


class Again(Exception):
    """A failure that another request may not have."""


@dataclass
class Judge:
    """Grades answers; ``failures`` counts those that got no grade, ``last_failure`` says why the last one did not."""

    endpoint: Endpoint
    failures: int = 0
    last_failure: str = ""

    def grades(self, cases: Sequence[GradeRequest]) -> list[float | None]:
        """Grades in [0, 1], in order; None where the endpoint gave none in time. Returns at the deadline at the latest.

        Requests under way then are left to threads that do not keep the process from ending.
        """
        ends = time.monotonic() + self.endpoint.deadline
        late = (None, f"{self.endpoint.url}: no grade within the deadline of {self.endpoint.deadline:g} s")
        answers: list[tuple[float | None, str]] = [late] * len(cases)
        waiting: queue.SimpleQueue[int] = queue.SimpleQueue()
        for index in range(len(cases)):
            waiting.put(index)

        def work() -> None:
            while time.monotonic() < ends:
                try:
                    index = waiting.get_nowait()
                except queue.Empty:
                    return
                answers[index] = self._patiently(cases[index], ends)

        threads = [
            threading.Thread(target=work, name=f"judge-{n}", daemon=True)
            for n in range(min(self.endpoint.concurrency, len(cases)))
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(max(0.0, ends - time.monotonic()))
        found = list(answers)  # a thread may still write to the other
        failed = [reason for grade, reason in found if grade is None]
        if failed:
            self.failures, self.last_failure = self.failures + len(failed), failed[-1]
        return [grade for grade, _ in found]

    def _patiently(self, case: GradeRequest, ends: float) -> tuple[float | None, str]:
        reason = ""
        for attempt in range(self.endpoint.retries + 1):
            if attempt:
                pause = self.endpoint.backoff * 2 ** (attempt - 1)
                if time.monotonic() + pause >= ends:
                    break
                time.sleep(pause)
            try:
                return ask(self.endpoint, case), ""
            except Again as error:
                reason = str(error)
            except ValueError as error:
                return None, str(error)
        return None, reason


def ask(endpoint: Endpoint, case: GradeRequest) -> float:
    """One request for one grade.

    Raises:
        Again: a time-out, a broken connection, a server that is busy or failing, or a reply without a grade.
        ValueError: the endpoint refuses the request.
    """
    messages = [
        {"role": "system", "content": INSTRUCTION},
        {"role": "user", "content": f"Rubric:\n{case.rubric}\n\nQuestion:\n{case.question}\n\nAnswer:\n{case.answer}"},
    ]
    body = {"model": endpoint.model, "messages": messages, "temperature": 0, "max_tokens": 16}
    headers = {"Content-Type": "application/json"}
    if endpoint.key_variable:
        headers["Authorization"] = f"Bearer {os.environ[endpoint.key_variable]}"
    url = endpoint.url.rstrip("/") + "/chat/completions"
    request = urllib.request.Request(url, json.dumps(body).encode(), headers)
    try:
        with urllib.request.urlopen(request, timeout=endpoint.timeout) as reply:
            text = json.loads(reply.read())["choices"][0]["message"]["content"]
    except urllib.error.HTTPError as error:
        kind = Again if error.code >= 500 or error.code in _AGAIN else ValueError
        raise kind(f"{url}: HTTP {error.code} {error.reason}") from None
    except (OSError, http.client.HTTPException) as error:
        raise Again(f"{url}: {error}") from None
    except (ValueError, KeyError, IndexError, TypeError):
        raise Again(f"{url}: the reply is no chat completion") from None
    return grade_in(text)


def grade_in(text: str) -> float:
    """The grade of a reply, 0 to 1.

    Raises:
        Again: not exactly one number from 0 to 10.
    """
    found = _GRADE.fullmatch(text) if isinstance(text, str) else None
    if found is None or float(found[1]) > 10:
        raise Again(f"the reply {text!r:.60} is no grade from 0 to 10")
    return float(found[1]) / 10
