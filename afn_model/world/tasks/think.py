"""Time-grounded reasoning, the same questions put directly, and questions that need no recording."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from afn_model.prompt.questions import THINK
from afn_model.world.phrases import NUMBERS, TRANSLATIONS, named, number, seconds
from afn_model.world.record import Draft, Made
from afn_model.world.scene import LANGUAGES, Heard, scatter
from afn_model.world.sounds import SOUNDS
from afn_model.world.words import MORE_WORDS, WORDS

TASKS = ("after", "before", "first", "last", "count", "between", "order")
WITHIN = 1.0  # seconds that a stated time may be off


def event_count(rng: np.random.Generator, length: float) -> int:
    """How many events a scene gets: 2 to 5 in a short one, sparse in a long one."""
    if length <= 12:
        return int(rng.integers(2, int(np.clip(length / 1.1, 2, 5)) + 1))
    return int(length / rng.uniform(4, 8))


def temporal(draft: Draft, events: Sequence[Heard], tasks: Sequence[str] = TASKS) -> tuple[str, str, str]:
    """A question about when things are heard: task, question, answer.

    Whatever is named in the question is heard only once.
    """
    labels = [event.label for event in events]
    once = [i for i, label in enumerate(labels) if labels.count(label) == 1]
    for task in [tasks[i] for i in draft.rng.permutation(len(tasks))]:
        if task in ("first", "last"):
            return task, draft.ask(task), labels[0 if task == "first" else -1]
        if task == "count":
            return task, draft.ask(task), number(len(events))
        if task in ("after", "before"):
            step = 1 if task == "after" else -1
            if asked := [i for i in once if 0 <= i + step < len(events)]:
                i = draft.pick(asked)
                return task, draft.ask(task, name(events[i])), labels[i + step]
        if task in ("between", "order") and (pairs := _pairs(events, once, task)):
            if task == "between":
                # Every distance that occurs has the same chance: most pairs lie close together.
                distances = {(i, j): round(events[j].start - events[i].start) for i, j in pairs}
                apart = draft.pick(sorted(set(distances.values())))
                i, j = draft.pick([pair for pair, distance in distances.items() if distance == apart])
                return task, draft.ask(task, name(events[i]), name(events[j])), number(apart)
            i, j = draft.pick(pairs)
            first, second = (events[i], events[j]) if draft.rng.random() < 0.5 else (events[j], events[i])
            return task, draft.ask(task, name(first), name(second)), labels[i]
    return "first", draft.ask("first"), labels[0]


def _pairs(events: Sequence[Heard], once: list[int], task: str) -> list[tuple[int, int]]:
    found = []
    for place, i in enumerate(once):
        for j in once[place + 1 :]:
            apart = events[j].start - events[i].start
            # Times are given to 0.1 s: the difference must round the same way from those.
            if task == "order" or (0.5 < apart < 9.4 and abs(apart - round(apart)) < 0.38):
                found.append((i, j))
    return found


def name(event: Heard) -> str:
    return named(event.label, event.kind)


def written_timeline(events: Sequence[Heard]) -> str:
    """ "0.4 s bell, 1.9 s seven." """
    return ", ".join(f"{seconds(event.start)} {event.label}" for event in events) + "."


def cot(draft: Draft) -> Made:
    """A temporal question answered by way of a timeline."""
    length = draft.length()
    scene = draft.scene(length)
    scatter(scene, event_count(draft.rng, length))
    clip = scene.clip()
    task, question, answer = temporal(draft, clip.events)
    reply = f"<think>{written_timeline(clip.events)}</think><answer>{answer}</answer>"
    times = [[event.label, event.start] for event in clip.events]
    rewards = [
        {"kind": "format"},
        {"kind": "exact", "answer": answer},
        {"kind": "timestamps", "events": times, "within": WITHIN},
    ]
    truth = {"answer": answer, "question": question}
    return draft.made(task, [(f"{question} {THINK}", reply)], [clip], truth=truth, rewards=rewards)


def direct(record: dict) -> dict:
    """The twin of a cot record: the same recording and question, answered without reasoning; axis long, task temporal.

    Raises:
        ValueError: a record of another axis.
    """
    if record.get("axis") != "cot":
        raise ValueError(f"record {record.get('id')!r} belongs to axis {record.get('axis')!r}, not to cot")
    truth = record["truth"]
    messages = [
        {"role": "user", "content": f"<sound>\n{truth['question']}"},
        {"role": "assistant", "content": truth["answer"]},
    ]
    rewards = [{"kind": "exact", "answer": truth["answer"]}]
    changed = {"id": f"{record['id']}-direct", "axis": "long", "task": "temporal"}
    return record | changed | {"messages": messages, "rewards": rewards}


def text(draft: Draft) -> Made:
    """Translations, numbers, lists and written timelines."""
    return _TEXTS[draft.pick(tuple(_TEXTS))](draft)


def _translate(draft: Draft) -> Made:
    source = draft.pick(tuple(TRANSLATIONS))
    ((into, table),) = TRANSLATIONS[source].items()
    word = draft.pick(tuple(table))
    answer = table[word]
    if source != "en" and draft.rng.random() < 0.3 and list(table.values()).count(answer) == 1:
        source, into, word, answer = into, source, answer, word
    known = draft.rng.random() < 0.7
    if known:
        question = draft.ask("translate", word, LANGUAGES[into])
    else:
        question = f"Translate {word} from {LANGUAGES[source]} into {LANGUAGES[into]}."
    return draft.made("translate", [(question, answer)])


def _next(draft: Draft) -> Made:
    n = int(draft.rng.integers(9))
    if draft.rng.random() < 0.5:
        return draft.made("next", [(draft.ask("number_after", NUMBERS[n]), NUMBERS[n + 1])])
    return draft.made("next", [(draft.ask("number_before", NUMBERS[n + 1]), NUMBERS[n])])


def _sum(draft: Draft) -> Made:
    total = int(draft.rng.integers(10))
    part = int(draft.rng.integers(total + 1))
    if draft.rng.random() < 0.5:
        question, answer = draft.ask("plus", NUMBERS[part], NUMBERS[total - part]), total
    else:
        question, answer = draft.ask("minus", NUMBERS[total], NUMBERS[part]), total - part
    return draft.made("sum", [(question, NUMBERS[answer])])


def _list(draft: Draft) -> Made:
    pool = (*WORDS["en"], *SOUNDS)
    items = [pool[i] for i in draft.rng.permutation(len(pool))[: int(draft.rng.integers(2, 5))]]
    task = draft.pick(("list_first", "list_last"))
    return draft.made("list", [(draft.ask(task, ", ".join(items)), items[0 if task == "list_first" else -1])])


def _timeline(draft: Draft) -> Made:
    count = int(draft.rng.integers(2, 6))
    starts = np.cumsum(draft.rng.integers(3, 25, count)) / 10
    pool = [(label, "sound") for label in SOUNDS] + [(w, "word") for lang in ("en", "es") for w in MORE_WORDS[lang]]
    chosen = [pool[i] for i in draft.rng.permutation(len(pool))[:count]]
    events = [Heard(kind, label, start, start + 0.2) for (label, kind), start in zip(chosen, starts, strict=True)]
    if draft.rng.random() < 0.25:
        event = draft.pick(events)
        task, question, answer = "onset", draft.ask("onset", name(event)), seconds(event.start)
        truth = {"metric": "seconds", "seconds": float(event.start), "within": 0.05}
    else:
        task, question, answer = temporal(draft, events)
        truth = {}
    return draft.made(f"timeline_{task}", [(f"{written_timeline(events)} {question}", answer)], truth=truth)


_TEXTS = {"translate": _translate, "next": _next, "sum": _sum, "list": _list, "timeline": _timeline}
