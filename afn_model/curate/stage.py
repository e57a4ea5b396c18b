"""The contract of a stage: rows in, for each row one outcome out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar

from afn_model.curate.spending import Spending

Row = Mapping[str, Any]  # a recording: "id", and the fields that stages have written


@dataclass(frozen=True)
class Kept:
    """The row goes on.

    Args:
        fields: what the stage writes of it.
        tally: what was done inside of the row, to be counted over all: {"questions kept": 3, "questions blind": 2}.
    """

    fields: Mapping[str, Any]
    tally: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Dropped:
    """The row ends here, for a reason of the plan: few words that are counted, and what else is known."""

    reason: str
    detail: str = ""


@dataclass(frozen=True)
class Failed:
    """The row is quarantined: what went wrong, and whether another run may go better."""

    error: str
    retryable: bool = False


Outcome = Kept | Dropped | Failed


class NotReady(ValueError):
    """What every row needs is missing: a package, a file, an endpoint. The run ends, and no row is quarantined."""


@dataclass(frozen=True)
class Resources:
    """What a stage needs.

    Args:
        cpu: cores of a worker.
        gpu: GPUs of a worker.
        batch: rows that are run together; each batch is a checkpoint.
        seconds: of work for an hour of audio on one core, for estimates.
        calls, tokens_in, tokens_out: of an annotator for an hour of audio, for estimates.
    """

    cpu: float = 1
    gpu: float = 0
    batch: int = 1
    seconds: float = 0.0
    calls: float = 0.0
    tokens_in: float = 0.0
    tokens_out: float = 0.0


class CurationStage:
    """A stage: a frozen dataclass whose fields are its parameters in the plan.

    It is a function of its rows, its parameters and what its annotators answer; it keeps no state and raises nothing
    that one row causes: what does is the row's ``Failed``. Where all rows need what is missing it raises ``NotReady``.

    Class attributes:
        name: in plans.
        version: goes up when it would find something else; what it and the stages after it have found is then found
            anew.
        reads, writes: fields of rows.
        files: parameters that are paths of what ``depends`` has hashes of. In a plan a relative one starts from the
            folder of the plan; where the file is does not count, what is in it does.
        drops: whether it may drop rows.
        whole: it sees all rows at once, as finding duplicates needs. They are in memory together, so that it should
            read few and small fields: 200,000 rows are 0.2 GB where it reads five words of each, and 13 GB where it
            reads segments. It never gets no rows.
        resources: for scheduling and estimates.
    """

    name: ClassVar[str]
    version: ClassVar[int] = 1
    reads: ClassVar[tuple[str, ...]] = ()
    writes: ClassVar[tuple[str, ...]] = ()
    files: ClassVar[tuple[str, ...]] = ()
    drops: ClassVar[bool] = False
    whole: ClassVar[bool] = False
    resources: ClassVar[Resources] = Resources()

    def run(self, rows: Sequence[Row], context: Context) -> list[Outcome]:
        """One outcome for each row, in order."""
        raise NotImplementedError

    def depends(self) -> Mapping[str, Any]:
        """What else its outcomes depend on: hashes of prompts, models and files that parameters name."""
        return {}

    def parameters(self) -> dict[str, Any]:
        return {one.name: getattr(self, one.name) for one in fields(self)}  # type: ignore[arg-type]


class CurationSource(CurationStage):
    """The first stage of a plan: it finds recordings."""

    def find(self, context: Context) -> list[Row]:
        """Rows without an id: {"url": ..., ...}. The id is made of the url."""
        raise NotImplementedError


# As those who write stages call them.
Stage = CurationStage
Source = CurationSource


@dataclass
class Context:
    """What a stage may use while it runs.

    Args:
        out: folder of the run.
        shard: name of the shard that is worked on.
        annotators: by the name that the plan gives them.
        seed: of what is drawn.
        folder: that relative paths of the plan start from.
        spending: what this run has spent on the stage. An annotator calls its ``check`` before a request, and its
            ``add`` when the reply is stored.
    """

    out: Path
    shard: str = "all"
    annotators: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    folder: Path = Path()
    spending: Spending = field(default_factory=Spending)
