"""Recordings that hold the same audio, whatever they were encoded with and wherever they were cut."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from afn_model.checks import number
from afn_model.curate.fingerprint import (
    SCORE,
    VERSION,
    Fingerprint,
    FingerprintIndex,
    SoundMatch,
    fingerprint_of,
    read_fingerprint,
    share_covered,
)
from afn_model.curate.stage import Context, Dropped, Failed, Kept, Outcome, Resources, Row, Stage

FOLDER = "fingerprints"  # of the run


@dataclass(frozen=True)
class Fingerprints(Stage):
    """Makes the fingerprint of a recording, a file of 1.44 MB for an hour; a run that is repeated finds it there."""

    name: ClassVar[str] = "fingerprints"
    version: ClassVar[int] = VERSION
    reads: ClassVar[tuple[str, ...]] = ("file", "source_id")
    writes: ClassVar[tuple[str, ...]] = ("fingerprint",)
    resources: ClassVar[Resources] = Resources(batch=16, seconds=8.0)

    def run(self, rows: Sequence[Row], context: Context) -> list[Outcome]:
        return [self._one(row, context.out) for row in rows]

    def _one(self, row: Row, out: Path) -> Outcome:
        place = f"{FOLDER}/{row['source_id']}-{VERSION}.npy"
        if not (out / place).is_file():
            try:
                fingerprint_of(out / row["file"]).save(out / place)
            except OSError as error:
                return Failed(f"{type(error).__name__}: {error.strerror}", retryable=True)
            except ValueError as error:
                return Failed(str(error))
        return Kept({"fingerprint": place})


@dataclass(frozen=True)
class NearDuplicates(Stage):
    """Drops recordings whose audio is in others that are kept.

    Recordings come in order of preference: more allowed uses, higher sampling rate, longer, smaller id. One is dropped
    where ``share`` of it is in those that were kept before, together; so a compilation is not lost because one of its
    clips has a better licence, and a clip is lost because the whole recording is there. One that stays has

        cluster: the smallest id of all that share audio with it, directly or through others: parts of a data set should
            not be divided within a cluster;
        overlaps: what it shares with recordings that were kept before it: [{"start", "end", "with", "there"}], seconds
            of it, an id and the second of that where the stretch begins. Without these, no audio is there twice.

    Args:
        share: of what can be recognised in a recording (its sure bits), 0 to 1.
        score: of a stretch that counts; a higher one finds longer stretches only.
    """

    name: ClassVar[str] = "near-duplicates"
    reads: ClassVar[tuple[str, ...]] = ("fingerprint", "uses", "rate", "seconds")
    writes: ClassVar[tuple[str, ...]] = ("cluster", "overlaps")
    drops: ClassVar[bool] = True
    whole: ClassVar[bool] = True
    resources: ClassVar[Resources] = Resources(seconds=8.0)

    share: float = 0.7
    score: float = SCORE

    def __post_init__(self):
        number(self.share, "share", above=0)
        number(self.score, "score", above=0)

    def run(self, rows: Sequence[Row], context: Context) -> list[Outcome]:
        prints = {row["id"]: read_fingerprint(context.out / row["fingerprint"]) for row in rows}
        index = FingerprintIndex(sorted(prints.items()))
        kept, clusters, found = set[str](), Clusters(), dict[str, Outcome | list[SoundMatch]]()
        for row in sorted(rows, key=preference):
            name, own = row["id"], prints[row["id"]]
            matches = index.matches(own, score=self.score, but=name)
            for one in matches:
                clusters.join(name, one.name)
            before = [one for one in matches if one.name in kept]
            share = share_covered(own, [one.stretch for one in before])
            if share >= self.share:
                found[name] = Dropped("near duplicate", explained(own, share, before))
            else:
                found[name] = before
                kept.add(name)
        outcomes: list[Outcome] = []
        for row in rows:
            one = found[row["id"]]
            if isinstance(one, list):
                told = [as_field(match) for match in one]
                one = Kept(
                    {"cluster": clusters.of(row["id"]), "overlaps": told}, {"overlaps": len(told)} if told else {}
                )
            outcomes.append(one)
        return outcomes


def preference(row: Row) -> tuple[Any, ...]:
    """Sorts first what is kept rather."""
    uses = sum(row["uses"].get(use) is True for use in ("train", "annotations", "audio"))
    return -uses, -row["rate"], -row["seconds"], row["id"]


def as_field(match: SoundMatch) -> dict[str, Any]:
    return {"start": match.start, "end": match.end, "with": match.name, "there": match.there}


def explained(own: Fingerprint, share: float, matches: Sequence[SoundMatch]) -> str:
    """What of a recording is where, that with the most first."""
    names = sorted({one.name for one in matches})
    shares = {name: share_covered(own, [one.stretch for one in matches if one.name == name]) for name in names}
    first = max(names, key=lambda name: shares[name])
    best = max((one for one in matches if one.name == first), key=lambda one: one.bits)
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return f"{share:.0%} of it is in {first}{more}: {best.start:g} to {best.end:g} s are there from {best.there:g} s"


class Clusters:
    """Names that belong together, directly or through others."""

    def __init__(self):
        self.leader: dict[str, str] = {}

    def of(self, name: str) -> str:
        """The smallest name of those that belong together."""
        while (leader := self.leader.setdefault(name, name)) != name:
            self.leader[name] = self.leader[leader]
            name = self.leader[name]
        return name

    def join(self, one: str, two: str) -> None:
        one, two = sorted((self.of(one), self.of(two)))
        self.leader[two] = one
