"""Stated times: how many are found in written sentences, and how many wrong ones are flagged in known scenes.

    python -m bench.stated_times --out bench/results/cpu/stated_times.json --model runs/demo

Scenes of the synthetic world have words and sounds in coloured noise, 12 to 30 dB below them. Answers are written about
each: with the times of its events, and with times that are wrong, behind the end, where nothing is heard, or reversed;
and "elsewhere", at random, a second or more from the event: where another one is heard only listening again can tell.
``--model`` is a folder of ``make demo``: its answers to the held-out questions about onsets are checked as they are.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from afn_model.audio.frames import SAMPLE_RATE
from afn_model.files import write_json
from afn_model.infer.stated_times import StatedTime, stated_times
from afn_model.infer.time_checks import AROUND, CheckedTime, Loudness, check_times
from afn_model.world.build import make

SENTENCES = Path(__file__).parents[1] / "tests/model/infer"
SCENES = {"cot": 60, "long": 60}
SEED = 1  # thresholds were chosen on the scenes of seed 0
APART = AROUND + 0.1  # seconds from an event's end to what is surely in silence
Span = tuple[float, float | None]

FORMS: tuple[Callable[[str, float, float | None], str], ...] = (
    lambda label, a, b: f"{label} at {a:.1f} s" if b is None else f"{label} from {a:.1f} s to {b:.1f} s",
    lambda label, a, b: f"[{_clock(a)}] {label}" if b is None else f"[{_clock(a)} - {_clock(b)}] {label}",
    lambda label, a, b: f"a {label} ({_clock(a)})" if b is None else f"a {label} between {a:.1f} and {b:.1f} seconds",
)


def _clock(seconds: float) -> str:
    tenths = round(10 * seconds)
    return f"{tenths // 600}:{tenths // 10 % 60:02d}.{tenths % 10}"


def precision_and_recall(rows: Sequence[Sequence[Any]]) -> dict[str, Any]:
    """Of ``stated_times`` in (text, [[start, end], ...], seconds) rows: a time is right with its start and its end."""
    right = found = wanted = 0
    for text, truth, *seconds in rows:
        left = Counter((round(start, 3), None if end is None else round(end, 3)) for start, end in truth)
        times = Counter(_rounded(one) for one in stated_times(text, *seconds))
        right += (left & times).total()
        found, wanted = found + times.total(), wanted + left.total()
    negatives = sum(not truth for _, truth, *_ in rows)
    share = {"precision": round(right / found, 4), "recall": round(right / wanted, 4)}
    return {"sentences": len(rows), "without_times": negatives, "times": wanted} | share


def _rounded(one: StatedTime) -> Span:
    return round(one.start, 3), None if one.end is None else round(one.end, 3)


def scenes(split: str, count: dict[str, int]) -> Iterator[tuple[np.ndarray, list[dict]]]:
    """Samples and events of so many records of each axis."""
    for axis, records in count.items():
        for index in range(records):
            made = make(axis, SEED, split, index)
            if len(made.pcm) == 1 and len(made.record["events"]):
                yield made.pcm[0], made.record["events"]


def right_times(events: Sequence[dict]) -> list[Span]:
    """A moment and a span of each event, in its order."""
    return [time for one in events for time in ((one["start"], None), (one["start"], one["end"]))]


def gaps(events: Sequence[dict], seconds: float) -> list[tuple[float, float]]:
    """Where nothing is heard for as long as a moment is looked at."""
    found, at = [], 0.0
    for start, end in [*sorted((one["start"], one["end"]) for one in events), (seconds, seconds)]:
        low, high = at + (APART if at else 0.0), start - APART if start < seconds else seconds
        if high - low > 0.2:
            found.append((low, high))
        at = max(at, end)
    return found


def wrong_times(events: Sequence[dict], seconds: float) -> dict[str, list[Span]]:
    """Times that the scene's truth says are wrong, by what is wrong."""
    silent: list[Span] = []
    for low, high in gaps(events, seconds):
        middle = (low + high) / 2
        silent.append((middle, None))
        if high - low > 1.5:
            silent.append((low, high))
    past: list[Span] = [(seconds + 1.0, None), (seconds * 1.5 + 1.0, None), (seconds - 0.2, seconds + 3.0)]
    reverse: list[Span] = [(one["end"], one["start"]) for one in events if one["end"] - one["start"] > 0.2]
    rng = np.random.default_rng(len(events))
    elsewhere: list[Span] = []
    for one in events:
        at = float(rng.uniform(0, seconds))
        if not one["start"] - 1 < at < one["end"] + 1:
            elsewhere.append((at, None))
    return {"past_end": past, "silent": silent, "reversed": reverse, "elsewhere": elsewhere}


