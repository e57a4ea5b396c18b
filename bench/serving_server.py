"""A server for ``bench.serving``, in a process of its own: ``python -m bench.serving_server stub|tiny``.

With ``stub`` a step computes nothing: it waits for as long as a GPU would take, and every row draws the next of a few
tokens. It writes its port to stdout.
"""

from __future__ import annotations

import gc
import sys
import time
from typing import Any

from afn_model.infer.engine import Engine
from afn_model.infer.runner import LaunchedStep, ModelRunner
from afn_model.serve.app import create_app
from afn_model.serve.chat_reply import Choice
from afn_model.serve.engine_thread import EngineThread
from afn_model.serve.server import Server
from afn_model.serve.settings import Settings
from afn_model.serve.web import bound, run
from tests.tiny import tiny

STEP = 0.008  # seconds


class StubRunner(ModelRunner):
    """Draws the same tokens in turn."""

    words: tuple[int, ...] = ()

    def launch(self, step, forced, grammars) -> LaunchedStep:
        time.sleep(STEP)
        found = LaunchedStep()
        rows = zip(step.rows, step.places, step.draws, strict=True)
        found.known = [(one, self.words[place % len(self.words)], -1.0) for one, place, draws in rows if draws]
        return found


def stubbed(engine: Engine) -> Engine:
    """An engine whose steps wait."""
    assert engine.processor is not None
    said = engine.processor.tokenizer.encode("What is said? A dog barks.", add_special_tokens=False)
    StubRunner.words = tuple(said.ids)
    engine.runner.__class__ = StubRunner
    return engine


def tell_times() -> None:
    """``afn.timing.engine`` of answers: from when the engine is asked to the first token."""
    submit, extra = EngineThread.submit, Choice.extra

    async def submitting(self, add):
        posted = self.engine.clock()
        stream = await submit(self, add)
        stream.posted = posted
        return stream

    def telling(self) -> dict[str, Any]:
        found = extra(self)
        found["timing"]["engine"] = self.growing.times[0] - self.stream.posted
        return found

    EngineThread.submit, Choice.extra = submitting, telling


def main(kind: str) -> None:
    model, processor = tiny()
    engine = Engine(model, processor, pages=2000, slots=64, deterministic=kind == "tiny")
    if kind == "stub":
        stubbed(engine)
        tell_times()
    app = create_app(Server(engine, Settings(name="tiny", decoders=2)))
    gc.collect()
    gc.freeze()
    with bound("127.0.0.1", 0) as listening:
        run(app, listening, lambda: print(listening.getsockname()[1], flush=True))


if __name__ == "__main__":
    main(sys.argv[1])
