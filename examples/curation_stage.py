"""A stage of one's own in a plan of ``afn curate``: recordings that are too loud end there.

    python examples/curation_stage.py

In a plan it is named by its module: ``- curation_stage:Loud: {most: -6}``, with PYTHONPATH=examples.
"""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from afn_model.audio.encode import wav
from afn_model.curate.executors import here
from afn_model.curate.plan import read_plan
from afn_model.curate.run import StageDone, run
from afn_model.curate.stage import Dropped, Kept, Stage

PLAN = """
stages:
  - discover: {folder: recordings}
  - fetch: {folder: recordings}
  - probe
  - curation_stage:Loud: {most: -6}
"""


@dataclass(frozen=True)
class Loud(Stage):
    """Writes ``headroom``, in dB; what was found is found anew where a parameter changes."""

    name: ClassVar[str] = "loud"
    reads: ClassVar[tuple[str, ...]] = ("loudness",)  # of probe
    writes: ClassVar[tuple[str, ...]] = ("headroom",)
    drops: ClassVar[bool] = True

    most: float = -10.0

    def run(self, rows, context):
        loud = [row["loudness"] for row in rows]
        return [Dropped("too loud") if one > self.most else Kept({"headroom": -one}) for one in loud]


def main(folder: str) -> StageDone:
    """What became of two recordings, one of them loud."""
    (Path(folder) / "recordings").mkdir()
    for level in (3_000, 30_000):
        (Path(folder) / "recordings" / f"{level}.wav").write_bytes(wav(np.full(32_000, level)))
    (Path(folder) / "plan.yaml").write_text(PLAN)
    return run(read_plan(f"{folder}/plan.yaml"), Path(folder) / "out", here)[-1]


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as made:
        done = main(made)
    print(f"{done.stage}: {done.kept} of {done.rows} recordings stay")
