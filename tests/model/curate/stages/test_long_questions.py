"""Long questions: what is asked, what is caught of flawed replies, and what each check is about."""

from collections import Counter
from dataclasses import replace

import pytest

from afn_model.curate.prompt_files import prompt_file
from afn_model.curate.questions import Question
from afn_model.curate.requests import parts_of
from afn_model.curate.stage import Failed, Kept
from afn_model.curate.stages.long_questions import (
    KINDS,
    LongQuestions,
    needle_once,
    order_agrees,
    order_in_captions,
    scene_named,
    wrong_options_absent,
)
from afn_model.curate.stand_ins.rules.long_questions import written
from tests.model.curate.long_sounds import CAUGHT, sounds
from tests.model.curate.stages.heard import context, with_captions


def row(name, count=13):
    """A row up to its captions."""
    return with_captions(name, sounds(f" {name}").texts[:count])


ROWS = [row("One."), row("Two.")]


def asking(out, told=None, **given):
    """A context, and a list of what is asked in it."""
    out.mkdir(exist_ok=True)
    (out / "truth.jsonl").touch()
    asked, found = [], context(out, ("writer", "guesser"), **given)
    ask = found.annotators["writer"]
    ask.waits = ()
    found.annotators = {
        "writer": lambda requests: asked.extend(requests) or ask(requests),
        "guesser": found.annotators["guesser"],
    }
    return found, asked


def test_flawed_questions_are_caught_and_counted_and_the_others_kept(tmp_path):
    asked_in, asked = asking(tmp_path)
    found = LongQuestions(pairs=20).run(ROWS, asked_in)
    assert [one.subject for one in asked] == [one["source_id"] for one in ROWS for _ in KINDS]
    lost = Counter()
    for number, (one, outcome) in enumerate(zip(ROWS, found, strict=True)):
        texts = [request.messages[0]["content"] for request in asked[3 * number : 3 * number + 3]]
        pairs = [pair for kind, text in zip(KINDS, texts, strict=True) for pair in written(text, kind)]
        good, bad = [one for one, flaw in pairs if not flaw], [CAUGHT[flaw] for _, flaw in pairs if flaw]
        products = outcome.fields["long_questions"]
        assert [(one["kind"], one["answer"]) for one in good] == [
            (product["task"], product["truth"]["answer"]) for product in products
        ]
        assert [one["evidence"] for one in good] == [
            [{"start": span["start"], "end": span["end"]} for span in product["truth"]["evidence"]]
            for product in products
        ]
        kinds = Counter(f"questions: {product['task']}" for product in products)
        assert outcome.tally == {**kinds, **Counter(f"questions lost: {why}" for why in bad)}
        assert all(product["audios"] == [{}] and product["axis"] == "long" for product in products)
        assert products[0]["annotations"][1:] == [entry["annotation"] for entry in one["merged"]]
        lost.update(bad)
    assert len(lost) > 3


def test_batches_and_the_order_of_rows_change_nothing(tmp_path):
    stage = LongQuestions(kinds=("needle", "subscene"), pairs=3, blind="guesser", tries=1)
    both = stage.run(ROWS, asking(tmp_path / "a")[0])
    weak = sum(product.get("weak", False) for one in both for product in one.fields["long_questions"])
    assert weak == sum(one.tally.get("questions answered without hearing", 0) for one in both) > 0
    assert stage.run(ROWS[::-1], asking(tmp_path / "b")[0]) == both[::-1]
    apart = asking(tmp_path / "c")[0]
    assert [stage.run([one], apart)[0] for one in ROWS] == both


def busy(requests):
    second = [" Two." in parts_of(one.messages[0])[0]["text"] for one in requests]
    return [OSError("busy") if late else {"questions": []} for late in second]


def test_a_busy_writer_fails_its_row_alone(tmp_path):
    first, second = LongQuestions().run(ROWS, asking(tmp_path, call=f"{__name__}:busy")[0])
    assert first == Kept({"long_questions": []}, {})
    assert isinstance(second, Failed)
    assert second.retryable


def test_what_is_asked(tmp_path):
    asked_in, asked = asking(tmp_path)
    LongQuestions(kinds=("temporal", "needle"), pairs=7, options=0).run(ROWS[:1], asked_in)
    assert [one.prompt for one in asked] == ["temporal", "needle"]
    texts = [one.messages[0]["content"] for one in asked]
    lines = sounds(" One.").said()
    shared = prompt_file("merge_whole").text.partition("$annotations")[0] + lines + "\n\n"
    assert all(text.startswith(shared) for text in texts)  # read once, with that of the caption of the whole
    assert all("lasts 130.0 seconds. Write 7 questions with no wrong options each" in text for text in texts)
    told = [one.schema["properties"]["questions"]["items"] for one in asked]
    assert ["relation" in one["required"] for one in told] == [True, False]
    assert told[0]["properties"]["wrong"]["maxItems"] == 0


def test_short_recordings_have_none(tmp_path):
    asked_in, asked = asking(tmp_path)
    short, single = row("short", 2), {**row("single"), "merged": row("single")["merged"][:1]}
    nothing = {**single, "merged": []}
    found = LongQuestions().run([short, single, nothing], asked_in)
    assert not asked
    assert [one.fields for one in found] == [{"long_questions": []}] * 3
    why = ("too short", "too few captions", "too few captions")
    assert [one.tally for one in found] == [{f"recordings without questions: {one}": 1} for one in why]
    assert LongQuestions(shortest=20).run([short], asked_in)[0].fields["long_questions"]


