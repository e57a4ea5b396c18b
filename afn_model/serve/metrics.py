"""Counters as Prometheus reads them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from afn_model.infer.request import Growing
from afn_model.serve.engine_thread import AnswerStream


class Metrics:
    """What the server counts.

    Args:
        model: its name, the label ``model_name``.
    """

    def __init__(self, model: str):
        self.model = model

    def stepped(self, seconds: float, grown: list[Growing]) -> None:
        """A step of the engine; called in its thread."""

    @contextmanager
    def request(self, stream: AnswerStream, endpoint: str) -> Iterator[None]:
        """A request, from when the engine has it to its end."""
        yield
