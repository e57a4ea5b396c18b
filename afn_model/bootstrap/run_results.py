"""What a run from nothing has found so far, kept beside it: it goes on from where it stands."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from afn_model.files import write_json


class RunResults:
    """``report.json`` of a run's folder, and the seconds that its parts take.

    Args:
        out: the run's folder, made if absent.
        seed, scale: of the run.
        more: entries of a new run.

    Raises:
        ValueError: another seed or scale than the folder's.
    """

    def __init__(self, out: Path, seed: int, scale: float, **more: Any):
        out.mkdir(parents=True, exist_ok=True)
        self.file = out / "report.json"
        self.found: dict = {"seed": seed, "scale": scale, "starts": 0, "seconds": {}, "stages": {}, **more}
        if self.file.exists():
            self.found = json.loads(self.file.read_text("utf-8"))
            was = self.found["seed"], self.found["scale"]
            if was != (seed, scale):
                raise ValueError(f"{out}: there is a run with seed {was[0]} and scale {was[1]:g} in it")
        self.tick = time.perf_counter()

    def clock(self, name: str) -> None:
        """Counts the seconds since the last call to a part, and writes what is there."""
        before, self.tick = self.tick, time.perf_counter()
        seconds = self.found["seconds"]
        seconds[name] = round(seconds.get(name, 0.0) + self.tick - before, 1)
        write_json(self.file, self.found)
