"""Ids of content: the same wherever and whenever, and of nothing that JSON cannot say."""

import pytest

from afn_model.curate import identity


def test_ids_are_those_of_blake3():
    # The published test vector of BLAKE3 for no input.
    assert identity.digest(b"") == "af1349b9f5f9a1a6a0404dea36dcc949"
    assert identity.of("a", {"x": 1, "y": [2.5, None]}) == identity.digest(b'["a",{"x":1,"y":[2.5,null]}]')


def test_an_id_says_content_alone():
    assert identity.of({"a": 1, "b": 2}) == identity.of({"b": 2, "a": 1})
    assert identity.of("a", "b") != identity.of("ab")
    assert identity.of("\udcff") != identity.of("?")  # a file name that is no Unicode
    assert identity.segment_id("s", 10.0, 20.0) == identity.segment_id("s", 10.0002, 19.9999)
    assert identity.segment_id("s", 10.0, 20.0) != identity.segment_id("s", 10.002, 20.0)


def test_what_is_drawn_depends_on_what_is_named_and_is_spread_evenly():
    drawn = [identity.fraction("x", at) for at in range(400)]
    assert drawn == [identity.number("x", at) / 2**52 for at in range(400)]
    assert 0 <= min(drawn) < max(drawn) < 1
    assert all(70 < sum(low <= one < low + 0.25 for one in drawn) < 130 for low in (0, 0.25, 0.5, 0.75))
    assert {identity.pick("abc", at) for at in range(40)} == {*"abc"}


@pytest.mark.parametrize("value", [float("nan"), {1, 2}, b"x", [object()]])
def test_what_json_cannot_say_has_no_id(value):
    with pytest.raises(ValueError, match="no JSON"):
        identity.of(value)
