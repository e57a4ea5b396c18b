"""Transcripts of pieces: where their times stand in the recording, and times that nobody said."""

from dataclasses import replace
from itertools import pairwise

import pytest

from afn_model.infer.timestamps import Segment
from afn_model.infer.transcripts import (
    LINE,
    estimated,
    longest_piece,
    placed,
    speaker_in,
    timed,
    transcript_tokens,
)
from afn_model.prompt.conversation import read_conversation
from tests.tiny import conversation, processor


def test_times_count_from_the_beginning_of_the_recording():
    assert placed("[0:01.5] Hello.", 60.0, 66.0) == "[01:01.5] Hello."
    assert placed("[0:01.5] Hello.", 0.0, 6.0) == "[0:01.5] Hello."
    assert placed("[0:09.5] Hello.", 60.0, 66.0) == "[0:09.5] Hello."  # past the end: it is no time
    found = timed("So. [0:01.5] Hello.", 60.0, 66.0)
    assert found.status == "model"
    assert found.segments == [Segment(60.0, 61.5, "So."), Segment(61.5, 66.0, "Hello.")]
    assert timed("Hello.", 60.0, 66.0).segments == []


def test_sentences_share_the_time_by_their_length():
    found = estimated("<think>Well.</think> Ab cd. Efg? [Speaker 2] Hi", 10.0, 31.0)
    assert [one.text for one in found] == ["Ab cd.", "Efg?", "[Speaker 2] Hi"]
    sizes = [len(one.text) for one in found]
    share = 21.0 / sum(sizes)
    assert [one.end - one.start for one in found] == pytest.approx([share * size for size in sizes])
    assert (found[0].start, found[-1].end) == (10.0, 31.0)
    assert all(a.end == b.start for a, b in pairwise(found))
    found = estimated("So. [Speaker 1] [0:09 - 0:02] Hello. Hi. [0:01] there.", 0.0, 1.0)  # no such times
    assert [one.text for one in found] == ["So.", "[Speaker 1] Hello. Hi.", "there."]
    assert estimated("", 0.0, 1.0) == estimated(" \n", 0.0, 1.0) == []


@pytest.mark.parametrize("text", ["word " * 100, "字" * 500, "你好。" * 3 + "a" * 200])
def test_a_long_sentence_is_cut_into_lines(text):
    found = estimated(text, 0.0, 9.0)
    assert all(len(one.text) <= LINE for one in found)
    assert "".join(one.text for one in found).replace(" ", "") == text.replace(" ", "")
    assert all(one.text == text[slice(*one.span)].strip() for one in found)
    if " " in text:
        assert {word for one in found for word in one.text.split()} == {"word"}


def test_turns_end_where_another_speaker_begins():
    found = estimated("So. [Speaker 1] Hello. Who is it? [Speaker 2] Me.", 0.0, 1.0, turns=True)
    assert [speaker_in(one.text) for one in found] == [(None, "So."), (1, "Hello. Who is it?"), (2, "Me.")]
    assert speaker_in("Speaker_3: Yes.") == (3, "Yes.")
    assert speaker_in("Sophie says so.") == (None, "Sophie says so.")


def test_how_long_a_piece_may_be():
    some = processor(max_positions=1000, max_seconds=100.0)
    turns = read_conversation(conversation("What is said?", "a recording"))
    room = 1000 - some.text_tokens(turns)
    assert longest_piece(some, turns, 100) == (room - 100) / 25
    assert longest_piece(some, turns, 900) == (room - 250) / 25
    assert longest_piece(some, turns, 100, spoken=True) == room / 31
    assert longest_piece(processor(max_seconds=7.0), turns, 100) == 7.0
    assert (transcript_tokens(1.0), transcript_tokens(300.5)) == (1024, 1803)


def test_where_segments_stand_in_the_answer():
    text = "<think>At [0:05].</think> So. [1.5] Hello there. [3.0] Goodbye."
    found = timed(text, 0.0, 6.0).segments
    assert [text[slice(*one.span)] for one in found] == ["So. ", "[1.5] Hello there. ", "[3.0] Goodbye."]
    assert replace(found[0], span=(0, 0)) == found[0]
