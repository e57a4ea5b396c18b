"""Captions by time: what is in a part, what is outside, and what captions that belong nowhere do."""

from afn_model.curate.timeline import Moment, joined, timeline

SEGMENTS = [{"id": name, "start": 10.0 * at, "end": 10.0 * at + 10} for at, name in enumerate("abc")]
MERGED = [
    {"segment": "c", "text": "A siren\n is heard.", "annotation": "3", "annotations": ["1"]},
    {"segment": "a", "text": "A bell is heard.", "annotations": ["1", "2"]},
    {"segment": "b", "text": " \n", "annotation": "4"},
    {"segment": "gone", "text": "A dog barks.", "annotation": "5"},
]


def test_captions_are_in_order_on_one_line_each():
    heard = timeline(MERGED, SEGMENTS, 30.0)
    assert heard.said() == "0.0 to 10.0 s: A bell is heard.\n20.0 to 30.0 s: A siren is heard."
    assert heard.annotations == ("3", "1", "2")  # not of what is left out
    assert timeline([], SEGMENTS, 30.0).said() == ""


def test_what_touches_a_span_is_outside_of_it():
    heard = timeline(MERGED, SEGMENTS, 30.0)
    assert heard.during([(1, 10.0, 20.0)]) == []
    assert heard.during([(1, 9.9, 20.1)]) == ["A bell is heard.", "A siren is heard."]
    assert heard.outside([(1, 9.9, 20.0)]) == ["A siren is heard."]
    assert heard.during([(2, 0.0, 30.0), (1, 25.0, 5.0)]) == []  # another clip; a span that ends before it starts
    assert heard.outside([]) == heard.during([(1, 0.0, 30.0)])


def test_a_part_counts_from_its_beginning():
    part = timeline(MERGED, SEGMENTS, 30.0).part(5.0, 25.5)
    assert part.moments == (Moment(0.0, 5.0, "A bell is heard."), Moment(15.0, 20.5, "A siren is heard."))
    assert part.seconds == (20.5,)
    assert timeline(MERGED, SEGMENTS, 30.0).part(12.0, 18.0).moments == ()


def test_several_clips_are_told_apart():
    heard = timeline(MERGED, SEGMENTS, 30.0)
    both = joined([heard.part(0.0, 10.0), heard.part(20.0, 30.0), heard.part(11.0, 19.0)])
    assert both.said() == "clip 1, 0.0 to 10.0 s: A bell is heard.\nclip 2, 0.0 to 10.0 s: A siren is heard."
    assert both.during([(2, 0.0, 1.0)]) == ["A siren is heard."]
    assert both.seconds == (10.0, 10.0, 8.0)
    assert both.annotations == ("3", "1", "2")
