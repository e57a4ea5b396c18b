"""The report on a small speech model: what each stage reaches, and where the time went."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

LANGUAGES = ("en", "es", "de", "fr", "all")
AXES = {"single": "one word", "phrases": "2 to 5 words", "interpreted": "translated, 1 to 3 words"}
LIMIT_S = 1800


def markdown(results: Mapping) -> str:
    """The report as text, from what ``tiny_speech.run`` finds."""
    stages: Mapping[str, Mapping] = results["stages"]
    out = ["# A small AF-Whisper from nothing", "", paragraph(results), ""]
    out += ["## Word error rate of one talker, by language", ""]
    rows = [
        [stage, words, *(percent(found["wer"][axis].get(language)) for language in LANGUAGES), found["n"][axis]]
        for stage, found in stages.items()
        for axis, words in AXES.items()
    ]
    out += table(["after stage", "recordings", *LANGUAGES, "n"], rows)
    out += ["Captions of one or two sounds: word error rate "]
    out[-1] += ", ".join(f"{percent(found['wer']['captions']['all'])} after {stage}" for stage, found in stages.items())
    out += ["", "## Two talkers over each other", ""]
    rows = [
        [
            stage,
            percent(found["cpwer"]["speakers"]),
            percent(found["cpwer"]["transcribe"]),
            percent(found["cpwer"]["words_alone"]),
            found["n"]["overlaps"],
        ]
        for stage, found in stages.items()
    ]
    heads = ["after stage", "cpWER, asked for all talkers", "cpWER, asked to transcribe", "WER without talkers", "n"]
    out += table(heads, rows)
    out += [
        "cpWER is the word error rate with answered and true talkers paired as fits best; without talkers it is that "
        "of all words, one talker after another.",
        "",
        "## The talker who was enrolled",
        "",
    ]
    rows = [
        [
            stage,
            percent(found["target"]["wer"]),
            percent(found["target"]["wer_of_other"]),
            percent(found["target"]["chance"]),
            percent(found["target"]["nearer"]),
            found["n"]["target"],
        ]
        for stage, found in stages.items()
    ]
    heads = ["after stage", "WER", "WER against the other talker", "WER by chance", "nearer to the one meant", "n"]
    out += table(heads, rows)
    out += [
        "By chance is the mean of the two before it: what the same answers are worth where who is meant is a guess.",
        "",
    ]
    out += ["## Times of words", ""]
    rows = [
        [stage, *(f"{times[key]:.3f}" for key in ("start", "end")), percent(times["within"]), times["words"]]
        for stage, found in stages.items()
        if (times := found["word_times"])["words"]
    ]
    heads = ["after stage", "median error of starts, s", "of ends, s", "within 0.1 s", "words"]
    out += table(heads, rows) if rows else ["No recording of 2 to 5 words was written down without an error.", ""]
    out += [
        "Of 2 to 5 words that are written down without an error, by attention heads that training records choose.",
        "",
    ]
    out += ["## Answers to held-out records, the first of each task", ""]
    last = list(stages.values())[-1:]
    rows = [[one["axis"], one["true"], one["said"]] for found in last for one in found["examples"]]
    out += table(["task", "true", "said"], [[plain(str(cell)) for cell in row] for row in rows])
    return "\n".join(out).rstrip() + "\n"


def paragraph(results: Mapping) -> str:
    """What was run, where, and how long it took."""
    host, seconds = results["machine"], results["seconds"]
    text = f"Seed {results['seed']}, corpora and steps at {results['scale']:g} of their size, on {host['cores']} CPU "
    text += f"cores ({host['machine']}, {host['threads']} threads, load {host['load']} at the end), PyTorch "
    text += f"{host['torch']}, {host['date'][:10]}. "
    text += ", ".join(f"{name} {spent:,.0f} s" for name, spent in seconds.items())
    text += f": {sum(seconds.values()) / 60:.1f} minutes in all."
    return text + (
        " It was stopped and went on; time before that is not counted whole." if results["starts"] > 1 else ""
    )


def percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f} %"


def table(head: Sequence[str], rows: Sequence[Sequence]) -> list[str]:
    return [f"| {' | '.join(map(str, row))} |" for row in (head, ["---"] * len(head), *rows)] + [""]


def plain(text: str) -> str:
    """Text that a Markdown cell shows as it is."""
    return text.replace("|", "\\|").replace("<", "&lt;").replace(">", "&gt;")
