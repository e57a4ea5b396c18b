"""How well the demo's model answers questions about clips that training never held."""

from __future__ import annotations

from afn_model.afnext import AFNext
from afn_model.bootstrap.lessons import conversation
from afn_model.prompt.processor import AFNextProcessor
from afn_model.scoring.answers import accuracy, onset_errors, onset_summary
from afn_model.world.mixer import DEMO, KINDS, Example

Scores = dict[str, dict[str, float]]


def answer(model: AFNext, processor: AFNextProcessor, clips: list[Example]) -> list[str]:
    """The model's answer to each clip's question, greedily."""
    answers = [""] * len(clips)
    by_length = sorted(range(len(clips)), key=lambda i: len(clips[i].pcm))
    for start in range(0, len(clips), 64):
        rows = by_length[start : start + 64]
        batch = processor([conversation(clips[i], [(clips[i].question, "")]) for i in rows])
        for i, tokens in zip(rows, model.generate(batch, max_new_tokens=12), strict=True):
            answers[i] = processor.decode(tokens)
    return answers


def score(clips: list[Example], answers: list[str]) -> Scores:
    """Accuracy of words and sounds, error of onsets, per kind of question."""
    scores: Scores = {}
    for kind in KINDS:
        rows = [i for i, clip in enumerate(clips) if clip.kind == kind]
        given = [answers[i] for i in rows]
        if kind == "onset":
            errors = onset_errors(given, [clips[i].onset for i in rows], worst=DEMO.seconds[1])
            scores[kind] = onset_summary(errors)
        else:
            scores[kind] = {"accuracy": accuracy(given, [clips[i].answer for i in rows])}
        scores[kind]["clips"] = len(rows)
    return scores


def table(results: dict[str, Scores]) -> str:
    """The scores as lines of text, one column per answerer."""
    lines = [f"{'held-out question':<28}" + "".join(f"{name:>18}" for name in results)]
    rows = [
        ("what is said", "speech", "accuracy", "{:.1%}"),
        ("which sound", "sound", "accuracy", "{:.1%}"),
        ("when: median error", "onset", "median_error_s", "{:.2f} s"),
        ("when: within 0.3 s", "onset", "within_0.3_s", "{:.1%}"),
    ]
    for label, kind, key, form in rows:
        values = "".join(f"{form.format(scores[kind][key]):>18}" for scores in results.values())
        lines.append(f"{label:<28}{values}")
    return "\n".join(lines)
