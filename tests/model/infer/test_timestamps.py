"""Times in transcripts: every form, what is none, and what is wrong with some."""

import pytest

from afn_model.infer.timestamps import Segment, clock, read_times, shift_times

FORMS = [
    "[0:01.5 - 0:03] Hello there. [00:03 - 00:06] Goodbye.",
    "[1.5s–3s] Hello there.\n[3s–6s] Goodbye.",
    "[1.5 - 3] Hello there.\n[3 - 6] Goodbye.",
    "(1.5 s to 3.0 s): Hello there. (3.0 s to 6 s): Goodbye.",
    "<|1.50|> Hello there.<|3.00|><|3.00|> Goodbye.<|6.00|>",
    "1\n00:00:01,500 --> 00:00:03,000\nHello there.\n\n2\n00:00:03,000 --> 00:00:06,000\nGoodbye.\n",
    "WEBVTT\n\n00:01.500 --> 00:03.000 align:start\nHello there.\n\n00:03.000 --> 00:06.000\nGoodbye.\n",
    "0:01.5 - 0:03: Hello there.\n0:03 - 0:06: Goodbye.",
    "<think>At [0:05] there is a pause.</think>[1.5] Hello there. [3.0] Goodbye.",
]


@pytest.mark.parametrize("text", FORMS)
def test_a_segment_is_the_text_behind_a_time(text):
    found = read_times(text, 6.0)
    assert found.status == "model"
    assert found.segments == [Segment(1.5, 3.0, "Hello there."), Segment(3.0, 6.0, "Goodbye.")]


def test_speakers_and_what_comes_before_the_first_time():
    found = read_times("So. [Speaker 1] [0:02] Hello [there]. [Speaker 2]: [0:04] Goodbye at 3:20.", 300)
    assert found.segments == [
        Segment(0.0, 2.0, "So."),
        Segment(2.0, 4.0, "[Speaker 1] Hello [there]."),
        Segment(4.0, 300, "[Speaker 2]: Goodbye at 3:20."),
    ]
    assert read_times("0:00 Hello.\n1:02:03 Goodbye.", 3723.2).segments[1] == Segment(3723.0, 3723.2, "Goodbye.")


@pytest.mark.parametrize(
    ("text", "status"),
    [
        ("We met at 10:30 and again at 11:00.", "none"),
        ("10:30 is when we met.\nIt was Tuesday.", "none"),
        ("It costs 12.50, see [2] and [17]. (10:30)", "none"),
        ("[Speaker 1] Hello. [laughter]", "none"),
        ("[1:75] Hello.", "none"),
        ("[1:75:00] Hello.", "none"),
        ("", "none"),
        ("[0:01] Hello. [1:01] Goodbye.", "past end"),
        ("[0:01 - 0:07] Hello.", "past end"),
        ("[0:03 - 0:01] Hello.", "reversed"),
        ("[0:03] Hello. [0:01] Goodbye.", "order"),
    ],
)
def test_what_is_no_time_or_a_wrong_one(text, status):
    assert read_times(text, 6.0) == read_times(text, 6.0).__class__([], status)


def test_a_time_that_is_hardly_past_the_end_is_the_end():
    assert read_times("[0:01 - 0:06.4] Hello.", 6.0).segments == [Segment(1.0, 6.0, "Hello.")]


def test_times_are_shifted_in_their_form():
    for before, after in (
        ("[0:01.5 - 0:03] One at 0:01. [59:59] Two.", "[30:01.5 - 30:03] One at 0:01. [01:29:59] Two."),
        ("(1.5 s to 3 s) One.", "(1801.5 s to 1803 s) One."),
        ("<|1.50|> One.<|3.00|>", "<|1801.50|> One.<|1803.00|>"),
        ("1\n00:00:01,500 --> 00:00:03,000\nOne.\n", "1\n00:30:01,500 --> 00:30:03,000\nOne.\n"),
        ("We met at 10:30.", "We met at 10:30."),
    ):
        assert shift_times(before, 1800.0) == after


def test_clock():
    assert [clock(3723.4567), clock(3723.4567, separator=","), clock(59.9996), clock(61, 0, hours=False)] == [
        "01:02:03.457",
        "01:02:03,457",
        "00:01:00.000",
        "01:01",
    ]
