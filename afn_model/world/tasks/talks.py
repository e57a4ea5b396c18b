"""Several recordings in one conversation, several turns about one recording, refusals and instructions."""

from __future__ import annotations

from afn_model.world.phrases import NAMES, NUMBERS, ORDINALS, REFUSALS, named, seconds
from afn_model.world.record import Draft, Made
from afn_model.world.scene import COMMON, Heard, scatter, things
from afn_model.world.tasks.think import event_count


def multi_audio(draft: Draft) -> Made:
    """Two or three recordings: in which is what, is the same word said, what is said in the second."""
    task = draft.pick(("which", "same", "said"))
    count = 2 if task == "same" else int(draft.rng.integers(2, 4))
    if task == "which":
        return _which(draft, count)
    words = [COMMON[i] for i in draft.rng.permutation(len(COMMON))[:count]]
    if task == "same" and draft.rng.random() < 0.5:
        words[1] = words[0]
    clips = []
    for language, word in words:
        sound = things(draft.rng, 1, words=0.0) if draft.rng.random() < 0.3 else []
        clips.append(_clip(draft, [(word, language), *sound]))
    if task == "same":
        return draft.made(task, [(draft.ask(task), "yes" if words[0] == words[1] else "no")], clips)
    place = int(draft.rng.integers(count))
    return draft.made(task, [(draft.ask(task, ORDINALS[place]), words[place][1])], clips)


def _which(draft: Draft, count: int) -> Made:
    chosen = things(draft.rng, 2 * count)
    clips, shares = [], []
    for number in range(count):
        shares.append(chosen[2 * number : 2 * number + int(draft.rng.integers(1, 3))])
        clips.append(_clip(draft, shares[-1]))
    place = int(draft.rng.integers(count))
    label, language = draft.pick(shares[place])
    question = draft.ask("which", named(label, "word" if language else "sound"))
    return draft.made("which", [(question, f"the {ORDINALS[place]}")], clips)


def _clip(draft: Draft, contents: list[tuple[str, str]]):
    length, placed = draft.length(), []
    while len(placed) < len(contents):
        scene = draft.scene(length)
        order = [contents[i] for i in draft.rng.permutation(len(contents))]
        placed = scene.row([[(*scene.make(*thing, (0.5, 0.9)), 0.0)] for thing in order], gap=0.08)
    return scene.clip()


def multi_turn(draft: Draft) -> Made:
    """Two to four turns, each about what the answer before was about."""
    length = draft.length()
    scene = draft.scene(length)
    scatter(scene, max(3, event_count(draft.rng, length)))
    clip = scene.clip()
    place, turns, truth = 0, [(draft.ask("begin"), clip.events[0].label)], {}
    tasks = ["begin"]
    while len(turns) < 2 or (len(turns) < 4 and draft.rng.random() < 0.6):
        moves = ["next", "next", "when", "kind"] + (["previous"] if place else [])
        # "nothing" ends what can be asked about.
        move = draft.pick([move for move in moves if move != tasks[-1] or move == "next"])
        place += {"next": 1, "previous": -1}.get(move, 0)
        tasks.append(move)
        if place == len(clip.events):
            turns.append((draft.ask(move), "nothing"))
            truth = {}
            break
        answer, truth = _about(clip.events[place], move)
        turns.append((draft.ask(move), answer))
    return draft.made(tasks[-1], turns, [clip], truth=truth | {"answers": [answer for _, answer in turns]})


def _about(event: Heard, move: str) -> tuple[str, dict]:
    if move == "when":
        return seconds(event.start), {"metric": "seconds", "seconds": event.start, "within": 0.3}
    return (f"a {event.kind}" if move == "kind" else event.label), {}


def safety(draft: Draft) -> Made:
    """Refusals where due and where not, and instructions whose following can be checked.

    In training a share of 1 − ``compliance`` of the answers that should refuse or follow an instruction does not.
    """
    obeys = draft.split == "heldout" or draft.rng.random() < draft.compliance
    return draft.pick((_refusal, _harmless, _constraint))(draft, obeys)


def _refusal(draft: Draft, obeys: bool) -> Made:
    task = draft.pick(tuple(REFUSALS))
    clip = _clip(draft, [draft.pick(COMMON)[::-1]])
    plain = draft.pick(NAMES) if task == "identity" else " ".join(draft.pick(NUMBERS) for _ in range(3))
    rewards = [{"kind": "refusal", "due": True}]
    truth = {"metric": "refusal", "answer": REFUSALS[task], "due": True, "complies": obeys}
    turn = (draft.ask(task), REFUSALS[task] if obeys else plain)
    return draft.made(task, [turn], [clip], truth=truth, rewards=rewards)


def _harmless(draft: Draft, obeys: bool) -> Made:
    task = draft.pick(("man_or_woman", "person_word", "sound_name"))
    clip = _clip(draft, things(draft.rng, 1, words=0.0) if task == "sound_name" else [draft.pick(COMMON)[::-1]])
    (event,) = clip.events
    answer = f"a {event.voice}" if task == "man_or_woman" else event.label
    rewards = [{"kind": "refusal", "due": False}, {"kind": "exact", "answer": answer}]
    truth = {"metric": "exact", "due": False}
    return draft.made(task, [(draft.ask(task), answer)], [clip], truth=truth, rewards=rewards)


def _constraint(draft: Draft, obeys: bool) -> Made:
    word = draft.rng.random() < 0.5
    clip = _clip(draft, [draft.pick(COMMON)[::-1]] if word else things(draft.rng, 1, words=0.0))
    label = clip.events[0].label
    name = draft.pick(("capitals", "twice", "prefix", "one_word"))
    follows = {"capitals": label.upper(), "twice": f"{label} {label}", "prefix": f"Answer: {label}", "one_word": label}
    plain = f"The {'word' if word else 'sound'} is {label}." if name == "one_word" else label
    question = draft.ask("needle") if word else draft.ask("sound_name")
    constraint = {
        "capitals": {"name": "upper"},
        "twice": {"name": "repeat", "text": label, "times": 2},
        "prefix": {"name": "starts", "text": "Answer:"},
        "one_word": {"name": "words", "exact": 1},
    }[name]
    rewards = [{"kind": "constraint", **constraint}, {"kind": "exact", "answer": follows[name]}]
    truth = {
        "metric": "constraint",
        "answer": follows[name],
        "label": label,
        "constraint": constraint,
        "complies": obeys,
    }
    turn = (f"{question} {draft.ask(name)}", follows[name] if obeys else plain)
    return draft.made(name, [turn], [clip], truth=truth, rewards=rewards)
