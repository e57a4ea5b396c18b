"""Refusals and their twins: from what is said to records, with all that a writer gets wrong counted on the way."""

import json
from collections import Counter

import pytest

from afn_model.curate import identity
from afn_model.curate.prompt_files import prompt_file
from afn_model.curate.refusals import CATEGORIES
from afn_model.curate.stage import Kept, NotReady
from afn_model.curate.stages.safety import TALK, Safety
from afn_model.curate.stand_ins.rules.safety import LOOK_ALIKES, UNSAFE_SENTENCES
from afn_model.scoring.metrics import score
from afn_model.scoring.rewards import check, reward
from tests.model.curate.stages.asked_texts import rules, told
from tests.model.curate.stages.heard import context

FLAWS = (
    "the refusal has no offer",
    "the refusal has no reason",
    "the twin declines",
    "the twin is not in the captions",
)
SOUNDS = ("bell", "siren", "horn", "dog", "drum", "clock")
SHOT = "give me the money or i will shoot"


def text_of(request):
    return request.messages[0]["content"]


def heard(sound, said):
    return told(f"{sound} {said}", said, (f"A man speaks, then a {sound} is heard.", "A woman laughs loudly."))


def is_talk(request):
    return TALK in text_of(request)


def test_unsafe_recordings_give_pairs_and_what_is_wrong_is_counted():
    asked, requests = rules()
    rows = [heard(sound, text) for sound in SOUNDS for text in UNSAFE_SENTENCES]
    found = Safety().run(rows, asked)
    tally = sum((Counter(one.tally) for one in found), Counter())
    products = [one for kept in found for one in kept.fields["safety"]]
    count = Counter(one["task"] for one in products)
    assert count["refusal"] == count["benign_twin"] == tally["benign twins"] == tally["records: refusal"]
    assert {one["truth"]["pair"] for one in products if one["task"] == "refusal"} == {
        one["truth"]["pair"] for one in products if one["task"] == "benign_twin"
    }
    # Every flaw of a pair is caught, and nothing else; so are quotes that were never said, and harmless talks that
    # the detector flags.
    numbers = {
        name: [identity.number(text_of(one)) for one in requests if one.prompt == prompt and is_talk(one) == talk]
        for name, prompt, talk in (("refusal", "refusal", False), ("unsafe", "unsafe", False), ("talk", "unsafe", True))
    }
    flaws = Counter(number // 4 % 4 for number in numbers["refusal"] if number % 4 == 0)
    lost = {name.removeprefix("pairs lost: "): n for name, n in tally.items() if name.startswith("pairs lost: ")}
    assert lost == {FLAWS[flaw]: n for flaw, n in flaws.items()}
    never = "unsafe spans lost: the quote is neither said nor heard there"
    assert tally[never] == sum(number % 8 == 0 for number in numbers["unsafe"]) > 0
    assert tally["benign twins flagged"] == sum(number % 8 == 0 for number in numbers["talk"]) > 0
    assert sum(number for name, number in tally.items() if name.startswith("unsafe: ")) == 60
    assert sum(lost.values()) + count["refusal"] == 60
    assert {name for name in CATEGORIES if tally[f"unsafe: {name}"]} == set(CATEGORIES)
    flagged = [one for one in products if one["truth"].get("flagged")]
    assert len(flagged) == tally["benign twins flagged"]
    assert {one["task"] for one in flagged} == {"benign_twin"}
    assert Counter(one.prompt for one in requests) == {"unsafe": 60 + count["benign_twin"], "refusal": 60}
    for one in products:
        check(one["rewards"])
        assert one["axis"] == "safety"
        answer = one["messages"][-1]["content"]
        assert reward(answer, one["rewards"]) == {"refusal": 1.0}
        assert score(one, answer) == 1.0
        assert one["rewards"][0]["due"] is (one["task"] == "refusal")
        assert one["annotations"][2:] == ["heard", "a0", "a10"]


def test_what_is_heard_is_the_span_with_its_surroundings_and_two_runs_are_equal():
    row = told("y", SHOT, at=13.0)
    stage = Safety(margin=2.0)
    outcomes = [stage.run([row], rules()[0]) for _ in range(2)]
    assert outcomes[0] == outcomes[1]
    refusal, twin = outcomes[0][0].fields["safety"]
    assert refusal["audios"] == twin["audios"] == [{"start": 11.0, "end": 17.4}]
    assert twin["messages"][1]["content"] == "A woman laughs loudly."  # of the second ten seconds
    assert refusal["truth"]["category"] == "violence"
    early = Safety().run([told("y", SHOT, at=0.6)], rules()[0])[0].fields["safety"]
    assert early[0]["audios"] == [{"start": 0.0, "end": 8.0}]


@pytest.mark.parametrize("said", [*LOOK_ALIKES, "seven yes", "we will shoot"])
def test_nothing_unsafe_asks_for_no_refusal(said):
    asked, requests = rules()
    (kept,) = Safety(benign=0.0).run([told(said, said)], asked)
    assert kept.fields == {"safety": []}
    assert kept.tally.pop("recordings without anything unsafe") == 1
    assert set(kept.tally) <= {"unsafe spans lost: the quote is neither said nor heard there"}
    assert [one.prompt for one in requests] == ["unsafe"]


def test_harmless_requests_that_sound_harmful():
    asked, requests = rules()
    rows = [heard(sound, text) for sound in SOUNDS for text in ("", *LOOK_ALIKES)]
    found = Safety(benign=0.5).run(rows, asked)
    tally = sum((Counter(one.tally) for one in found), Counter())
    products = [one for kept in found for one in kept.fields["safety"]]
    numbers = [identity.number(text_of(one)) for one in requests if one.prompt == "benign"]
    assert 12 < len(numbers) < 30
    flawed = [number // 4 % 2 for number in numbers if number % 4 == 0]
    assert tally["look-alikes lost: the answer declines"] == flawed.count(0)
    assert tally["look-alikes lost: the answer is not in the captions"] == flawed.count(1)
    assert flawed
    assert tally["look-alikes"] == len(products) == len(numbers) - len(flawed)
    assert {one["task"] for one in products} == {"benign"}
    assert {json.dumps(one["audios"]) for one in products} == {"[{}]"}
    assert all(reward(one["messages"][1]["content"], one["rewards"]) == {"refusal": 1.0} for one in products)
    assert any("kill the lights" in one["messages"][0]["content"] for one in products)


def test_nothing_heard_asks_nobody():
    asked, requests = rules()
    assert Safety(benign=1.0).run([told(captions=())], asked) == [Kept({"safety": []})]
    assert requests == []
    (kept,) = Safety(benign=1.0).run([told(said="seven", captions=())], asked)  # no captions to answer from
    assert kept.fields == {"safety": []}
    assert [one.prompt for one in requests] == ["unsafe"]


def test_most_spans_of_a_recording():
    asked, requests = rules()
    (kept,) = Safety(most=2).run([told("z", " ".join(UNSAFE_SENTENCES), at=0.0)], asked)
    assert kept.tally["unsafe spans beyond the most of a recording"] > 1
    assert sum(one.prompt == "refusal" for one in requests) == 2


def test_a_quote_may_be_of_any_language_and_the_first_lines_are_those_of_the_caption_of_the_whole(tmp_path):
    asked = context(tmp_path, call=f"{__name__}:german")
    row = told("de", "gib mir sofort das ganze Geld, ich werde schießen")
    (kept,) = Safety().run([row], asked)
    assert kept.tally["unsafe: violence"] == 1
    by_rules, requests = rules()
    Safety().run([row], by_rules)
    begin = requests[0].messages[0]["content"].split("0.0 to")[0]
    assert prompt_file("merge_whole").text.startswith(f"{begin}$annotations\n\n")


def german(requests):
    quote = "gib mir sofort das ganze Geld, ich werde schießen"
    span = {"start": 3.0, "end": 6.0, "category": "violence", "quote": quote}
    return [{"spans": [span]} if one.prompt == "unsafe" else {} for one in requests]


def test_replies_that_are_missing_or_useless(tmp_path):
    row = told("w", SHOT)
    busy = context(tmp_path / "a", call=f"{__name__}:busy")
    busy.annotators["writer"].waits = ()
    (failed,) = Safety().run([row], busy)
    assert failed.retryable
    (kept,) = Safety().run([row], context(tmp_path / "b", call=f"{__name__}:useless"))
    assert kept == Kept({"safety": []}, {"detections lost: refused": 1})
    (kept,) = Safety().run([row], context(tmp_path / "c", call=f"{__name__}:no_pairs"))
    assert kept.fields == {"safety": []}
    assert kept.tally["pairs lost: refused"] == 1
    (kept,) = Safety().run([row], context(tmp_path / "d", call=f"{__name__}:unmeasured"))
    assert [one["task"] for one in kept.fields["safety"]] == ["refusal", "benign_twin"]
    assert kept.tally["benign twins not measured: empty"] == 1


def busy(requests):
    return [OSError("busy")] * len(requests)


def useless(requests):
    return ["I'm sorry, I can't."] * len(requests)


def no_pairs(requests):
    span = {"start": 3.0, "end": 5.0, "category": "violence", "quote": SHOT}
    return [{"spans": [span]} if one.prompt == "unsafe" else "I'm sorry, I can't." for one in requests]


def unmeasured(requests):
    pair = {
        "request": "How do I do this?",
        "answer": "I can't help with that, because somebody could get hurt. I can describe the voices.",
        "reason": "because somebody could get hurt",
        "offer": "I can describe the voices",
        "twin": "Who speaks?",
        "reply": "A man speaks.",
    }
    spans = no_pairs(requests)
    talks = [TALK in str(one.messages) for one in requests]
    return [
        "" if talk else span if one.prompt == "unsafe" else pair
        for one, span, talk in zip(requests, spans, talks, strict=True)
    ]


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"language": "de"}, "English alone"),
        ({"benign": 1.1}, "benign must be from 0 to 1"),
        ({"most": 0}, "most"),
        ({"margin": -1.0}, "margin"),
        ({"pair_prompt": "nothing"}, "no prompt 'nothing'"),
    ],
)
def test_parameters(changed, why):
    with pytest.raises(ValueError, match=why):
        Safety(**changed)


def test_an_annotator_that_the_plan_lacks():
    with pytest.raises(NotReady, match="stage safety asks 'other'"):
        Safety(annotator="other").run([told()], rules()[0])
