"""Quotas of clips: how many a channel may have."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from afn_model.checks import whole
from afn_model.curate.stage import Context, Kept, Outcome, Resources, Row, Stage
from afn_model.curate.stages.quotas import channel_of
from afn_model.hashing import key, text_key


@dataclass(frozen=True)
class ClipQuotas(Stage):
    """Writes ``mined``: the clips that stay, as ``mine`` has written them.

    Of each channel the best clips of its recordings come first and then the others, each in the order of the hash of
    seed and id; the first ``clips`` of them stay. A recording that is added makes room for itself at the end of that
    order at most; it does not change which of two others comes first. A recording without a channel is one of its own.

    Args:
        clips: of a channel, at most.

    Raises:
        ValueError: a quota that is no whole number above 0.
    """

    name: ClassVar[str] = "clip-quotas"
    reads: ClassVar[tuple[str, ...]] = ("clips", "channel")
    writes: ClassVar[tuple[str, ...]] = ("mined",)
    whole: ClassVar[bool] = True
    resources: ClassVar[Resources] = Resources()

    clips: int = 1000

    def __post_init__(self):
        whole(self.clips, "clips", 1)

    def run(self, rows: Sequence[Row], context: Context) -> list[Outcome]:
        queues = defaultdict[str, list[tuple[bool, int, str, str]]](list)
        for row in rows:
            leading = max(row["clips"], key=lambda one: (one["score"], one["id"]), default={"id": ""})["id"]
            queues[channel_of(row)] += [
                (one["id"] != leading, key(context.seed, text_key(one["id"])), row["id"], one["id"])
                for one in row["clips"]
            ]
        stay = {(row, clip) for queue in queues.values() for *_, row, clip in sorted(queue)[: self.clips]}
        found: list[Outcome] = []
        for row in rows:
            mined = [one for one in row["clips"] if (row["id"], one["id"]) in stay]
            gone = len(row["clips"]) - len(mined)
            tally = {"clips": len(mined)} | ({"clips beyond the quota of the channel": gone} if gone else {})
            found.append(Kept({"mined": mined}, tally))
        return found
