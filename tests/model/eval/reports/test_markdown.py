"""The text of a report: what holds for all parts of a benchmark once, nothing empty, nothing that a table breaks on."""

import json
from dataclasses import replace

import pytest

from afn_model.eval.reports.markdown import LEGEND, duration, markdown, one_line
from afn_model.eval.reports.report import as_json
from afn_model.eval.reports.scored import scored
from afn_model.eval.score import Tools
from tests.model.eval.reports.test_scored import FACTS, ROW, answers


def no_constant(name):
    raise AssertionError(f"{name} is no JSON")


def test_a_run_with_errors_has_ranges_and_never_says_reproduced():
    some = answers("dog", "dog", "cat", None)
    some[3] = replace(some[3], error="a|b.wav:\nno such file")
    scores = scored([ROW], {"some": some}, Tools())
    text = markdown(scores, FACTS)
    assert "| 50.00 (errors wrong) to 66.67 (left out) |" in text
    assert "- errors: 1" in text
    assert "- an error: a\\|b.wav: no such file" in text
    assert "> **Not every item has an answer**" in text
    assert "reproduced" not in text
    assert as_json(scores, FACTS)["complete"] is False


@pytest.mark.parametrize("texts", [[None, None], []])
def test_nothing_but_missing_answers_is_a_report_too(texts):
    nothing = [replace(one, item=replace(one.item, answer=None)) for one in answers(*texts)]
    scores = scored([replace(ROW, hidden=True)], {"some": nothing}, Tools())
    text = markdown(scores, FACTS)
    assert "nan" not in text.lower()
    json.loads(json.dumps(as_json(scores, FACTS), allow_nan=False), parse_constant=no_constant)


def test_a_text_is_one_cell():
    assert one_line(" a\n b|c") == "a b\\|c"


def test_parts_of_a_benchmark_share_a_section():
    """Notes that all have are said once, those of one part or scorer with its name; another metric is another one."""
    parts = [
        replace(ROW, row=3, name="some-one", notes=("For all.",)),
        replace(ROW, row=3, name="some-two", notes=("For all.", "For two."), unknown=("the split",)),
        replace(ROW, row=3, name="some-three", metric="WER %", lower=True),
    ]
    text = markdown(scored(parts, {row.name: answers("dog", "cat", "dog", "x") for row in parts}, Tools()), FACTS)
    assert "\n## Some (one), Some (two)\n" in text
    assert "\n## Some (three)\n" in text
    assert text.count("- For all.\n") == 1
    assert "\n- some-two: For two.\n" in text
    assert "\n`some-one`, `some-two`: split test, prompt `choose`.\n" in text
    assert "\nsome-two: Not comparable with the paper: not published: the split.\n" in text
    assert "| part | accuracy % | items | score | 95 % | unparsed | rule and version |\n" in text
    assert "\n| some-two | strict | 4 | 50.00 |" in text
    assert "\n| some-one | items | official | strict | paper |\n" in text, "the sub-scores of each part by itself"
    assert "\n- ↓: lower is better\n" in text
    assert "\n\n\n" not in text


def test_what_is_empty_is_not_shown():
    row = replace(ROW, targets={}, groups=(), scorers=ROW.scorers[:1])
    text = markdown(scored([row], {"some": answers("dog", "dog")}, Tools()), FACTS)
    assert "| benchmark | scored / official | metric | score | 95 % | comparable |\n" in text
    assert "| accuracy % | items | score | 95 % | rule and version |\n" in text
    assert "sub-score" not in text
    assert LEGEND["score"] in text
    assert LEGEND["strict"] not in text
    assert "↓" not in text


def test_synthetic_rows_are_not_held_against_the_paper():
    facts = replace(FACTS, copies=frozenset({"some"}))
    text = markdown(scored([ROW], {"some": answers("dog", "dog")}, Tools()), facts)
    assert "difference" not in text
    assert "Not comparable with the paper: the rows are synthetic and none of the benchmark's.\n" in text


def test_what_was_not_asked_stands_before_the_sections():
    text = markdown(scored([ROW], {"some": answers("dog")}, Tools(), {"songs": "no songs.json"}), FACTS)
    assert text.index("## Not asked") < text.index("## Some")


def test_durations():
    assert [duration(hours) for hours in (0.001, 0.04, 0.999, 3.21, 1234)] == [
        "4 s",
        "2 min",
        "60 min",
        "3.2 h",
        "1,234.0 h",
    ]
