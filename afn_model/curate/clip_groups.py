"""Groups of clips out of a pool: what a writer reads of them, how texts name them, and where they stand in messages."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from afn_model.curate import identity
from afn_model.curate.questions import Question
from afn_model.curate.timeline import Moment, Timeline, joined
from afn_model.infer.time_words import number_value

Clip = Mapping[str, Any]  # as ``stages.pools`` writes it
_CLIP = re.compile(r"\b(?:audio )?clips? (?:number )?#?(\d+|one|two|three|four)\b", re.I)
_LISTED = re.compile(r"\bclips ((?:(?:\d+|one|two|three|four)(?:,? and |,? or |, | to )?)+)", re.I)


def partners(pool: Mapping[str, Any]) -> list[Clip]:
    """A similar clip, a dissimilar one, and so on by turns; then what is left of one kind."""
    similar, dissimilar = pool["similar"], pool["dissimilar"]
    longest = max(len(similar), len(dissimilar))
    return [some[at] for at in range(longest) for some in (similar, dissimilar) if at < len(some)]


def group(own: Clip, others: Sequence[Clip]) -> list[Clip]:
    """A recording's clip with others, in an order by hash: its own is any of them, by a hash of all, so that another
    recording of the same clips has them in another order and asks something else."""
    sources = sorted(one["source_id"] for one in (own, *others))
    rest = sorted(others, key=lambda one: identity.of("order", sources, one["source_id"]))
    place = int(identity.of("place", sources)[:8], 16) % len(sources)
    return [*rest[:place], own, *rest[place:]]


def group_id(clips: Sequence[Clip]) -> str:
    return identity.of("clips", [[one["source_id"], one["start"], one["end"]] for one in clips])


def heard_in(clips: Sequence[Clip]) -> Timeline:
    """What the captions of clips say, clip after clip."""
    return joined(
        [
            Timeline(
                tuple(Moment(said["start"], said["end"], said["text"]) for said in one["captions"]),
                (round(one["end"] - one["start"], 3),),
                tuple(one["annotations"]),
            )
            for one in clips
        ]
    )


def places(clips: Sequence[Clip]) -> tuple[dict[str, Any], ...]:
    """Clips as products name them."""
    return tuple({name: one[name] for name in ("source_id", "start", "end")} for one in clips)


def numbers_in(text: str) -> set[int]:
    """Numbers of the clips that a text names: "clip 2", "clips 1 and 3"."""
    found = _CLIP.findall(text)
    for listed in _LISTED.findall(text):
        found += re.findall(r"\d+|one|two|three|four", listed, re.I)
    return {int(number_value(one)) for one in found}


def clips_there(one: Question, heard: Timeline) -> str:
    """It names no clip that does not exist."""
    texts = (one.question, *one.options)
    missing = any(not 0 < number <= len(heard.seconds) for text in texts for number in numbers_in(text))
    return "a clip that does not exist" if missing else ""


def sounds(numbers: Sequence[int]) -> str:
    """The places of clips, each with its number."""
    return "\n".join(f"Clip {number}: <sound-{number}>" for number in numbers)


def placed(text: str, clips: int) -> str:
    """A question with the clips that it is about: in the sentence that names them, where it names each once; else
    before or after it, by hash."""
    head, mark, rest = text.partition("\n")  # options, if there are any, name clips too
    found = [(int(one[1]), one.end()) for one in re.finditer(r"\bclip (\d+)\b", head, re.I)]
    drawn = identity.number("place", text) % 2
    if drawn and sorted(number for number, _ in found) == list(range(1, clips + 1)):
        for number, at in reversed(found):
            head = f"{head[:at]} <sound-{number}>{head[at:]}"
        return head + mark + rest
    every = sounds(range(1, clips + 1))
    return f"{text}\n{every}" if drawn else f"{every}\n{text}"
