"""Annotators: what describes, transcribes and asks; a Python callable or any OpenAI-compatible endpoint.

A plan names them:

    annotators:
      captioner: {url: "http://127.0.0.1:8000/v1", model: audio-flamingo-next, revision: "2026-04", max_in_flight: 16}
      transcriber: {url: "http://127.0.0.1:8001/v1", api: transcriptions, key_env: SPEECH_KEY, timeout: 600}
      talkers: {call: "mypackage.diarise:turns", revision: "3"}

Every call goes through a cache of replies, a limit, retries, and a check of the reply, with one attempt to have it
repaired. ``found = context.annotators["captioner"](requests)``: a response for each request, in order.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from afn_model.checks import number, whole
from afn_model.curate.backends import Backend, CallError, Reply, backend_of
from afn_model.curate.replies import check
from afn_model.curate.reply_cache import CACHE, Record, ReplyCache
from afn_model.curate.requests import AnnotationRequest, AnnotationResponse
from afn_model.curate.spending import Spending, StopRun
from afn_model.curate.stage import NotReady

if TYPE_CHECKING:
    from afn_model.curate.plan import Plan

WAITS = (1.0, 2.0, 4.0, 8.0, 16.0)  # seconds before each further try, and up to as much again, where ``wait`` is 1
LOST = 16  # requests one after another that found nobody, after which it is given up
REPAIRS = 1
REPAIR = "This reply cannot be used: {wrong}. Reply once more to what was asked, with nothing else before or after it."
UNREPAIRED = ("refused",)


class Annotator:
    """An annotator with its cache, limits, retries and checks.

    Args:
        backend: what is asked.
        cache: of its replies.
        settings: of generation, in the place of those of requests.
        in_flight: requests at a time.
        per_minute: requests that are begun in a minute, at most.
        waits: seconds before each further try.
        spending: of the stage that asks.
    """

    def __init__(
        self,
        backend: Backend,
        cache: ReplyCache,
        *,
        settings: Mapping[str, Any] | None = None,
        in_flight: int = 8,
        per_minute: float | None = None,
        waits: Sequence[float] = WAITS,
        spending: Spending | None = None,
    ):
        self.backend, self.cache, self.settings = backend, cache, dict(settings or {})
        self.in_flight, self.waits, self.spending = in_flight, tuple(waits), spending
        self.gap, self.next = 60.0 / per_minute if per_minute else 0.0, 0.0
        self.lock, self.stop = threading.Lock(), threading.Event()
        self.open = self.lost = 0

    @cached_property
    def model(self) -> dict[str, str]:
        """{"id", "revision"}: part of what replies are kept by. An endpoint is asked for its name where the plan has
        none."""
        return self.backend.model()

    def __call__(self, requests: Sequence[AnnotationRequest]) -> list[AnnotationResponse]:
        """A response for each request, in order; what was answered before is not asked again.

        Raises:
            StopRun: the budget of the stage is spent; what was asked by then is kept.
            NotReady: the annotator can answer nothing: no key, no such model, nobody there.
        """
        if not requests:
            return []
        requests = [one.having(self.settings) for one in requests]
        ids = [one.result_id(self.model) for one in requests]
        asked = dict(zip(ids, requests, strict=True))
        records = {one: self.cache.get(one) or {"replies": [], "error": None, "attempts": 0} for one in asked}
        todo = [one for one in asked if not _settled(asked[one], records[one])]
        size = self.backend.batch
        groups = [todo[at : at + size] for at in range(0, len(todo), size)]
        self.stop.clear()
        self.open = 0
        if self.in_flight == 1 or len(groups) < 2:
            for group in groups:
                self._group(group, asked, records)
        else:
            pool = ThreadPoolExecutor(self.in_flight, "afn-annotator")
            try:
                for done in [pool.submit(self._group, group, asked, records) for group in groups]:
                    done.result()
            finally:
                self.stop.set()
                pool.shutdown(cancel_futures=True)
        return [_response(one, asked[one], records[one], self.model["id"]) for one in ids]

    def close(self) -> None:
        self.cache.close()

    def _group(
        self, group: Sequence[str], asked: Mapping[str, AnnotationRequest], records: Mapping[str, Record]
    ) -> None:
        """Asks until each has a reply of use, or none is to be had."""
        waits, after = iter(self.waits), 0.0
        while todo := [one for one in group if not _settled(asked[one], records[one])]:
            self._begin(len(todo))
            replies = self.backend.ask([_again(asked[one], records[one]) for one in todo])
            for one, reply in zip(todo, replies, strict=True):
                self._keep(one, asked[one], records[one], reply)
            errors = [one for one in replies if isinstance(one, CallError)]
            if fatal := next((one for one in errors if one.fatal), None):
                raise NotReady(f"{fatal}; the same command goes on from there")
            passing = [one for one in errors if one.retryable]
            self.lost = self.lost + len(todo) if passing and not any(one.status for one in passing) else 0
            if self.lost >= LOST:
                raise NotReady(f"{passing[0]}; the same command goes on from there")
            if passing:
                wait, after = next(waits, None), max(one.after for one in passing)
                if wait is None or self.stop.wait(max(after, wait * (1 + random.random()))):  # not all together again
                    return

    def _begin(self, count: int) -> None:
        """Waits until requests may be sent, and counts them as being on their way.

        Raises:
            StopRun: the budget is spent, or another thread has found it so.
        """
        with self.lock:
            pause = max(0.0, self.next - time.monotonic())
            self.next = max(self.next, time.monotonic()) + self.gap * count
        if self.stop.wait(pause) if pause else self.stop.is_set():
            raise StopRun("stopped")
        with self.lock:
            if self.spending is not None:
                self.spending.check()
                most = self.spending.most.get("calls")
                if most is not None and self.spending.total["calls"] + self.open + count > most and self.open:
                    raise StopRun(f"calls: {most:,.0f}")
            self.open += count

    def _keep(self, result_id: str, request: AnnotationRequest, record: Record, reply: Reply | CallError) -> None:
        """Stores what came, unless it says nothing of this request, and counts it as spent, no longer as on its way."""
        record["attempts"] += 1
        if isinstance(reply, CallError):
            record["error"] = {"said": reply.said, "retryable": reply.retryable}
        else:
            record["error"] = None
            record["replies"].append(reply)
        with self.lock:
            self.open -= 1
            if not (isinstance(reply, CallError) and reply.fatal):
                self.cache.put(result_id, request.subject, record)
            if self.spending is not None and not isinstance(reply, CallError):
                self.spending.add(calls=1, tokens=(reply.get("tokens_in") or 0) + (reply.get("tokens_out") or 0))


def _settled(request: AnnotationRequest, record: Record) -> bool:
    """Whether nothing more is to be asked."""
    if record["error"] is not None:
        return not record["error"]["retryable"]
    if not record["replies"]:
        return False
    wrong = check(record["replies"][-1], request.schema, request.language)[1]
    return not wrong or wrong in UNREPAIRED or len(record["replies"]) > REPAIRS


def _again(request: AnnotationRequest, record: Record) -> AnnotationRequest:
    """The request, or that for a repair of the last reply."""
    if not record["replies"]:
        return request
    last = record["replies"][-1]
    said = [{"role": "assistant", "content": last.get("text") or ""}] if last.get("text") else []
    wrong = check(last, request.schema, request.language)[1]
    more = [*said, {"role": "user", "content": REPAIR.format(wrong=wrong)}]
    return replace(request, messages=(*request.messages, *more))


def _response(result_id: str, request: AnnotationRequest, record: Record, model: str) -> AnnotationResponse:
    replies, error = record["replies"], record["error"]
    last = replies[-1] if replies else {}
    data, wrong = check(last, request.schema, request.language) if replies else (None, "")
    if error is not None:  # of a repair, perhaps
        data, wrong = None, error["said"]
    return AnnotationResponse(
        id=result_id,
        text=last.get("text") or "",
        data=data,
        model=last.get("model") or model,
        tokens_in=sum(one.get("tokens_in") or 0 for one in replies),
        tokens_out=sum(one.get("tokens_out") or 0 for one in replies),
        seconds=sum(one.get("seconds") or 0.0 for one in replies),
        error=wrong,
        retryable=bool(error and error["retryable"]),
        attempts=record["attempts"],
    )


def annotators_of(
    plan: Plan, out: Path, shard: str, spending: Spending | None = None
) -> Mapping[str, Callable[[Sequence[AnnotationRequest]], list[AnnotationResponse]]]:
    """The annotators of a plan by name, each with its cache of replies for a shard; they are made when they are used.

    Args:
        plan: names them.
        out: folder of the run, which recordings in requests are in.
        shard: that is worked on.
        spending: of the stage that asks.
    """
    return _Annotators(plan, Path(out), shard, spending)


class _Annotators(Mapping[str, Annotator]):
    def __init__(self, plan: Plan, out: Path, shard: str, spending: Spending | None):
        self.given, self.out, self.shard, self.spending = dict(plan.annotators or {}), out, shard, spending
        self.made: dict[str, Annotator] = {}

    def __getitem__(self, name: str) -> Annotator:
        if name not in self.made:
            self.made[name] = annotator_of(name, self.given[name], self.out, self.shard, self.spending)
        return self.made[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.given)

    def __len__(self) -> int:
        return len(self.given)


def annotator_of(
    name: str, told: Mapping[str, Any], out: Path, shard: str, spending: Spending | None = None
) -> Annotator:
    """An annotator as a plan describes it.

    Args:
        name: in the plan.
        told: {"call": "module:function", "options": its keyword arguments, "batch": requests in a call} or {"url",
            "api": "chat" or "transcriptions", "key_env": environment variable with the key, "timeout": seconds,
            "structured": whether schemas are sent as ``response_format``}; and for both "model", "revision",
            "settings" of generation, "max_in_flight", "per_minute", "wait": seconds before a second try.
        out, shard, spending: as of ``annotators_of``.

    Raises:
        NotReady: an unknown or wrong field, no such function, no such key.
    """
    told = dict(told)
    try:
        limits = {
            "settings": dict(told.pop("settings", None) or {}),
            "in_flight": whole(told.pop("max_in_flight", 1 if "call" in told else 8), "max_in_flight", 1, 1024),
            "per_minute": number(told.pop("per_minute", 1e9), "per_minute", above=0),
            "waits": _waits(number(told.pop("wait", WAITS[0]), "wait", above=0)),
        }
        backend = backend_of(told, out)
    except ValueError as error:
        raise NotReady(f"annotator {name}: {error}") from None
    return Annotator(backend, ReplyCache(out / CACHE / name / f"{shard}.sqlite"), spending=spending, **limits)


def _waits(first: float) -> list[float]:
    return [first * one for one in WAITS]
