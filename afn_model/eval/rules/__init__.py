"""Rules that score answers: those of the benchmarks' authors, with their quirks, and strict ones of ours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from importlib import import_module
from typing import Any

from afn_model.eval.items import AnsweredItem
from afn_model.eval.score import Rule, RuleError, Score, Tools
from afn_model.scoring.text import final_answer

# Name in the table -> module and function, (answered, tools, **options) -> Score.
RULES: dict[str, str] = {
    "choices": "choices:choices",  # ours: named extraction rules; unparsable is wrong
    "string-match": "string_match:string_match",  # MMAU, MMAR
    "mmsu-letter": "mmsu:letter",
    "mmau-pro": "mmau_pro:mmau_pro",
    "rul-muchomusic": "muchomusic:rul",
    "muchomusic": "muchomusic:original",
    "voicebench-letter": "voicebench:letter",
    "voicebench-refusal": "voicebench:refusal",
    "yes-no": "yes_no:strict",
    "cmm": "yes_no:cmm",
    "labels": "labels:labels",
    "label-retrieval": "labels:retrieval",
    "entailment-f1": "entailment:f1",
    "cider": "captions:cider",
    "judge": "judged:judged",
    "wer": "speech:wer",
    "cer": "speech:cer",
    "bleu": "translation:bleu",
    "cpwer": "talkers:cpwer",
    "der": "talkers:der",
    "event-f1": "events:event_f1",
}


def score(answered: Sequence[AnsweredItem], scorer: dict[str, Any], tools: Tools) -> Score:
    """The score by one scorer of the table. Rules see final answers: no reasoning, and nothing of an answer that was
    cut inside of it.

    Raises:
        RuleError: what it needs is missing here: a library, a judge or an embedder.
    """
    module, function = RULES[scorer["rule"]].split(":")
    rule: Rule = getattr(import_module(f"{__name__}.{module}"), function)
    said = [one if one.text is None else replace(one, text=final_answer(one.text)) for one in answered]
    options = {name: value for name, value in scorer.items() if name not in ("name", "rule")}
    try:
        return rule(said, tools, **options)
    except ImportError as error:
        library = str(error.name or error).partition(".")[0]
        raise RuleError(f"{scorer['rule']} needs {library}: pip install 'afn-kernels[eval]'") from None
