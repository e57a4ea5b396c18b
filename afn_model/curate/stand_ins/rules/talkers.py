"""Questions in other words."""

from __future__ import annotations

from typing import Any

from afn_model.curate import identity
from afn_model.curate.stand_ins.rules.rule_input import Rule, RuleInput

FLAWED = 8  # one of so many


def paraphrase(asked: RuleInput) -> dict[str, Any]:
    """The question with polite words before it; one of eight, by the hash of the request, has lost a word that is
    quoted, or is about another speaker or time, and where it has neither, tells of a speaker that nobody asked for."""
    question = next(line for line in asked.text.splitlines() if line.strip())
    if identity.number(question) % FLAWED == 0:
        if '"' in question:
            before, quoted, after = question.split('"', 2)
            return {"question": f'{before}"{" ".join(quoted.split()[1:])}"{after}'}
        if any(letter.isdigit() for letter in question):
            return {"question": "".join("7" if letter.isdigit() else letter for letter in question)}
        return {"question": f"{question} Is it Speaker 2?"}
    return {"question": f"Listen closely. {question}"}


RULES: dict[str, Rule] = {"paraphrase": paraphrase}
