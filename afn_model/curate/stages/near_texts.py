"""Recordings that say the same, by what was written down of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from afn_model.checks import number, whole
from afn_model.curate.stage import Context, Dropped, Kept, Outcome, Resources, Row, Stage
from afn_model.curate.stages.near_duplicates import Clusters, preference
from afn_model.curate.texts import texts_in, words_of

HASHES, SHINGLE, SEED = 128, 5, 1


@dataclass(frozen=True)
class NearTexts(Stage):
    """Drops recordings whose texts are nearly those of another one: the same talk recorded twice, the same caption
    under many files.

    J(A, B) = |A ∩ B| / |A ∪ B| of the sets of five words in a row, estimated by MinHash with 128 hashes (standard
    deviation at most 0.044). The preferred one stays: more allowed uses, higher rate, longer, smaller id.

    Args:
        texts: fields with texts; words of all are taken together.
        similar: J from which on it is the same text.
        words: fewer say too little to compare.

    Source: Broder, "On the resemblance and containment of documents", 1997.
    """

    name: ClassVar[str] = "near-texts"
    writes: ClassVar[tuple[str, ...]] = ("text_cluster",)
    drops: ClassVar[bool] = True
    whole: ClassVar[bool] = True
    resources: ClassVar[Resources] = Resources(seconds=1.0)

    texts: tuple[str, ...] = ("transcript",)
    similar: float = 0.8
    words: int = 20

    def __post_init__(self):
        number(self.similar, "similar", above=0)
        whole(self.words, "words", SHINGLE)

    @property
    def reads(self) -> tuple[str, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        return ("uses", "rate", "seconds", *self.texts)

    def run(self, rows: Sequence[Row], context: Context) -> list[Outcome]:
        try:
            from datasketch import MinHash, MinHashLSH
        except ImportError:
            raise ValueError("near-texts needs datasketch: pip install 'afn-kernels[curate]'") from None
        lsh: Any = MinHashLSH(threshold=self.similar, num_perm=HASHES)
        hashes: dict[str, Any] = {}
        found: dict[str, Outcome] = {}
        clusters = Clusters()
        for row in sorted(rows, key=preference):
            words = words_of(" ".join(text for field in self.texts for text in texts_in(row.get(field))))
            if len(words) < self.words:
                continue
            own = MinHash(HASHES, seed=SEED)
            own.update_batch({" ".join(words[at : at + SHINGLE]).encode() for at in range(len(words) - SHINGLE + 1)})
            near = [(own.jaccard(hashes[name]), name) for name in sorted(lsh.query(own))]
            alike, name = max(near, default=(0.0, ""))
            if alike >= self.similar:
                found[row["id"]] = Dropped("near duplicate text", f"{alike:.0%} like that of {name}")
                clusters.join(row["id"], name)
            else:
                hashes[row["id"]] = own
                lsh.insert(row["id"], own)
        return [found.get(row["id"]) or Kept({"text_cluster": clusters.of(row["id"])}) for row in rows]
