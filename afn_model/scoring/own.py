"""Rewards of one's own: a Python function that scores a batch of answers, called in a process of its own."""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

WORKER = Path(__file__).with_name("own_worker.py")


class Unanswered(ValueError):
    """A function that did not come back; its process is gone, and with it what it knew."""


class OwnReward:
    """A function (prompts, answers, samples) → rewards, any finite numbers, one for each answer.

    The function is imported by a process of its own, which lives until it has to be stopped, so that nothing it does
    (memory, threads, an endless loop) reaches the trainer.

    Args:
        function: "package.module:name", to be found on ``sys.path`` or in the working directory.
    """

    def __init__(self, function: str):
        self.function = function
        self.worker: subprocess.Popen[bytes] | None = None

    def __call__(
        self,
        prompts: Sequence[str],
        answers: Sequence[str],
        samples: Sequence[dict[str, Any]],
        *,
        timeout: float = 60.0,
    ) -> list[float]:
        """The rewards of some answers.

        Args:
            prompts: what was asked, once for each answer.
            answers: the whole texts.
            samples: of each answer the record's ``id``, ``axis``, ``task``, ``source``, ``truth``, ``seconds``, its
                ``reward`` specification and ``recordings``.
            timeout: seconds for the call, the first one's import included.

        Raises:
            ValueError: one line with the function's name: it cannot be imported, raised, or returned something that is
                not as many numbers. NaN and infinity are returned as they are.
            Unanswered: it took too long, or its process ended.
        """
        request = {"prompts": list(prompts), "answers": list(answers), "samples": list(samples)}
        messages = [request]
        if self.worker is None:
            # Not in the thread below: the process ends with the thread that started it.
            command = [sys.executable, str(WORKER)]
            # A session of its own, which what the function starts belongs to.
            self.worker = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
            )
            messages.insert(0, {"function": self.function, "path": sys.path})
        found: list[dict[str, Any]] = []
        # A pipe that nobody reads blocks, and so does one that nobody writes to.
        thread = threading.Thread(target=exchange, args=(self.worker, messages, found), daemon=True)
        thread.start()
        thread.join(timeout)
        if thread.is_alive():
            self.close()
            raise Unanswered(f"reward {self.function}: no answer within {timeout:.3g} s")
        if not found:
            self.close()
            raise Unanswered(f"reward {self.function}: its process ended")
        if "error" in found[0]:
            raise ValueError(f"reward {self.function}: {found[0]['error']}")
        values = found[0]["values"]
        if len(values) != len(answers):
            raise ValueError(f"reward {self.function}: {len(values)} numbers for {len(answers)} answers")
        return values

    def check(self, timeout: float = 60.0) -> None:
        """Imports the function without calling it, and ends its process.

        Raises:
            ValueError: it cannot be imported, or not in time.
        """
        try:
            self([], [], [], timeout=timeout)
        finally:
            self.close()

    def close(self) -> None:
        """Ends the process, and those that the function has started."""
        if self.worker is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.worker.pid, signal.SIGKILL)
            self.worker.kill()
            self.worker.wait()
            self.worker = None


def exchange(worker: subprocess.Popen[bytes], messages: list[dict[str, Any]], found: list[dict[str, Any]]) -> None:
    """Sends messages and reads one line; nothing is found where the process has ended."""
    assert worker.stdin is not None
    assert worker.stdout is not None
    try:
        for message in messages:
            worker.stdin.write(json.dumps(message).encode() + b"\n")
        worker.stdin.flush()
        if line := worker.stdout.readline():
            found.append(json.loads(line))
    except (OSError, ValueError):
        return


def is_reward(value: Any) -> bool:
    """Whether a value can be trained on: a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
