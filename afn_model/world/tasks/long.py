"""Long recordings: captions by parts, needles, temporal and subscene questions, and informative segments of them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from afn_model.audio.frames import SAMPLE_RATE
from afn_model.world.phrases import number
from afn_model.world.record import Draft, Made, samples
from afn_model.world.scene import COMMON, Clip, Heard, Scene, scatter, shifted
from afn_model.world.tasks.think import TASKS, event_count, temporal

PART = 10  # seconds of a part of a caption
SHORT = (2.0, 10.0)
_MARGIN = 0.1  # seconds kept before and after the events of a segment


def long(draft: Draft) -> Made:
    """A caption, a needle, a temporal or a subscene question; temporal ones on short scenes too."""
    if draft.any_length and draft.rng.random() < 0.25:
        length, task = float(draft.rng.uniform(*SHORT)), "temporal"
    else:
        length, task = draft.length(), draft.pick(("caption", "needle", "temporal", "subscene"))
    scene = draft.scene(length)
    if task == "needle":
        return _needle(draft, scene)
    scatter(scene, event_count(draft.rng, length))
    clip = scene.clip()
    return {"caption": _caption, "temporal": _temporal, "subscene": _subscene}[task](draft, clip)


def _needle(draft: Draft, scene: Scene) -> Made:
    count = max(0, event_count(draft.rng, scene.seconds) - 1)
    word, event = scene.say(*draft.pick(COMMON))
    scatter(scene, count, words=0.0)
    spans = [(0.0, 0.0), *((e.start, e.end) for e in scene.events), (scene.seconds, scene.seconds)]
    need = event.end + 0.1
    gaps = [(a[1] + 0.05, b[0] - need) for a, b in pairwise(spans) if b[0] - need > a[1] + 0.05]
    # Where the sounds leave no room, the word is heard over them.
    start = draft.rng.uniform(*draft.pick(gaps)) if gaps else draft.rng.uniform(0, scene.seconds - event.end)
    scene.place(word, event, start)
    return draft.made("needle", [(draft.ask("needle"), event.label)], [scene.clip()])


def _temporal(draft: Draft, clip: Clip) -> Made:
    # Counting is for short scenes: a long one has more events than numbers have words.
    tasks = [task for task in TASKS if clip.seconds <= 12 or task not in ("count", "between")]
    kind, question, answer = temporal(draft, clip.events, tasks)
    return draft.made("temporal", [(question, answer)], [clip], truth={"question": question, "kind": kind})


def _subscene(draft: Draft, clip: Clip) -> Made:
    part = PART if clip.seconds >= 2 * PART else max(1, int(clip.seconds / 2))
    parts = in_parts(clip.events, part, int(clip.seconds // part))
    full = [i for i, labels in enumerate(parts) if labels]
    chosen = draft.pick(full) if full and draft.rng.random() < 0.85 else int(draft.rng.integers(len(parts)))
    question = draft.ask("subscene", str(chosen * part), str((chosen + 1) * part))
    return draft.made("subscene", [(question, listed(parts[chosen]))], [clip], truth={"metric": "f1"})


def _caption(draft: Draft, clip: Clip) -> Made:
    parts = in_parts(clip.events, PART, -(-len(clip.pcm) // (PART * SAMPLE_RATE)))
    values = {f"{PART * i} to {PART * (i + 1)} seconds": listed(labels) for i, labels in enumerate(parts)}
    answer = " ".join(f"{when}: {what}." for when, what in values.items())
    rewards = [{"kind": "caption", "values": {when: f"{when}: {what}" for when, what in values.items()}}]
    truth = {"metric": "segments", "values": values}
    return draft.made("caption", [(draft.ask("segments"), answer)], [clip], truth=truth, rewards=rewards)


def in_parts(events: Sequence[Heard], part: float, count: int) -> list[list[str]]:
    """Labels by the part of the recording in which they start."""
    found: list[list[str]] = [[] for _ in range(count)]
    for event in events:
        if event.start < part * count:
            found[int(event.start / part)].append(event.label)
    return found


def listed(labels: Sequence[str]) -> str:
    return ", ".join(labels) or "nothing"


def skills(draft: Draft) -> Made:
    """Questions about the most eventful segment of a longer recording; the record's audio is that part of it."""
    segment = None
    while segment is None:
        scene = draft.scene()
        # Uneven on purpose: half of the events crowd into a third of the recording.
        third = draft.scene(scene.seconds / 3)
        count = max(3, int(scene.seconds / draft.rng.uniform(2.5, 4)))
        scatter(third, (count + 1) // 2)
        scatter(scene, count // 2, words=0.5)
        _insert(scene, third, draft.rng.uniform(0, scene.seconds - third.seconds))
        clip = scene.clip()
        shortest, longest = segment_range(clip.seconds)
        segment = informative(clip.events, draft.rng.uniform(shortest, (shortest + longest) / 2), longest)
    start, end = (samples(time) / SAMPLE_RATE for time in segment)
    events = shifted(clip.events, start, end)
    task, question, answer, metric = _skill(draft, events)
    truth = {"metric": metric, "segment": [start, end], "events_per_second": len(events) / (end - start)}
    return draft.made(task, [(question, answer)], [clip], truth=truth, part=(start, end), events=events)


def _insert(scene: Scene, other: Scene, offset: float) -> None:
    """Puts the events of another scene in the place of those that were there."""
    low, high = offset - 0.2, offset + other.seconds + 0.2
    for event in scene.events:
        if event.start < high and event.end > low:
            scene.pcm[samples(event.start) : samples(event.end)] = 0
    scene.events = [event for event in scene.events if event.start >= high or event.end <= low]
    at = samples(offset)
    room = len(scene.pcm[at : at + len(other.pcm)])
    scene.pcm[at : at + room] += other.pcm[:room]
    scene.events += shifted(other.events, -at / SAMPLE_RATE, scene.seconds)


def segment_range(seconds: float) -> tuple[float, float]:
    """Shortest and longest segment of a recording: 10 to 30 s where it is long enough for that."""
    return (10.0, 30.0) if seconds >= 100 else (min(5.0, seconds / 3), 12.0)


def informative(events: Sequence[Heard], shortest: float, longest: float) -> tuple[float, float] | None:
    """The segment with most events per second that cuts none of them and holds at least two and at most nine.

    Score = events / seconds; of equals the earliest.
    """
    best, score = None, 0.0
    ends = np.array([event.end for event in events])
    for i, event in enumerate(events):
        start = max(0.0, event.start - _MARGIN)
        if i and ends[i - 1] > start:
            continue
        for j in range(i + 1, min(i + 9, len(events))):
            end = ends[j] + _MARGIN
            clear = j + 1 == len(events) or events[j + 1].start >= end
            if clear and shortest <= end - start <= longest and (j + 1 - i) / (end - start) > score:
                best, score = (start, end), (j + 1 - i) / (end - start)
    return best


def _skill(draft: Draft, events: Sequence[Heard]) -> tuple[str, str, str, str]:
    names = {kind: [event.label for event in events if event.kind == kind] for kind in ("sound", "word")}
    tasks = ["events"] + [f"{kind}s" for kind, labels in names.items() if labels]
    task = draft.pick(tasks)
    if task == "events":
        return task, draft.ask(task), number(len(events)), "exact"
    return task, draft.ask(task), listed(names[task[:-1]]), "f1"
