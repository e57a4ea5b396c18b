"""Pools: for each recording clips of others, some that are described alike and some that are not."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from afn_model.checks import named, number, whole
from afn_model.curate.splits import check_heldout, split_of
from afn_model.curate.stage import Context, Kept, Outcome, Resources, Row, Stage
from afn_model.curate.text_vectors import SCALE, nearest, whole_numbers
from afn_model.curate.texts import words_of
from afn_model.curate.timeline import timeline
from afn_model.hashing import key, text_key

HASHED_WORDS = "afn_model.curate.text_vectors:hashed_words"
_DRAWS, _AMONG = 8, 2  # that are drawn, and that are dissimilar, for each dissimilar one that is kept
Clip = Mapping[str, Any]


@dataclass(frozen=True)
class PoolClips(Stage):
    """Writes ``pool_clip``: the clip that stands for a recording in pools, the one with the highest score, the first
    of several: {"source_id", "start", "end", "captions": [{"start", "end", "text"}], "annotations"}, the times of
    captions in seconds from the start of the clip; None where no clip has a caption.

    Args:
        letters: of a caption, at most; it ends with a whole sentence, or with a whole word where the first is longer.
    """

    name: ClassVar[str] = "pool-clips"
    reads: ClassVar[tuple[str, ...]] = ("source_id", "seconds", "mined", "merged", "segments")
    writes: ClassVar[tuple[str, ...]] = ("pool_clip",)
    resources: ClassVar[Resources] = Resources(batch=64, seconds=0.1)

    letters: int = 400

    def __post_init__(self):
        whole(self.letters, "letters", 20, 100_000)

    def run(self, rows: Sequence[Row], context: Context) -> list[Outcome]:
        return [self._one(row) for row in rows]

    def _one(self, row: Row) -> Kept:
        for clip in sorted(row["mined"], key=lambda one: (-one["score"], one["start"])):
            start, end = clip["start"], clip["end"]
            inside = {one["id"] for one in row["segments"] if one["start"] < end and one["end"] > start}
            merged = [one for one in row["merged"] if one["segment"] in inside]
            heard = timeline(merged, row["segments"], row["seconds"]).part(start, end)
            if heard.moments:
                captions = [
                    {"start": one.start, "end": one.end, "text": shortened(one.text, self.letters)}
                    for one in heard.moments
                ]
                told = {"source_id": row["source_id"], "start": start, "end": end, "captions": captions}
                return Kept({"pool_clip": told | {"annotations": list(heard.annotations)}}, {"clips": 1})
        return Kept({"pool_clip": None}, {"recordings without a clip that has a caption": 1})


@dataclass(frozen=True)
class Pools(Stage):
    """Writes ``pool``: {"own": the clip of the recording, "similar": clips of others, most alike first, "dissimilar":
    clips of others, least alike first}, clips as ``PoolClips`` writes them; None where the recording has no clip.

    Two clips are alike by the cosine of the embeddings of their captions. Similar ones are the nearest of all. So that
    dissimilar ones are not the same few for everyone, they are the least alike of twice as many that are drawn by hash.
    Clips with the same words count as one: none is a partner of another, and of a group of them one is drawn. Partners
    are of the same split, as the export leaves out what is heard across it: ``heldout`` and ``split_by`` are those of
    the export.

    A pool depends on all other recordings: one that comes or is taken down may change the pools of others, which are
    then asked about anew.

    200,000 recordings with 256 dimensions need 0.2 GB for vectors, twice that while they are made, 0.06 GB for products
    and about 1.5 GB for rows and pools; 2 · 10¹⁰ pairs take about 5 minutes of a core and the words 1.5 (measured on
    40,000 and 20,000). On disk a pool has 10 to 20 KB.

    Args:
        similar, dissimilar: clips of each kind, at most; fewer where there are no more.
        embedding: "module:function", a list of texts -> [texts, dimensions].
        alike: cosine from which on two clips are similar; below they are dissimilar. Embeddings of language models need
            a higher one.
        heldout, split_by: see ``Export``.
    """

    name: ClassVar[str] = "pools"
    writes: ClassVar[tuple[str, ...]] = ("pool",)
    whole: ClassVar[bool] = True
    resources: ClassVar[Resources] = Resources(seconds=0.05)

    similar: int = 8
    dissimilar: int = 8
    embedding: str = HASHED_WORDS
    alike: float = 0.3
    heldout: float = 0.01
    split_by: str = "source_id"

    def __post_init__(self):
        whole(self.similar, "similar", 1, 1000)
        whole(self.dissimilar, "dissimilar", 1, 1000)
        if not -1 < number(self.alike, "alike") < 1:
            raise ValueError(f"alike is a cosine between -1 and 1, got {self.alike}")
        check_heldout(self.heldout)
        named(self.embedding, "embedding")

    @property
    def reads(self) -> tuple[str, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        return tuple(dict.fromkeys(("source_id", "pool_clip", self.split_by)))

    def run(self, rows: Sequence[Row], context: Context) -> list[Outcome]:
        splits: dict[str, dict[str, Clip]] = defaultdict(dict)  # the clip of each recording, which rows may share
        for row in rows:
            if row["pool_clip"]:
                splits[split_of(row, self.split_by, self.heldout)][row["source_id"]] = row["pool_clip"]
        pools = {name: pool for clips in splits.values() for name, pool in self._pools(clips, context.seed).items()}
        return [self._kept(pools.get(row["source_id"])) for row in rows]

    def _kept(self, pool: Mapping[str, Any] | None) -> Kept:
        if pool is None:
            return Kept({"pool": None}, {"recordings without a clip": 1})
        tally = {f"{kind} clips": len(pool[kind]) for kind in ("similar", "dissimilar")}
        return Kept({"pool": pool}, {"pools": 1, **tally})

    def _pools(self, clips: Mapping[str, Clip], seed: int) -> dict[str, dict[str, Any]]:
        """The pools of one split, by source id."""
        groups: dict[str, list[str]] = defaultdict(list)  # source ids by what their captions say
        for source in sorted(clips):
            groups[" ".join(words_of(_text(clips[source])))].append(source)
        members = sorted(groups.values())
        vectors = whole_numbers(
            named(self.embedding, "embedding")([_text(clips[sources[0]]) for sources in members]), len(members)
        )
        near = nearest(vectors, self.similar, self.alike)
        found = {}
        for place, sources in enumerate(members):
            for source in sources:
                own = key(seed, text_key(source))
                far = self._far(vectors, place, own)
                kinds = {"similar": near[place], "dissimilar": far}
                found[source] = {"own": clips[source]} | {
                    kind: [clips[members[other][key(own, other) % len(members[other])]] for other in places]
                    for kind, places in kinds.items()
                }
        return found

    def _far(self, vectors: np.ndarray, place: int, own: int) -> list[int]:
        most = _DRAWS * self.dissimilar
        if len(vectors) <= most:
            drawn = sorted(range(len(vectors)), key=lambda other: key(own, other))
        else:
            drawn = list(dict.fromkeys(key(own, number) % len(vectors) for number in range(most)))
        alike = dict(zip(drawn, (vectors[drawn] @ vectors[place]).tolist(), strict=True))
        far = [other for other in drawn if other != place and alike[other] < self.alike * SCALE**2]
        return sorted(far[: _AMONG * self.dissimilar], key=alike.__getitem__)[: self.dissimilar]


def shortened(text: str, letters: int) -> str:
    """The first sentences of a text that have no more letters together; else its first words."""
    if len(text) <= letters:
        return text
    head = text[: letters + 1]
    end = max(head.rfind(f"{mark} ") for mark in ".!?")
    return head[: end + 1] if end > 0 else head[:letters].rpartition(" ")[0] or head[:letters]


def _text(clip: Clip) -> str:
    return " ".join(one["text"] for one in clip["captions"])
