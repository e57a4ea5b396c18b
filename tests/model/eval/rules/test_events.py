"""Events of an answer, how they are matched, and F1 against values found by hand."""

import pytest

from afn_model.eval.items import AnsweredItem, Item
from afn_model.eval.rules.events import Event, event_f1, events_in, matched
from afn_model.eval.score import Tools

LABELS = ("dog", "bell", "Alarm_bell")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("dog: 0.5-1.2\nbell: 2.0-3.5", [("dog", 0.5, 1.2), ("bell", 2.0, 3.5)]),
        ("0.5\t1.2\tdog\n2.0\t3.0\tAlarm_bell", [("dog", 0.5, 1.2), ("alarm bell", 2.0, 3.0)]),
        ("[0.5 - 1.2] dog barks [2.0 - 3.0] bell", [("dog", 0.5, 1.2), ("bell", 2.0, 3.0)]),
        ("dog (0.5s-1.2s), bell (2.0s-3.0s)", [("dog", 0.5, 1.2), ("bell", 2.0, 3.0)]),
        ("The dog barks from 0.5 s to 1.2 s, and a bell rings at 2 s.", [("dog", 0.5, 1.2), ("bell", 2.0, None)]),
        ('[{"label": "dog", "start": 0.5, "end": 1.2}, {"label": "bell", "onset": 2, "offset": 3}]',
         [("dog", 0.5, 1.2), ("bell", 2.0, 3.0)]),
        ("At 0.5 s a dog barks, and a bell rings at 2.0 s.", [("dog", 0.5, None), ("bell", 2.0, None)]),
        ("dog starts at 0.5 s and ends at 1.2 s", [("dog", 0.5, 1.2)]),
        ("dog: 0.5-1.2, 3.0-4.0", [("dog", 0.5, 1.2), ("dog", 3.0, 4.0)]),
        ("dog and bell at 2.0 s", [("dog", 2.0, None), ("bell", 2.0, None)]),
        ("<think>dog at 1 s</think>Dog at 0:02.", [("dog", 2.0, None)]),
        ("a cow at 3 s", []),
        ("dog", []),
    ],
)  # fmt: skip
def test_events_are_read(text, expected):
    assert events_in(text, LABELS, 10.0)[0] == [Event(*one) for one in expected]


def test_times_without_a_label_are_told():
    assert events_in("A cow at 3 s, a dog at 4 s.", LABELS) == ([Event("dog", 3.0, None), Event("dog", 4.0, None)], 0)
    assert events_in("A cow at 3 s. A dog at 4 s.", LABELS) == ([Event("dog", 4.0, None)], 1)
    assert events_in("dog at 1 s", ()) == ([], 1)


def test_as_many_pairs_are_found_as_there_can_be():
    right = [Event("dog", 1.0, 2.0), Event("dog", 1.4, 2.0)]
    # The first answer fits both; taken greedily for the nearer one, the second would fit none.
    said = [Event("dog", 1.3, None), Event("dog", 1.8, None)]
    assert matched(right, said, collar=0.5, length_share=None) == [(0, 0), (1, 1)]
    assert matched(right, said[:1], collar=0.5, length_share=None) in ([(0, 0)], [(1, 0)])
    assert matched(right, [Event("bell", 1.0, 2.0)], collar=0.5, length_share=None) == []
    assert len(matched([Event("dog", 2.0, 3.0)], [Event("dog", 2.2, 3.0)], collar=0.2, length_share=None)) == 1


@pytest.mark.parametrize(("end", "fits"), [(5.0, True), (6.0, True), (6.01, False), (3.99, False), (None, False)])
def test_an_offset_may_be_off_by_a_share_of_the_length(end, fits):
    right = [Event("dog", 0.0, 5.0)]  # a fifth of it is 1 s
    assert bool(matched(right, [Event("dog", 0.1, end)], collar=0.2, length_share=0.2)) == fits
    short = [Event("dog", 0.0, 0.1)]  # less than the collar
    assert matched(short, [Event("dog", 0.0, 0.3)], collar=0.2, length_share=0.2) == [(0, 0)]


def test_f1_is_that_found_by_hand():
    def item(name, *events):
        rows = [{"label": label, "start": start, "end": end} for label, start, end in events]
        return Item(name, choices=LABELS, extra={"events": rows, "seconds": 10.0}, groups={"kind": name})

    answers = [
        AnsweredItem(item("a", ("dog", 1.0, 2.0), ("bell", 3.0, 4.0)), "dog: 1.3-3.0; bell: 5.0-6.0; dog: 7.0-8.0"),
        AnsweredItem(item("b", ("dog", 1.0, 2.0)), None),
        AnsweredItem(item("c"), "There is nothing."),
        AnsweredItem(Item("hidden"), "dog: 1.0-2.0"),
    ]
    found = event_f1(answers, Tools(), collar=0.5)
    assert found.parts == [(2, 5), (0, 1), (0, 0), None]
    assert found.value == pytest.approx(100 * 2 / 6)
    assert found.groups["label: dog"] == (pytest.approx(100 * 2 / 4), 2)
    assert found.groups["label: bell"] == (0.0, 1)
    assert found.groups["macro: labels"] == (25.0, 2)
    assert found.groups["kind: a"] == (40.0, 1)
    assert (found.n, found.unparsed) == (3, 1)
    assert found.notes == [
        "1 of 3 events found, 2 stated that fit none",
        "onsets that fit are 0.300 s off in the mean",
    ]
    assert event_f1(answers, Tools(), collar=0.2).value == 0.0
    strict = event_f1(answers, Tools(), collar=0.5, offset=True)
    assert (strict.value, strict.n) == (0.0, 3)
    assert "20 %" in strict.signature
