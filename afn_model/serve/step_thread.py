"""An engine in a thread of its own: what others want of it is done between its steps."""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Generic, TypeVar

from afn_model.serve.errors import ApiError

E = TypeVar("E")
G = TypeVar("G")
T = TypeVar("T")
FAILURES = 3  # steps in a row that may fail before the engine is given up
log = logging.getLogger("afn.serve")


class EngineDied(ApiError):
    """An engine's thread has ended, or its steps have failed again and again."""

    def __init__(self, name: str = "engine"):
        super().__init__(503, f"the {name} has died; the server must be started again", code="engine_died")


class StepThread(Generic[E, G]):
    """Steps an engine while it has work. What is done with it is said by ``busy``, ``step``, ``stepped``, ``settle``
    and ``leave``, which are called in the thread.

    Args:
        engine: nobody else may use it from now on but through ``call`` and ``post``.
        name: what errors call it.
    """

    def __init__(self, engine: E, name: str):
        self.engine, self.name = engine, name
        self.error: BaseException | None = None
        self.stepping_since: float | None = None
        self._wanted: queue.SimpleQueue[Callable[[E], object] | None] = queue.SimpleQueue()
        self._closing, self._closed = threading.Lock(), False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._stopping = False

    def busy(self) -> bool:
        """Whether there is something to step for."""
        raise NotImplementedError

    def step(self) -> list[G]:
        """Makes a step; what has grown in it."""
        raise NotImplementedError

    def stepped(self, seconds: float, grown: list[G]) -> None:
        """Passes on what has come of a step; of one that failed, nothing has grown."""
        raise NotImplementedError

    def settle(self) -> None:
        """Something was done with the engine between two steps."""

    def leave(self) -> None:
        """The thread ends: those who wait are told."""

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread, and what goes on in it."""
        self._stopping = True
        self._wanted.put(None)
        if self._thread.is_alive():
            self._thread.join(timeout=30)

    @property
    def alive(self) -> bool:
        """Whether anything is done with it."""
        return self._thread.is_alive() and not self._closed

    def post(self, work: Callable[[E], object]) -> None:
        """Has something done between two steps; nobody waits for it."""
        with self._closing:
            if not self._closed:
                self._wanted.put(work)

    async def call(self, work: Callable[[E], T]) -> T:
        """Does something with the engine between two of its steps.

        Raises:
            EngineDied: there is nobody to do it.
            Exception: what ``work`` raises.
        """
        loop, found = asyncio.get_running_loop(), asyncio.get_running_loop().create_future()

        def settle(result: object, error: BaseException | None) -> None:
            if found.done():
                return
            if error is None:
                found.set_result(result)
            else:
                found.set_exception(error)

        def wanted(engine: E) -> None:
            try:
                if self._closed:
                    raise EngineDied(self.name)
                result, error = work(engine), None
            except BaseException as raised:
                result, error = None, raised
            tell(loop, partial(settle, result, error))

        with self._closing:
            if self._closed:
                raise EngineDied(self.name)
            self._wanted.put(wanted)
        return await found

    def _run(self) -> None:
        failures = 0
        try:
            while not self._stopping:
                busy = self.busy()
                self._do_wanted(wait=not busy)
                if not busy:
                    continue
                grown: list[G] = []
                began = self.stepping_since = time.monotonic()
                try:
                    grown = self.step()
                    failures = 0
                except Exception as error:
                    log.exception("a step failed")
                    failures += 1
                    if failures == FAILURES:
                        raise EngineDied(self.name) from error
                finally:
                    self.stepping_since = None
                self.stepped(time.monotonic() - began, grown)
        except BaseException as error:
            self.error = error
            log.exception("the %s has died", self.name)
        finally:
            self._end()

    def _do_wanted(self, *, wait: bool) -> None:
        try:
            while (work := self._wanted.get(block=wait)) is not None:
                wait = False
                self._do(work)
        except queue.Empty:
            pass
        self.settle()

    def _do(self, work: Callable[[E], object]) -> None:
        try:
            work(self.engine)
        except Exception:
            log.exception("work for the %s failed", self.name)

    def _end(self) -> None:
        """Nobody waits for what will not come."""
        with self._closing:
            self._closed = True
        self.leave()
        while True:
            try:
                work = self._wanted.get_nowait()
            except queue.Empty:
                return
            if work is not None:
                self._do(work)


def tell(loop: asyncio.AbstractEventLoop, what: Callable[[], None]) -> None:
    """Has a loop call something, if it still runs."""
    with suppress(RuntimeError):
        loop.call_soon_threadsafe(what)
