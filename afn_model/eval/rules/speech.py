"""Word and character error rates, under a normaliser that has a name, over a whole corpus."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version

from afn_model.eval.items import AnsweredItem
from afn_model.eval.loaders.files import UNSCORED
from afn_model.eval.rules.normalisers import normaliser as normaliser_of
from afn_model.eval.score import Part, RuleError, Score, Tools, ratio

SPACELESS = ("zh", "yue", "ja", "ko", "th", "lo", "km", "my")  # where spaces are no part of what is said
# How Audio Flamingo 3 and its like introduce a transcript: The spoken content of the audio is "...".
_SPOKEN = re.compile(
    r"\s*the (?:spoken|original) content of (?:the|this) (?:input )?(?:audio|speech|recording|clip) is\s*:?"
    r"\s*[\"'\u201c\u2018](?P<said>.*?)[\"'\u201d\u2019]?[.\s]*",
    re.IGNORECASE | re.DOTALL,
)


@dataclass(frozen=True)
class Edits:
    """What makes a text of its reference, in words or characters, and how many the reference has."""

    insertions: int
    deletions: int
    substitutions: int
    length: int

    @property
    def errors(self) -> int:
        return self.insertions + self.deletions + self.substitutions


Edited = Callable[[list[str], list[str]], list[Edits]]  # (references, outputs) -> edits of each


def transcript_in(text: str) -> tuple[str, str]:
    """The transcript in an answer, and the rule that found it: "whole" or "spoken content"."""
    found = _SPOKEN.fullmatch(text)
    return (found["said"].strip(), "spoken content") if found else (text, "whole")


def wer(
    answered: Sequence[AnsweredItem],
    tools: Tools,
    *,
    normaliser: str = "whisper@0.1.15",
    language: str = "en",
    merge_compounds: bool = False,
    sclite: bool = False,
) -> Score:
    """Word error rate in percent: (insertions + deletions + substitutions) ÷ words of the references, over all items.

    An item without an output counts as deletions of all its words. Left out are references of which the normaliser
    leaves nothing, and items that official scoring leaves out.

    Args:
        answered: items with one reference each.
        tools: not used.
        normaliser: a key of ``normalisers.NORMALISERS``.
        language: of the speech.
        merge_compounds: "white paper" equals "whitepaper", either way, as kaldialign has it: the Open ASR leaderboard's
            rule since its change 142 (huggingface/open_asr_leaderboard@d1e99b2, normalizer/eval_utils.py).
        sclite: aligned at NIST sclite's costs of 3, 3 and 4, which may name more errors than there need be.
    """
    if merge_compounds or sclite:
        edits, by = _kaldialign(merge_compounds, sclite)
    else:
        edits, by = partial(_jiwer, unit="words"), _name()
    return _scored(answered, "WER", normaliser, language, edits, by)


def cer(
    answered: Sequence[AnsweredItem],
    tools: Tools,
    *,
    normaliser: str = "whisper@0.1.15",
    language: str = "zh",
) -> Score:
    """Character error rate in percent, otherwise as ``wer``.

    Args:
        answered, tools, normaliser, language: as of ``wer``. Spaces are no characters in languages of ``SPACELESS``.
    """
    spaces = language not in SPACELESS

    def edits(true: list[str], said: list[str]) -> list[Edits]:
        if not spaces:
            true, said = (["".join(text.split()) for text in texts] for texts in (true, said))
        return _jiwer(true, said, "characters")

    by = f"{_name()}, spaces {'counted' if spaces else 'left out'}"
    return _scored(answered, "CER", normaliser, language, edits, by)


def _scored(
    answered: Sequence[AnsweredItem],
    metric: str,
    normaliser: str,
    language: str,
    edits: Edited,
    by: str,
) -> Score:
    rule = normaliser_of(normaliser, language)
    left_out, read, counted = Counter[str](), [], Counter[str]()
    places, true, said = [], [], []
    for place, one in enumerate(answered):
        text, how = transcript_in(one.text) if one.text is not None else ("", "no output")
        hypothesis = " ".join(rule(text).split())
        read.append(f"{how}: {hypothesis}" if hypothesis else how)
        if not one.item.references:
            left_out["without a reference"] += 1
            continue
        reference = " ".join(rule(one.item.references[0]).split())
        if why := one.item.extra.get(UNSCORED):
            left_out[why] += 1
        elif not reference:
            left_out["whose reference is empty"] += 1
        else:
            counted[how] += 1
            places.append(place)
            true.append(reference)
            said.append(hypothesis)
    found = edits(true, said) if true else []
    parts: list[Part | None] = [None] * len(answered)
    for place, one in zip(places, found, strict=True):
        parts[place] = (float(one.errors), float(one.length))
    total = [
        sum(getattr(one, name) for one in found) for name in ("insertions", "deletions", "substitutions", "length")
    ]
    unit = "words" if metric == "WER" else "characters"
    notes = ["{} insertions, {} deletions and {} substitutions in {} {}".format(*total, unit)]
    if count := counted["no output"]:
        notes.append(f"{count} items have no output: all their {unit} count as deletions")
    if count := counted["spoken content"]:
        notes.append(f"{count} transcripts were read inside of 'The spoken content of the audio is \"...\"'")
    notes += [f"{count} items left out: {why}" for why, count in sorted(left_out.items())]
    if not rule.name.startswith(normaliser):
        notes.append(f"{rule.name} in the place of {normaliser}")
    signature = f"{metric}, {rule.name}, {by}"
    return ratio(answered, parts, scale=100, extracted=read, signature=signature, notes=notes)


def _kaldialign(merge_compounds: bool, sclite: bool) -> tuple[Edited, str]:
    try:
        import kaldialign
    except ImportError:
        raise RuleError("this word error rate needs kaldialign: pip install 'afn-kernels[eval]'") from None

    def edits(true: list[str], said: list[str]) -> list[Edits]:
        pairs = [(one.split(), other.split()) for one, other in zip(true, said, strict=True)]
        found = [kaldialign.edit_distance(*pair, sclite, merge_compounds) for pair in pairs]
        return [Edits(*(int(one[name]) for name in ("ins", "del", "sub", "ref_len"))) for one in found]

    how = ", compounds merged" * merge_compounds + ", costs of sclite" * sclite
    return edits, f"kaldialign {version('kaldialign')}{how}"


def _name() -> str:
    try:
        return f"jiwer {version('jiwer')}"
    except ImportError:
        raise RuleError("error rates need jiwer: pip install 'afn-kernels[eval]'") from None


def _jiwer(true: list[str], said: list[str], unit: str) -> list[Edits]:
    import jiwer

    found = (jiwer.process_words if unit == "words" else jiwer.process_characters)(true, said)
    rows = []
    for chunks, reference in zip(found.alignments, found.references, strict=True):
        counts = Counter[str]()
        for chunk in chunks:
            removed, added = chunk.ref_end_idx - chunk.ref_start_idx, chunk.hyp_end_idx - chunk.hyp_start_idx
            counts[chunk.type] += max(removed, added)
        rows.append(Edits(counts["insert"], counts["delete"], counts["substitute"], len(reference)))
    return rows