@pytest.mark.parametrize(
    ("told", "wrong"),
    [
        ({"kinds": ("counting",)}, "kinds are some of needle, temporal, subscene"),
        ({"kinds": ()}, "each once, and one at least"),
        ({"kinds": ("needle", "needle")}, "each once"),
        ({"pairs": 0}, "pairs"),
        ({"options": 20}, "options"),
        ({"shortest": -1.0}, "shortest is seconds from 0"),
        ({"shortest": float("nan")}, "shortest"),
    ],
)
def test_parameters(told, wrong):
    with pytest.raises(ValueError, match=wrong):
        LongQuestions(**told)


HEARD = sounds()  # bell 0, siren 10, dog 20, rain and siren 30, clock 40, engine 50, ..., bell 120 to 130


def q(question, answer, *spans, wrong=(), relation=""):
    return Question("k", question, answer, wrong, tuple((1, float(a), float(b)) for a, b in spans), relation)


@pytest.mark.parametrize(
    ("check", "one", "why"),
    [
        (needle_once, q("Which animal?", "A dog", (22, 25)), ""),
        (needle_once, q("Which animal?", "A dog", (0, 66)), "a needle in most of the recording"),
        (needle_once, q("Is there a dog?", "Yes", (20, 30)), ""),
        (needle_once, q("Is there a siren?", "Yes", (10, 20)), "a needle that is heard again"),
        (needle_once, q("How often does the siren come?", "Twice", (10, 20), (30, 40)), "a needle in several places"),
        (wrong_options_absent, q("What?", "A rain", (30, 40), wrong=("A siren",)), "a wrong option is right too"),
        (wrong_options_absent, q("What?", "A rain", (30, 40), wrong=("A clock", "Two")), ""),
        (order_agrees, q("What is after the dog?", "A clock", (20, 30), (29.5, 50), relation="after"), ""),
        (order_agrees, q("What is after the dog?", "A clock", (20, 30), (29, 50), relation="after"), "does not have"),
        (order_agrees, q("What is after the dog?", "A clock", (41, 41.2), (41.1, 41.3), relation="after"), "not have"),
        (order_agrees, q("What is after the dog?", "A bell", (20, 30), (40, 50), relation="after"), "the answer"),
        (order_agrees, q("Before the dog?", "A bell", (20, 30), (0, 10), relation="before"), ""),
        (order_agrees, q("Between?", "A dog", (40, 50), (0, 10), (20, 30), relation="between"), ""),
        (order_agrees, q("Between?", "A clock", (20, 30), (0, 10), (40, 50), relation="between"), "does not have"),
        (order_agrees, q("After?", "A dog", (0, 10), (5, 9), (20, 30), relation="after"), "too few things or too many"),
        (order_agrees, q("First?", "A dog", (40, 50), (50, 60), (20, 30), relation="first"), ""),
        (order_agrees, q("Last?", "A dog", (40, 50), (10, 20), (20, 30), relation="last"), "does not have"),
        (order_agrees, q("After?", "A dog", (10, 20), (20, 30)), "too few things or too many"),
        (order_in_captions, q("What comes after the dog?", "A clock", (20, 30), (40, 50), relation="after"), ""),
        (order_in_captions, q("After the siren?", "A clock", (30, 40), (40, 50), relation="after"), "heard again"),
        (order_in_captions, q("After a man and a siren?", "A clock", (30, 40), (40, 50), relation="after"), ""),
        (order_in_captions, q("After that?", "A clock", (30, 40), (40, 50), relation="after"), "does not name"),
        (
            order_in_captions,
            q("What is first?", "A dog", (40, 50), (20, 30), wrong=("A clock", "A siren"), relation="first"),
            "another option is heard before",
        ),
        (order_in_captions, q("Last?", "A dog", (0, 9), (20, 30), wrong=("A bell",), relation="last"), "heard after"),
        (order_in_captions, q("First?", "A dog", (40, 50), (20, 30), wrong=("A clock",), relation="first"), ""),
        (scene_named, q("What is heard from 0:20 to 0:50?", "A dog", (20, 50)), ""),
        (scene_named, q("What is heard from 0:20 to 0:50?", "A dog", (20, 48)), "other times"),
        (scene_named, q("What is heard after 40 seconds?", "A dog", (10, 30)), "other times"),
        (scene_named, q("What is heard in the last 20 seconds?", "A bell", (110, 130)), ""),
        (scene_named, q("What goes on at the beginning?", "A bell", (0, 20)), ""),
        (scene_named, q("What goes on at the beginning?", "A dog", (20, 50)), "does not name"),
        (scene_named, q("What goes on between the siren and the clock?", "A dog", (20, 40)), ""),
        (scene_named, q("What goes on around the thunder?", "A dog", (20, 40)), "does not name"),
        (scene_named, q("What is heard from 0 to 118 seconds?", "A dog", (0, 118)), "the whole recording"),
    ],
)
def test_each_check(check, one, why):
    found = check(one, HEARD)
    assert why in found
    assert bool(found) == bool(why)
    unrelated = replace(one, wrong=(*one.wrong, "A trumpet"))
    assert check(unrelated, HEARD) == found  # an option that is heard nowhere is no matter of these
