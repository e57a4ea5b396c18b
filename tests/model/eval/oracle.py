"""What somebody answers who knows the answers, in the form that a rule reads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from afn_model.eval.items import AnsweredItem, Item
from afn_model.eval.loaders.files import LETTERS
from afn_model.eval.reports.scored import ends
from afn_model.eval.rules.embedders import embedder
from afn_model.eval.score import Tools
from afn_model.eval.table import BenchmarkRow


class KindJudge:
    """Gives every answer the best grade of a scale, or the worst one."""

    name = "kind"

    def __init__(self, reply: Callable[[Any], str]):
        self.reply = reply

    def grade(self, prompts: Sequence[str], parse, *, system: str = "", repeats: int = 1, **settings):
        return [[parse(self.reply(prompt))] * repeats for prompt in prompts]


def letter(item: Item) -> str:
    return LETTERS[item.choices.index(str(item.answer))]


FORMS: dict[str, Callable[[Item], str]] = {
    "mmsu-letter": letter,
    "rul-muchomusic": lambda item: f"[[{letter(item)}]]",
    "muchomusic": lambda item: f"The correct answer is: ({letter(item)}) {item.answer}",
    "voicebench-letter": lambda item: f"The answer is {item.extra['reference']}.",
    "voicebench-refusal": lambda item: "I'm sorry, but I can't help with that.",
}


def gold(item: Item, rule: str) -> str:
    """The right answer to an item in the form that a rule reads."""
    if rule in FORMS:
        return FORMS[rule](item)
    return item.answer if item.answer is not None else (item.references or ("A good answer.",))[0]


def scale(row: BenchmarkRow, scorer: dict[str, Any]) -> tuple[float, float]:
    """Both ends of what a scorer may give."""
    low, dash, high = str(scorer.get("scale", "")).partition("-")
    return (float(low), float(high)) if dash else ends(row.metric)


def tools(row: BenchmarkRow, scorer: dict[str, Any], *, best: bool) -> Tools:
    """A judge that gives the best or the worst grade, and an embedder of equal words."""
    low, high = scale(row, scorer)
    grade = high if best else low
    embed, name = embedder("hashed-words")
    whole = "\n".join(
        f"{part}: {5 if best else 1}" for part in ("CORRECTNESS", "RELEVANCE", "COMPLETENESS", "CLARITY", "OVERALL")
    )
    return Tools(KindJudge(lambda prompt: whole if row.loader == "mmau-pro" else f"{grade:g}"), embed, name)


def answered(items: Sequence[Item], said: Sequence[str]) -> list[AnsweredItem]:
    return [AnsweredItem(item, text, finish="stop") for item, text in zip(items, said, strict=True)]
