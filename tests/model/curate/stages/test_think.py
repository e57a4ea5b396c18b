"""Asking for chains: which recordings, what the writer reads, and what is kept of its reply."""

import pytest

from afn_model.curate.backends import CallError
from afn_model.curate.prompt_files import prompt_file
from afn_model.curate.stage import Failed
from afn_model.curate.stages.think import Think
from tests.model.curate.chained import ByRule, context, row, told


def test_chains_are_kept_as_they_were_given(tmp_path):
    one = row()
    given = [told(one), told(one, "no times"), {"question": "?", "answer": "x", "steps": [], "more": 1}]
    rules = ByRule(one, think=lambda asked: {"chains": given})
    (kept,) = Think(count=3).run([one], context(tmp_path, rules))
    (request,) = rules.asked
    assert kept.tally == {"chains": 3}
    (fewer,) = Think(count=2).run([one], context(tmp_path / "fewer", rules))
    assert fewer.tally == {"chains": 2, "chains lost: more than were asked for": 1}
    first, second, third = kept.fields["chains"]
    assert first["steps"] == given[0]["steps"]
    assert "start" not in second["steps"][0]
    assert set(third) == {"question", "answer", "steps", "model", "prompt", "annotation"}
    assert (first["model"], first["prompt"]) == ("rules", prompt_file("think").hash)
    assert first["annotation"] == request.result_id(rules.model())
    assert request.subject == one["source_id"]
    asked = request.messages[0]["content"]
    assert "\n70.0 to 80.0 s: A siren is heard, then a man speaks.\n" in asked
    assert "\nQuestions to write: 3.\n" in asked


def test_short_and_dull_recordings_are_not_asked_about(tmp_path):
    short, dull, long = row(110.0, "short"), row(name="dull"), row(120.0, "long")
    dull["merged"] = [{**one, "text": f"Rain {at % 3}."} for at, one in enumerate(dull["merged"])]
    empty = {**row(name="empty"), "merged": []}
    rules = ByRule(long)
    found = Think().run([short, dull, long, empty], context(tmp_path, rules))
    assert [len(one.fields["chains"]) for one in found] == [0, 0, 1, 0]
    assert [next(iter(one.tally)) for one in found] == [
        "recordings shorter than 120 s",
        "recordings of fewer than 4 different captions",
        "chains",
        "recordings of fewer than 4 different captions",
    ]
    assert len(rules.asked) == 1
    with pytest.raises(ValueError, match="least must be a finite number above 0"):
        Think(least=0)


def test_what_the_writer_does_not_answer(tmp_path):
    one = row()
    busy = CallError("busy", retryable=True)
    (failed,) = Think().run([one], context(tmp_path / "busy", ByRule(one, think=lambda asked: busy)))
    assert isinstance(failed, Failed)
    assert failed.retryable
    (kept,) = Think().run([one], context(tmp_path / "no", ByRule(one, think=lambda asked: "I'm sorry, I can't.")))
    assert (kept.fields, kept.tally) == ({"chains": []}, {"replies lost: refused": 1})
    (kept,) = Think().run([one], context(tmp_path, ByRule(one, think=lambda asked: {"chains": []})))
    assert kept.fields == {"chains": []}


def test_half_an_hour_is_one_request_with_the_prefix_of_other_stages(tmp_path):
    one = row(1800.0)
    said = "a woman asks where the keys are while a car passes and somebody laughs in the next room"
    one["merged"] = [{**each, "text": f"{each['text']} In part {at} {said}."} for at, each in enumerate(one["merged"])]
    assert len(one["merged"]) == 180
    rules = ByRule(one)
    (kept,) = Think().run([one], context(tmp_path, rules))
    text = rules.asked[0].messages[0]["content"]
    whole = prompt_file("merge_whole")
    head, tail = whole.text.split("$annotations")
    lines = text.removeprefix(head).split("\n\n")[0].splitlines()
    assert text.startswith(head)
    assert tail.startswith("\n\n")
    assert len(lines) == 180
    assert lines[-1].startswith("1790.0 to 1800.0 s: ")
    # Four characters are about a token of English: 180 captions of 30 words are 12,000 with all instructions.
    assert 7_000 < len(text) / 4 < 12_000
    assert kept.fields["chains"]
