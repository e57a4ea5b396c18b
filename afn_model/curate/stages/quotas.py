"""Quotas: hours of each language, domain or channel, and the largest share of a channel."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from afn_model.checks import number, shown
from afn_model.curate.stage import Context, Dropped, Kept, Outcome, Resources, Row, Stage
from afn_model.hashing import MASK, key, text_key


@dataclass(frozen=True)
class Quotas(Stage):
    """Keeps as much as quotas allow, chosen by a threshold on the hash of seed and id.

    Within a quota the recordings up to some hash stay: the first that would exceed it, and what comes after it, go. A
    recording that is added moves the threshold down at most; it does not change which of two others comes first.

    Args:
        limits: {field: {value: hours}}, such as {"language": {"en": 1000, "*": 200}}: "*" is each other value; a field
            within a field is written "about.domain".
        hours: of all together.
        channel_share: largest share of the kept hours that one channel may have; a recording without a channel is one
            of its own.

    Raises:
        ValueError: a quota that is no number above 0; when it runs, a share that so few channels cannot keep.
    """

    name: ClassVar[str] = "quotas"
    drops: ClassVar[bool] = True
    whole: ClassVar[bool] = True
    resources: ClassVar[Resources] = Resources()

    limits: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    hours: float = 0.0
    channel_share: float = 1.0

    def __post_init__(self):
        if not isinstance(self.limits, Mapping) or not all(isinstance(one, Mapping) for one in self.limits.values()):
            raise ValueError(f"limits are {{field: {{value: hours}}}}, got {shown(self.limits)}")
        for name, one in self.limits.items():
            for value, most in one.items():
                number(most, f"limits of {name} {value}", above=0)
        number(self.hours, "hours", above=-1e-9)
        if not 0 < number(self.channel_share, "channel_share") <= 1:
            raise ValueError(f"channel_share is above 0 and up to 1, got {self.channel_share}")

    @property
    def reads(self) -> tuple[str, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        fields = [name.partition(".")[0] for name in self.limits]
        return tuple(dict.fromkeys(["seconds", "channel", *fields]))

    def run(self, rows: Sequence[Row], context: Context) -> list[Outcome]:
        drawn = {row["id"]: key(context.seed, text_key(row["id"])) / (MASK + 1) for row in rows}
        kept = sorted(rows, key=lambda row: (drawn[row["id"]], row["id"]))
        why: dict[str, Dropped] = {}

        def cut(group_of: Callable[[Row], str], most: Callable[[str], float | None], reason: str) -> None:
            nonlocal kept
            kept, gone = within(kept, group_of, most)
            why.update({row["id"]: Dropped(reason, group_of(row)) for row in gone})

        for name, limits in self.limits.items():
            cut(
                lambda row, name=name: value_of(row, name),
                lambda value, of=limits: of.get(value, of.get("*")),
                f"quota of {name}",
            )
        if self.hours:
            cut(lambda row: "", lambda _: self.hours, "quota of hours")
        while kept and self.channel_share < 1:
            most = self.channel_share * hours_of(kept)
            before = len(kept)
            cut(channel_of, lambda _, most=most: most * (1 + 1e-9), "share of the channel")
            if len(kept) == before:
                break
            if not kept:
                count = len({channel_of(row) for row in rows})
                raise ValueError(
                    f"no channel can have at most {self.channel_share:.3g} of what {count} channels have; "
                    "a larger channel_share, or more channels, are needed"
                )
        return [why[row["id"]] if row["id"] in why else Kept({}) for row in rows]


def within(
    rows: Sequence[Row], group_of: Callable[[Row], str], most: Callable[[str], float | None]
) -> tuple[list[Row], list[Row]]:
    """(kept, gone) of rows in order: of each group the first ones, up to so many hours; all where there is no limit."""
    hours, full = defaultdict[str, float](float), set[str]()
    kept, gone = list[Row](), list[Row]()
    for row in rows:
        group = group_of(row)
        limit, more = most(group), hours[group] + row["seconds"] / 3600
        if limit is not None and (group in full or more > limit):
            full.add(group)
            gone.append(row)
        else:
            hours[group] = more
            kept.append(row)
    return kept, gone


def value_of(row: Mapping[str, Any], name: str) -> str:
    """A field of a row as text, one within a field by "about.domain"; "" where there is none."""
    found: Any = row
    for part in name.split("."):
        found = found.get(part) if isinstance(found, Mapping) else None
    return "" if found is None else str(found)


def channel_of(row: Row) -> str:
    return row.get("channel") or f"without a channel: {row['id']}"


def hours_of(rows: Sequence[Row]) -> float:
    return sum(row["seconds"] for row in rows) / 3600
