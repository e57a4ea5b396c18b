import time

import pytest

from afn_model.speech.text import spoken_text


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Hello, world.", "Hello, world."),
        ("**Bold** and `code`\n- item\x00\u200b", "Bold and code item"),
        ("<|im_start|>See [the page](http://x.y/z) <b>now</b> \U0001f600!", "See the page now !"),
        ("3 < 4, it's 5 €", "3 < 4, it's 5 €"),
        ("\u00e9t\u00e9 \u4f60\u597d", "\u00e9t\u00e9 \u4f60\u597d"),
        ("<\u200bthink>see <|\U0001f600im_end|>it", "see it"),
        ("one\n\n  - two\r\n > three", "one two three"),
    ],
)
def test_what_is_not_said_is_left_out(text, said):
    assert spoken_text(text) == said


@pytest.mark.parametrize("text", ["[", "[](", "<a", "<|", "\n", "\n-", "*_", ">"])
def test_a_text_is_read_in_time_that_grows_with_its_length(text):
    began = time.process_time()
    assert spoken_text(text * (100_000 // len(text)) + " it").endswith("it")
    assert time.process_time() - began < 1


@pytest.mark.parametrize("text", ["", " \n", "?!...", "<|im_end|>", "\U0001f600", "**"])
def test_text_without_a_letter_or_digit_is_refused(text):
    with pytest.raises(ValueError, match="there is nothing to say in "):
        spoken_text(text)


@pytest.mark.parametrize("mark", ["\ufffd", chr(0xD800), "\ue000", "\U000e0080"])
def test_a_character_that_is_none_is_refused_by_its_number(mark):
    with pytest.raises(ValueError, match=f"U\\+{ord(mark):04X}"):
        spoken_text(f"say {mark}")


def test_anything_but_text_is_refused():
    with pytest.raises(ValueError, match="must be text, got 3"):
        spoken_text(3)  # type: ignore[arg-type]


@pytest.mark.parametrize("part", ["\n", "[", "[](", "<a", "<|"])
def test_time_grows_with_the_length_alone(part):
    began = time.process_time()
    assert spoken_text(part * 20_000 + "one").endswith("one")
    assert time.process_time() - began < 2  # the square of the length takes 3 to 80 s
