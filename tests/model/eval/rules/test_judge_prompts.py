"""Prompts of judges: a word that changes, changes the hash that reports give."""

from dataclasses import replace

import pytest

from afn_model.eval.rules import judge_prompts
from afn_model.eval.rules.judge_prompts import PROMPTS


@pytest.mark.parametrize("name", PROMPTS)
def test_each_word_is_in_the_hash(name, monkeypatch):
    prompt = PROMPTS[name]
    (aspect, words), *_ = prompt.rubrics.items()
    changed = [
        replace(prompt, rubrics={**prompt.rubrics, aspect: words[:-1]}),
        replace(prompt, rubrics={**prompt.rubrics, "style": "Judge the style."}),
        replace(prompt, shows=prompt.shows[1:]),
        replace(prompt, scale=(2, 9)),
    ]
    before = prompt.digest
    assert before not in {one.digest for one in changed}
    monkeypatch.setattr(judge_prompts, "SYSTEM", judge_prompts.SYSTEM + " ")
    assert prompt.digest != before
    assert prompt.shows[-1] == "response"
    low, high = prompt.scale
    assert 0 <= low < high
