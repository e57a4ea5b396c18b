"""Times within a recording as grammars: all of them and no others, here and in llguidance."""

import json
import re

import pytest

from afn_model.infer.grammar import Grammars
from afn_model.infer.time_grammar import segments_schema, time_within, timed_transcript_grammar, whole_within
from afn_model.infer.timestamps import Segment, clock, read_times
from tests.tiny import tokenizer


@pytest.fixture(scope="module")
def matches():
    """Whether llguidance takes a text, token by token, and lets it end there."""
    pytest.importorskip("llguidance", reason="llguidance (extra grammar) is not installed")
    of = tokenizer()
    grammars = Grammars(of.to_str(), of.get_vocab_size(), [2])

    def matched(grammar, text):
        state = grammars.start(grammar)
        for token in of.encode(text, add_special_tokens=False).ids:
            if not state.mask()[token // 32] >> (token % 32) & 1:
                return False
            state.accept(token)
        return state.matcher.is_accepting()

    return matched


def test_whole_numbers_up_to_the_last_are_all_that_match():
    for last in [*range(131), 599, 600, 999, 1000]:
        for width in (0, 4):
            form = re.compile(whole_within(last, width))
            texts = [f"{value:0{width}d}" if width else str(value) for value in range(last + 30)]
            assert [bool(form.fullmatch(text)) for text in texts] == [value <= last for value in range(last + 30)]
            assert not form.fullmatch("00" if width == 0 else "0")


def test_times_up_to_the_last_are_all_that_match():
    """To the tenth of a second, for recordings that end within a minute, at one, within an hour and behind it."""
    for seconds in (0.0, 0.05, 7.36, 59.9, 60.0, 61.2, 125.75, 605.0):
        form, last = re.compile(time_within(seconds, "brackets")), int(seconds * 10 + 1e-6)
        for tenths in range(last + 700):
            text = f"{tenths // 600}:{tenths // 10 % 60:02d}.{tenths % 10}"
            assert bool(form.fullmatch(text)) == (tenths <= last), (seconds, text)
    for seconds in (3599.9, 3600.0, 3723.2):
        form, last = re.compile(time_within(seconds, "brackets")), int(seconds * 10 + 1e-6)
        for tenths in [*range(0, last, 997), *range(last - 50, last + 50)]:
            text = clock(tenths / 10, 1, hours=seconds >= 3600)
            text = re.sub(r"^0(?=\d)", "", text)
            assert bool(form.fullmatch(text)) == (tenths <= last), (seconds, text)
    srt, vtt = re.compile(time_within(61.25, "srt")), re.compile(time_within(61.25, "vtt"))
    for milliseconds in [*range(0, 61_250, 83), *range(61_200, 61_300), 99_000, 3_600_000]:
        text = clock(milliseconds / 1000, separator=",")
        assert bool(srt.fullmatch(text)) == (milliseconds <= 61_250), text
        assert bool(vtt.fullmatch(text.replace(",", "."))) == (milliseconds <= 61_250), text
    for text in ("0:60.0", "1:1.0", "00:01.0", "0:01", "-0:01.0", "0:01.00"):
        assert not re.fullmatch(time_within(605, "brackets"), text)


def test_llguidance_reads_the_same_expressions(matches):
    for seconds in (7.36, 125.0):
        last, form = int(seconds * 10), time_within(seconds, "brackets")
        for tenths in [*range(0, last, 61), *range(last - 5, last + 12), 600, 1300]:
            text = f"{tenths // 600}:{tenths // 10 % 60:02d}.{tenths % 10}"
            assert matches(form, text) == (tenths <= last), text


TRANSCRIPTS = {
    "brackets": "[0:00.5 - 0:03.0] Hello there.\n[0:03.0 - 1:05.2] Goodbye.",
    "srt": "1\n00:00:00,500 --> 00:00:03,000\nHello there.\n\n2\n00:00:03,000 --> 00:01:05,200\nGoodbye.\n",
    "vtt": "WEBVTT\n\n00:00:00.500 --> 00:00:03.000\nHello there.\n\n00:00:03.000 --> 00:01:05.200\nGoodbye.\n",
}


@pytest.mark.parametrize("form", TRANSCRIPTS)
def test_a_transcript_matches_where_the_recording_is_long_enough(form, matches):
    text = TRANSCRIPTS[form]
    assert read_times(text, 66.0).segments == [Segment(0.5, 3, "Hello there."), Segment(3, 65.2, "Goodbye.")]
    for seconds, fits in ((65.2, True), (70.0, True), (65.1, False), (4.0, False)):
        grammar = timed_transcript_grammar(seconds, form)
        assert bool(re.fullmatch(grammar, text)) == fits
        assert matches(grammar, text) == fits
    grammar = timed_transcript_grammar(70, form)
    assert re.fullmatch(grammar, "WEBVTT\n" if form == "vtt" else "")
    assert not re.fullmatch(grammar, text.replace("Hello there.", "")), "a segment says something"
    assert not re.fullmatch(grammar, "Hello there.")


def test_segments_as_json(matches):
    schema = segments_schema(65.257)
    spans = ((0, 3.5, True), (3.5, 65.25, True), (0.25, 65.26, False), (-1, 3, False), (1.234, 3, False))
    for start, end, fits in spans:
        text = json.dumps({"segments": [{"start": start, "end": end, "text": "Hello."}]})
        assert matches(schema, text) == fits, text
    assert matches(schema, '{"segments": []}')


def test_what_is_no_recording_is_refused():
    with pytest.raises(ValueError, match="unknown form 'ass'"):
        timed_transcript_grammar(5, "ass")
    for seconds in (-1.0, float("nan"), 1e6):
        with pytest.raises(ValueError, match="a recording of 0 to"):
            segments_schema(seconds)
