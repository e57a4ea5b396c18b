"""Thoughts and answers come apart wherever pieces of the text end."""

import pytest

from afn_model.serve.reasoning import Reasoning

CASES = [
    ("<think>a b</think> c", False, "a b", " c"),
    ("a b</think> c", True, "a b", " c"),
    ("no tags < at <thin all", False, "", "no tags < at <thin all"),
    ("<think>cut", False, "cut", ""),
    ("<think>a</think>b<think>c</think>d</think>e", False, "ac", "bd</think>e"),
    ("<think>a</thin", False, "a</thin", ""),
    ("<<think>></think></think>", False, ">", "<</think>"),
    ("", True, "", ""),
]


@pytest.mark.parametrize(("text", "thinking", "thought", "said"), CASES)
def test_the_parts_of_any_pieces_are_those_of_the_whole(text, thinking, thought, said):
    for size in range(1, len(text) + 2):
        parts, grown = Reasoning(thinking), ["", ""]
        pieces = [text[at : at + size] for at in range(0, len(text), size)]
        for got in (*map(parts.feed, pieces), parts.close()):
            grown = [old + new for old, new in zip(grown, got, strict=True)]
        assert grown == [thought, said] == [parts.thought, parts.said]


def test_text_that_is_certain_does_not_wait():
    parts = Reasoning()
    assert parts.feed("a <th") == ("", "a ")
    assert parts.feed("e b") == ("", "<the b")
    assert parts.feed("<think>c") == ("c", "")


def test_without_tags_all_is_said():
    parts = Reasoning(splits=False)
    assert parts.feed('{"a": "<think>') == ("", '{"a": "<think>')
    assert parts.close() == ("", "")


def test_places_are_counted_in_their_own_part():
    text = "<think>one 1</think>two 2<think>three 3</think>four 4"
    parts = Reasoning()
    for letter in text:
        parts.feed(letter)
    parts.close()
    for digit in "1234":
        at = text.index(digit)
        thinking, start, stop = parts.place(at, at + 1)
        assert thinking is (digit in "13")
        assert (parts.thought if thinking else parts.said)[start:stop] == digit
    first = text.index("two")
    thinking, start, stop = parts.place(first, len(text))
    assert not thinking
    assert parts.said[start:stop] == "two 2", "what is past the end of a piece is left out"
    assert parts.place(len(text), len(text)) == (False, len(parts.said), len(parts.said))
