"""Music: which instrument, how many notes, up or down, fast or slow, and captions of it all."""

from __future__ import annotations

from afn_model.world.instruments import INSTRUMENTS
from afn_model.world.phrases import CATEGORIES, number
from afn_model.world.record import Draft, Made
from afn_model.world.scene import Scene, melody

FAST, SLOW = (0.17, 0.26), (0.48, 0.7)  # seconds from note to note


def music(draft: Draft) -> Made:
    """One melody, or several by different instruments one after another."""
    seconds = draft.length()
    most = min(len(INSTRUMENTS), int(seconds / 3))
    several = most >= 2 and (seconds > 12 or draft.rng.random() < 0.3)
    count = int(draft.rng.integers(2, most + 1)) if several else 1
    scene = draft.scene(seconds)
    instruments = [tuple(INSTRUMENTS)[i] for i in draft.rng.permutation(len(INSTRUMENTS))[:count]]
    parts = [_part(scene, instrument, seconds / count) for instrument in instruments]
    scene.row([block for _, block in parts], gap=0.1)
    clip, facts = scene.clip(), [fact for fact, _ in parts]
    if several:
        return _several(draft, clip, facts)
    (fact,) = facts
    task = draft.pick(("instrument", "notes", "direction", "tempo", "caption"))
    if task == "caption":
        return _caption(draft, clip, facts)
    return draft.made(task, [(draft.ask(task), fact[task])], [clip])


def _part(scene: Scene, instrument: str, seconds: float) -> tuple[dict[str, str], list]:
    fast, up = scene.rng.random() < 0.5, scene.rng.random() < 0.5
    period = scene.rng.uniform(*(FAST if fast else SLOW))
    notes = int(scene.rng.integers(2, min(6, int((seconds - 0.3) / period)) + 1))
    facts = {
        "instrument": instrument,
        "notes": number(notes),
        "tempo": "fast" if fast else "slow",
        "direction": "up" if up else "down",
    }
    return facts, melody(scene, instrument, notes, up=up, period=period)


def describe(fact: dict[str, str]) -> str:
    return f"The {fact['instrument']} plays {fact['notes']} {fact['tempo']} notes going {fact['direction']}."


def _caption(draft: Draft, clip, facts) -> Made:
    values = {key: value for fact in facts[:1] for key, value in fact.items()}
    for place, fact in enumerate(facts[1:], 2):
        values |= {f"{key}_{place}": value for key, value in fact.items()}
    answer = " Then: ".join(describe(fact) for fact in facts)
    truth = {"metric": "values", "values": values, "choices": {name: list(names) for name, names in CATEGORIES.items()}}
    return draft.made(
        "caption",
        [(draft.ask("music"), answer)],
        [clip],
        truth=truth,
        rewards=[{"kind": "caption", "values": values}],
    )


def _several(draft: Draft, clip, facts) -> Made:
    task = draft.pick(("instrument_first", "instrument_last", "caption"))
    if task == "caption":
        return _caption(draft, clip, facts)
    answer = facts[0 if task == "instrument_first" else -1]["instrument"]
    return draft.made(task, [(draft.ask(task), answer)], [clip])