def checked(loudness: Loudness, times: Sequence[Span], form: int) -> list[CheckedTime]:
    """The times, written into an answer, read from it again and checked."""
    text = ". ".join(FORMS[form % len(FORMS)]("bell", *time) for time in times) + "."
    found = stated_times(text, loudness.seconds)
    assert len(found) == len(times), text
    return check_times(found, text, [loudness])


def measure(split: str = "heldout", count: dict[str, int] | None = None) -> dict[str, Any]:
    """How many wrong times are flagged as what they are, and how many right ones are flagged."""
    flagged: Counter[str] = Counter()
    stated: Counter[str] = Counter()
    false: Counter[str] = Counter()
    number = background = 0
    for number, (pcm, events) in enumerate(scenes(split, count or SCENES), 1):
        loudness = Loudness(pcm)
        background += loudness.threshold > -79
        right = checked(loudness, right_times(events), number)
        stated["right"] += len(right)
        false.update(one.status for one in right if one.status != "ok")
        for kind, times in wrong_times(events, loudness.seconds).items():
            found = checked(loudness, times, number)
            stated[kind] += len(found)
            flagged[kind] += sum(one.status != "ok" if kind == "elsewhere" else one.status == kind for one in found)
    wrong = {
        kind: {"stated": stated[kind], "flagged": flagged[kind], "share": round(flagged[kind] / stated[kind], 4)}
        for kind in ("past_end", "silent", "reversed", "elsewhere")
    }
    right_row = {"stated": stated["right"], "flagged": false.total(), "as": dict(sorted(false.items()))}
    right_row["share"] = round(false.total() / stated["right"], 4)
    return {"scenes": number, "with_background_found": background, "wrong": wrong, "right": right_row}


def of_model(folder: Path, wrong: float = 1.0) -> dict[str, Any]:
    """Answers of a model that ``make demo`` trained, and which of their times are flagged.

    Args:
        folder: of its run.
        wrong: seconds from the truth that make an answer wrong; a right one is within half a second.
    """
    from afn_model import SamplingParams, Session
    from afn_model.audio.decode import load_audio

    held = folder / "corpus/heldout"
    records = [json.loads(line) for line in (held / "onset.jsonl").read_text(encoding="utf-8").splitlines()]
    audios = [load_audio(held / one["audios"][0]["path"]) for one in records]
    asked = []
    for one, pcm in zip(records, audios, strict=True):
        question = one["messages"][0]["content"].removeprefix("<sound>\n")
        parts = [{"type": "audio", "audio": pcm}, {"type": "text", "text": question}]
        asked.append([{"role": "user", "content": parts}])
    answers = Session(folder).answer(asked, SamplingParams(max_new_tokens=16))
    counts: Counter[str] = Counter()
    for one, pcm, answer in zip(records, audios, answers, strict=True):
        times = check_times(stated_times(answer.text, len(pcm) / SAMPLE_RATE), answer.text, [pcm])
        if len(times) != 1:
            counts["no time"] += 1
            continue
        off = abs(times[0].time.start - one["truth"]["seconds"])
        kind = "wrong" if off > wrong else "right" if off <= AROUND else "between"
        counts[kind] += 1
        counts[f"{kind}, flagged"] += times[0].status != "ok"
    return {"questions": len(records), "wrong_from": wrong, "right_within": AROUND} | dict(sorted(counts.items()))


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--model", type=Path)
    args = parser.parse_args(arguments)
    result: dict[str, Any] = {"sentences": {}}
    for name in ("stated_times", "stated_times_heldout"):
        lines = (SENTENCES / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
        result["sentences"][name] = precision_and_recall([json.loads(line) for line in lines])
    result["scenes"] = {split: measure(split) for split in ("train", "heldout")}
    if args.model:
        result["demo"] = of_model(args.model)
    print(json.dumps(result, indent=2))
    if args.out:
        write_json(args.out, result)


if __name__ == "__main__":
    main()
