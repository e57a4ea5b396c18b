"""Word and character error rates, under a normaliser that has a name, over a whole corpus."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from importlib.metadata import version

from afn_model.eval.items import AnsweredItem
from afn_model.eval.loaders.files import UNSCORED
from afn_model.eval.rules.normalisers import normaliser as normaliser_of
from afn_model.eval.score import Part, Score, Tools, ratio

SPACELESS = ("zh", "yue", "ja", "ko", "th", "lo", "km", "my")  # where spaces are no part of what is said
# How Audio Flamingo 3 and its like introduce a transcript: The spoken content of the audio is "...".
_SPOKEN = re.compile(
    r"\s*the (?:spoken|original) content of (?:the|this) (?:input )?(?:audio|speech|recording|clip) is\s*:?"
    r"\s*[\"'\u201c\u2018](?P<said>.*?)[\"'\u201d\u2019]?[.\s]*",
    re.IGNORECASE | re.DOTALL,
)


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
    how = ", compounds merged" * merge_compounds + ", costs of sclite" * sclite
    options = {"sclite_mode": sclite, "merge_compounds": merge_compounds}
    return _scored(answered, "WER", normaliser, language, str.split, how, **options)


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
    spaceless = language in SPACELESS
    how = f", spaces {'left out' if spaceless else 'counted'}"
    split = (lambda text: list("".join(text.split()))) if spaceless else list
    return _scored(answered, "CER", normaliser, language, split, how)


def _scored(
    answered: Sequence[AnsweredItem],
    metric: str,
    normaliser: str,
    language: str,
    split: Callable[[str], list[str]],
    settings: str,
    **options: bool,
) -> Score:
    import kaldialign

    rule = normaliser_of(normaliser, language)
    left_out, read, counted, edits = Counter[str](), [], Counter[str](), Counter[str]()
    parts: list[Part | None] = [None] * len(answered)
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
            found = kaldialign.edit_distance(split(reference), split(hypothesis), **options)
            edits.update({name: int(found[name]) for name in ("ins", "del", "sub", "ref_len")})
            parts[place] = (float(found["total"]), float(found["ref_len"]))
    unit = "words" if metric == "WER" else "characters"
    counts = f"{edits['ins']} insertions, {edits['del']} deletions and {edits['sub']} substitutions"
    notes = [f"{counts} in {edits['ref_len']} {unit}"]
    if count := counted["no output"]:
        notes.append(f"{count} items have no output: all their {unit} count as deletions")
    if count := counted["spoken content"]:
        notes.append(f"{count} transcripts were read inside of 'The spoken content of the audio is \"...\"'")
    notes += [f"{count} items left out: {why}" for why, count in sorted(left_out.items())]
    if not rule.name.startswith(normaliser):
        notes.append(f"{rule.name} in the place of {normaliser}")
    signature = f"{metric}, {rule.name}, kaldialign {version('kaldialign')}{settings}"
    return ratio(answered, parts, scale=100, extracted=read, signature=signature, notes=notes)
