"""CIDEr-D, and a tokeniser like that of the Penn Treebank: what captions are scored with where no Java is."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from itertools import chain

import numpy as np

LONGEST = 4  # words of an n-gram
SIGMA = 6.0  # words
TOKENISER = "own-ptb-1"  # another number when tokens change

Words = Sequence[str]

_PLAIN = str.maketrans(
    {
        "’": "'",
        **dict.fromkeys("‘`“”«»", " "),
        **dict.fromkeys("–—", " -- "),
        "…": "...",
        "\u00ad": None,
        "£": "#",
        "€": "$",
        "½": " 1/2",
        "¼": " 1/4",
        "¾": " 3/4",
        "⅓": " 1/3",
        "⅔": " 2/3",
    }
)
_BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
_TITLES = "mr ms mrs dr prof gen sgt capt jr sr rev hon lt col gov st ave blvd rd mt ft bldg dept univ assn"
_SHORT = "etc vs al cf inc co corp ltd jan feb mar apr jun jul aug sep sept oct nov dec mon tue wed thu fri"
# Words that the treebank takes apart, at the place of the space.
_APART = {word.replace(" ", ""): word.split() for word in ("can not", "gon na", "got ta", "wan na", "gim me", "lem me")}
_CLITIC = r"'(?:s|m|d|re|ve|ll)(?!\w)"
_WORD = r"\w(?: (?! n't (?! \w) ) \w )*"
_TOKEN = re.compile(
    rf"""
    (?:[a-z]\.)+ (?! \w)                                    # a.m.  u.s.  (vitamin) c.
  | (?:{"|".join([*_TITLES.split(), *_SHORT.split()])})\. (?! \w) | no\. (?= \s* \d)
  | '\d\ds (?! \w) | 'n' | '(?: cause | em ) (?! \w)        # '80s  rock 'n' roll
  | 't (?= was | is ) | n't (?! \w) | {_CLITIC}
  | (?: o'clock | ma'am | d'you | [ld]'(?! {_CLITIC[1:]} ) \w+ ) (?! \w) | y' (?= \w)
  | (?: (?<! \w) [-+] )? \d+ (?: [.,:/] \d+ )+ (?: - \w+ )? # 1,000  10:30  3.2 of 3.2ghz  5.1-channel
  | (?: (?<! \w) [-+] ) \d+ (?! \w )                        # -5
  | [^\W\d]+ (?: \. [^\W\d]+ )+ (?! \w)                     # keyboard.then
  | [a-z]&[a-z] (?! \w)                                      # r&b
  | {_WORD} (?: [-‑/] {_WORD} )*                            # a word, but n't is one of its own
  | [?!]{{2,}} | \*+ | [()\[\]{{}}%$#&<>|=~^@/\\+±°]
    """,
    re.VERBOSE,
)


def tokens(text: str) -> list[str]:
    """Words of a caption: lower case, contractions taken apart (``it 's``, ``do n't``), punctuation dropped.

    It follows what coco-caption and caption-evaluation-tools call the PTB tokeniser: Stanford CoreNLP 3.4.1 with
    ``-lowerCase``, of which they drop ``. , : ; ? ! - --``, dots and quotes. Brackets stay as words, ``-lrb-``, as they
    do there, for the list of what is dropped has them in upper case. test_cider.py names where the
    two differ.
    """
    found: list[str] = []
    for token in _TOKEN.findall(text.lower().translate(_PLAIN)):
        found += _APART.get(token) or [str(_BRACKETS.get(token, token))]
    return found


def cider_d(candidates: Sequence[Words], references: Sequence[Sequence[Words]], *, sigma: float = SIGMA) -> np.ndarray:
    """CIDEr-D of each candidate [items], float64, 0 to 10.

    For n = 1 to 4 an n-gram w has the weight g(w) = count(w) · ln(N ÷ max(1, items with w in a reference)) in a
    sentence. Of a candidate c and a reference r, of lengths l,

        s_n(c, r) = e^(−(l_c − l_r)² ÷ 2σ²) · Σ_w min(g_c(w), g_r(w)) · g_r(w) ÷ (‖g_c‖ ‖g_r‖)

    and the score is 10 times the mean of s_n over n and over the item's references. N is the number of items, so that
    a set of one item has 0, and a score depends on the references of the whole set.

    Args:
        candidates: words of a caption for each item.
        references: words of one or more captions for each item.
        sigma: of the penalty for another length, in words.

    Raises:
        ValueError: an item without a reference, or another number of items.

    Source: Vedantam, Zitnick, Parikh, "CIDEr: Consensus-based image description evaluation", CVPR 2015, section 4; the
    clipping and the penalty of CIDEr-D as coco-caption computes them, whose numbers these are.
    """
    if len(candidates) != len(references):
        raise ValueError(f"{len(candidates)} candidates for the references of {len(references)} items")
    if bare := [place for place, some in enumerate(references) if not some]:
        raise ValueError(f"item {bare[0]} has no reference")
    counted = [[_counts(words) for words in some] for some in references]
    frequency = Counter(chain.from_iterable(set(chain.from_iterable(some)) for some in counted))
    total = np.log(len(references)) if references else 0.0
    # The logarithm of each number of items once: a set has millions of n-grams.
    rarity = total - np.log(np.maximum(1, np.arange(len(references) + 1)))
    scores = np.zeros(len(candidates))
    for place, words in enumerate(candidates):
        own = _weighted(_counts(words), frequency, rarity)
        for reference, count in zip(references[place], counted[place], strict=True):
            penalty = np.exp(-((len(words) - len(reference)) ** 2) / (2 * sigma**2))
            scores[place] += penalty * _likeness(own, _weighted(count, frequency, rarity)).mean()
        scores[place] *= 10 / len(references[place])
    return scores


def _counts(words: Words) -> Counter[tuple[str, ...]]:
    grams = (tuple(words[at : at + n]) for n in range(1, LONGEST + 1) for at in range(len(words) - n + 1))
    return Counter(grams)


def _weighted(counts: Counter, frequency: Counter, rarity: np.ndarray) -> list[dict[tuple[str, ...], float]]:
    """Weights of n-grams by n - 1."""
    found: list[dict[tuple[str, ...], float]] = [{} for _ in range(LONGEST)]
    for gram, count in counts.items():
        found[len(gram) - 1][gram] = count * float(rarity[frequency[gram]])
    return found


def _likeness(own: list[dict], other: list[dict]) -> np.ndarray:
    """Clipped cosine of two sentences for each n."""
    found = np.zeros(LONGEST)
    for n, (ours, theirs) in enumerate(zip(own, other, strict=True)):
        above = sum(min(weight, theirs[gram]) * theirs[gram] for gram, weight in ours.items() if gram in theirs)
        below = np.sqrt(sum(w * w for w in ours.values()) * sum(w * w for w in theirs.values()))
        found[n] = above / below if below else 0.0
    return found
