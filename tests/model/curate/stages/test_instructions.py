"""Instructions: answers that keep their form and are in the captions become records, the others are counted."""

from collections import Counter

import pytest

from afn_model.curate import identity
from afn_model.curate.constraint_texts import FORMS
from afn_model.curate.stage import Kept
from afn_model.curate.stages.instructions import Instructions
from afn_model.scoring.constraints import CONSTRAINTS
from afn_model.scoring.metrics import score
from afn_model.scoring.rewards import check, reward
from tests.model.curate.stages.asked_texts import rules, told
from tests.model.curate.stages.heard import context

ALL = Instructions(share=1.0)


def clips(row, count):
    row["mined"] = [
        {"id": f"{row['id']} {n}", "start": 10.0 * (n % 2), "end": 10.0 * (n % 2) + 10.0} for n in range(count)
    ]
    return row


def test_answers_in_every_form_and_every_flaw_is_counted():
    asked, requests = rules()
    row = clips(told(), 160)
    (kept,) = ALL.run([row], asked)
    products = kept.fields["instructions"]
    lost = {name.removeprefix("answers lost: "): n for name, n in kept.tally.items() if " lost" in name}
    assert len(products) + sum(lost.values()) == len(requests) == 160
    # Every answer that tells of something else is caught, and every plain one but for those that keep their form so.
    numbers = [identity.number(one.messages[0]["content"]) % 8 for one in requests]
    assert lost.pop("not in the captions") == numbers.count(4) > 0
    plain = [one for one, number in zip(requests, numbers, strict=True) if number == 0]
    told_plainly = {"A man speaks, then a bell is heard.", "A woman laughs loudly."}
    kept_plainly = [one for one in products if one["messages"][1]["content"] in told_plainly]
    assert 0 < sum(lost.values()) <= len(plain) <= sum(lost.values()) + len(kept_plainly)
    assert set(lost) <= {f"broken: {name}" for name in CONSTRAINTS}
    names = Counter(spec["name"] for one in products for spec in one["rewards"])
    assert set(names) == set(CONSTRAINTS)
    assert any(len(one["rewards"]) == 2 for one in products)
    for one in products:
        check(one["rewards"])
        answer = one["messages"][1]["content"]
        assert reward(answer, one["rewards"]) == {"constraint": 1.0}
        assert one["task"] == "_".join(["instruction", *sorted(spec["name"] for spec in one["rewards"])])
        assert one["messages"][0]["content"].startswith(one["truth"]["question"] + " ")
        assert score(one, answer) == 1.0
        assert one["axis"] == "safety"


def test_a_clip_is_answered_from_its_own_captions():
    asked, requests = rules()
    row = clips(told(), 2)
    (kept,) = ALL.run([row], asked)
    assert [one.subject for one in requests] == [one["id"] for one in row["mined"]]
    for request, text, other in zip(requests, ("a bell", "laughs"), ("laughs", "a bell"), strict=True):
        assert f"0.0 to 10.0 s: {'A man speaks, then ' * (text == 'a bell')}" in request.messages[0]["content"]
        assert text in request.messages[0]["content"]
        assert other not in request.messages[0]["content"]
    assert all(
        one["audios"][0] in [{"start": 0.0, "end": 10.0}, {"start": 10.0, "end": 20.0}]
        for one in kept.fields["instructions"]
    )


def test_a_recording_without_clips_is_asked_about_as_a_whole():
    asked, requests = rules()
    outcomes = ALL.run([told(str(n)) for n in range(5)], asked)
    assert {str(one["audios"]) for kept in outcomes for one in kept.fields["instructions"]} == {"[{}]"}
    assert len(requests) == 5
    row = told("a")
    del row["mined"]
    assert Instructions(clips="", share=1.0).run([row], asked)[0].fields["instructions"] is not None
    assert "mined" not in Instructions(clips="").reads
    assert ALL.run([told(captions=())], asked) == [Kept({"instructions": []})]
    assert len(requests) == 6


def test_the_share_is_by_the_clip_and_two_runs_are_equal():
    asked, requests = rules()
    row = clips(told(), 80)
    first = Instructions(share=0.25).run([row], asked)
    names = [one.subject for one in requests]
    assert 10 < len(names) < 32
    row["mined"] = row["mined"][40:]  # the others are chosen as before
    Instructions(share=0.25).run([row], asked)
    assert [one.subject for one in requests[len(names) :]] == [one for one in names if int(one.split()[1]) >= 40]
    again = Instructions(share=0.25).run([clips(told(), 80)], rules()[0])
    assert again == first


@pytest.mark.parametrize(
    ("language", "forms"), [("ja", {"json"}), ("ja-JP", {"json"}), ("ar", {"contains", "repeat", "words", "json"})]
)
def test_the_language_of_the_captions_decides_what_is_asked_for(language, forms):
    texts = {"ja": "男の人が話し、鐘が鳴る。", "ar": "رجل يتحدث ثم يرن جرس في المدينة القديمة"}
    row = clips(told(captions=(texts[language[:2]], texts[language[:2]])), 30)
    for one in row["merged"]:
        one["language"] = language
    (kept,) = ALL.run([row], rules()[0])
    assert {spec["name"] for one in kept.fields["instructions"] for spec in one["rewards"]} == forms
    spoken = Instructions(share=1.0, language=language)
    for one in row["merged"]:
        del one["language"]
    assert spoken.run([row], rules()[0])[0].fields == kept.fields


def test_replies_that_are_missing_or_useless(tmp_path):
    row = clips(told(), 4)
    busy = context(tmp_path / "a", call=f"{__name__}:busy")
    busy.annotators["writer"].waits = ()
    (failed,) = ALL.run([row], busy)
    assert failed.retryable
    (kept,) = ALL.run([row], context(tmp_path / "b", call=f"{__name__}:useless"))
    assert kept == Kept({"instructions": []}, {"answers lost: refused": 4})
    (kept,) = ALL.run([row], context(tmp_path / "c", call=f"{__name__}:german"))
    assert kept.fields == {"instructions": []}
    assert sum(kept.tally.values()) == 4
    (kept,) = ALL.run([row], context(tmp_path / "d", call=f"{__name__}:marked"))
    assert kept.tally == {"answers lost: marks of prompts": 4}


def busy(requests):
    return [OSError("busy")] * len(requests)


def useless(requests):
    return ["I'm sorry, I can't."] * len(requests)


def marked(requests):
    return ["A man speaks, then <sound-1> a bell is heard."] * len(requests)


def german(requests):
    return ["Ein Mann spricht langsam, danach läutet eine Glocke und ein Hund bellt in der Ferne."] * len(requests)


def test_parameters():
    for changed in ({"share": 1.5}, {"pairs": -0.1}):
        with pytest.raises(ValueError, match="must be from 0 to 1"):
            Instructions(**changed)
    assert set(FORMS) == set(Instructions().depends()["forms"])
