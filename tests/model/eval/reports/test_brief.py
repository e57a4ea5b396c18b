"""What a terminal shows of a run that has ended."""

from dataclasses import dataclass, replace
from pathlib import Path

from afn_model.eval.reports.brief import COPIES, brief, unanswered
from afn_model.eval.reports.scored import scored
from afn_model.eval.score import Tools
from tests.model.eval.reports.test_scored import FACTS, ROW, answers

REPORT = Path("out/report.md")


@dataclass
class DeadJudge:
    name: str = "somebody"
    failures: int = 3
    last_failure: str = "nobody answers"

    def grade(self, prompts, parse, **_):
        return [[None] for _ in prompts]


def told(rows, answered, tools=None, facts=FACTS, problems=None):
    return "\n".join(brief(scored(rows, answered, tools or Tools(), problems), facts, REPORT))


def test_scores_stand_beside_the_papers():
    text = told([ROW], {"some": answers("dog", "dog", "cat", "dog")})
    assert text.splitlines()[1].split() == ["some", "4", "accuracy", "%", "75.00", "70.00", "yes"]
    assert text.splitlines()[2:] == ["", f"Report: {REPORT}"]
    copies = told([ROW], {"some": answers("dog")}, facts=replace(FACTS, copies=frozenset({"some"})))
    assert copies.startswith(COPIES)
    assert " 70.00 " in copies
    assert "  no\n" in copies


def test_what_is_missing_is_said_with_what_to_do():
    some = answers("dog", "cat", None, None)
    some[2] = replace(some[2], error="a.wav:\nno such file")
    judged = replace(ROW, name="judged", scorers=({"name": "judge", "rule": "judge", "prompt": "librisqa"},))
    hidden = [replace(one, item=replace(one.item, answer=None)) for one in answers("dog")]
    rows = [ROW, judged, replace(ROW, name="hidden", hidden=True)]
    text = told(rows, {"some": some, "judged": answers("dog"), "hidden": hidden}, problems={"songs": "no songs.json"})
    assert "25.00 to 50.00" in text
    for said in (
        "some: 1 of 4 items have an error, such as a.wav: no such file\n",
        "1 of 6 items are not asked yet: the same afn bench run goes on.\n",
        "Not asked: songs. afn bench doctor ",
        "No number for judged: a judge is needed: --judge-url",
        "No number for hidden: the answers are hidden; submissions/",
        "afn bench score out, with what is missing",
    ):
        assert said in text


def test_errors_of_many_benchmarks_are_a_few_lines():
    rows = [replace(ROW, name=f"some-{n}") for n in range(7)]
    lost = [replace(answers(None)[0], error="no such file")]
    text = told(rows, {row.name: lost for row in rows})
    assert text.count("items have an error, such as no such file") == 5
    assert "2 more benchmarks have errors" in text


def test_a_judge_that_does_not_reply_is_said_to():
    tools = Tools(judge=DeadJudge())
    assert "The judge did not reply to 3 prompts: nobody answers." in told([ROW], {"some": answers("dog")}, tools)
    assert unanswered(scored([ROW], {}, tools)) == 3
    assert unanswered(scored([ROW], {}, Tools())) == 0
