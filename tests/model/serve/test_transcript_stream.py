"""The text of an answer as it is sent: never taken back, and all of it in the end."""

import pytest

from afn_model.infer.transcripts import placed
from afn_model.scoring.text import answer_in
from afn_model.serve.transcript_stream import StreamedText

TEXTS = [
    "  Hello there, it is 3 o'clock. \n Goodbye. ",
    "Hello [0:01.5] there (and [not] here). [0:03] Goodbye.",
    "[Speaker 1] Hello. [Speaker 2]: [0:04] Goodbye at 3:20.",
    "0:01 Hello.\n0:03 Goodbye.",
    "[Speaker 1] 0:01 Hello.\n[Speaker 2] 0:03 Goodbye.",
    "<|0.50|> Hello.<|3.00|> Goodbye.",
    "1\n00:00:01,500 --> 00:00:03,000\nHello there.\n\n2\n00:00:03,000 --> 00:00:06,000\nGoodbye.\n",
    "<think>At [0:01] it begins.</think> Hello [ 2.5 - 3 ] there.",
    "<answer>Hello.</answer>",
    "In 1999 (1.5 s to 2.5 s) Hello 5",
    "Hello [1:99] there. [0:59] Past the end.",
    "",
]


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("moved", [False, True])
def test_pieces_of_any_length_add_up(text, moved):
    start = 60.0 if moved else 0.0
    whole = placed(answer_in(text), start, start + 10.0)
    for size in (1, 2, 3, 5, len(text) or 1):
        told = StreamedText(moved=moved)
        sent = [told.feed(text[at : at + size]) for at in range(0, len(text), size)]
        assert whole.startswith("".join(sent))
        assert "".join(sent) + told.close(whole) == whole


def test_how_soon_it_is_sent():
    told = StreamedText(moved=True)
    words = ["Hello", " [", "there", "] ", "at ", "12", "th [", "0", ":01]", " now"]
    assert [told.feed(word) for word in words] == ["Hello", "", " [there", "]", " at", "", " 12th", "", "", ""]
    told = StreamedText(moved=False)
    assert [told.feed(word) for word in words[-5:]] == ["12", "th [", "0", ":01]", " now"]


def test_what_cannot_be_taken_back_is_followed_by_the_answer():
    told = StreamedText(moved=False)
    assert told.feed("So it is.</think> Yes.") == "So it is.</think> Yes."
    assert told.close("Yes.") == "\nYes."
