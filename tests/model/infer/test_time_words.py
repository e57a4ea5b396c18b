"""Numbers in words, and words around them."""

import pytest

from afn_model.infer.stated_times import stated_times
from afn_model.infer.time_words import number_value

NUMBERS = {"one": 1, "nineteen": 19, "forty": 40, "Ninety-nine": 99, "twenty five": 25, "a hundred": 100, "12.5": 12.5}


@pytest.mark.parametrize(("words", "value"), [*NUMBERS.items(), ("two hundred and fifteen", 215)])
def test_numbers_in_words(words, value):
    assert number_value(words) == value
    assert [one.start for one in stated_times(f"at {words} seconds")] == [value]


@pytest.mark.parametrize("lead", ["at", "from about", "just before", "starting at", "no later than", "up to", "("])
def test_words_that_say_when(lead):
    assert [one.start for one in stated_times(f"A bell rings {lead} 7 seconds")] == [7]


@pytest.mark.parametrize("lead", ["for", "for about", "lasting", "every", "longer than", "delayed by", "a", "in"])
def test_words_that_say_how_long(lead):
    assert stated_times(f"A bell rings {lead} 7 seconds") == []
    assert stated_times(f"A bell rings {lead} 7 seconds in the middle of the night.") == []


@pytest.mark.parametrize("clock", ["Mark 4:12", "a 3:45 song", "7:30 pm", "Final score: 21:14", "a ratio of 1:10"])
def test_two_numbers_and_a_colon_that_are_no_time(clock):
    assert stated_times(f"There is {clock}.") == []
    assert len(stated_times(f"There is {clock} and a bell at 1:02.")) == 1
