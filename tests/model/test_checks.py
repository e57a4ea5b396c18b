"""What values are."""

import json

import numpy as np
import pytest

from afn_model.checks import is_listed, is_number, is_whole, named, number, said, share, shown, whole


@pytest.mark.parametrize(
    ("value", "whole", "number", "listed"),
    [
        (5, True, True, False),
        (np.int64(5), True, True, False),
        (1.5, False, True, False),
        (np.float32(1.5), False, True, False),
        (True, False, False, False),
        ("5", False, False, False),
        (None, False, False, False),
        ([5], False, False, True),
        ((), False, False, True),
        ({"a": 1}, False, False, False),
        (np.array(5.0), False, False, False),
    ],
)
def test_what_values_are(value, whole, number, listed):
    assert (is_whole(value), is_number(value), is_listed(value)) == (whole, number, listed)


def test_a_value_is_shown_in_one_short_line():
    bomb: list = ["x"]
    for _ in range(60):
        bomb = [bomb, bomb]
    for value in (bomb, "a\nb", "x" * 10**7, list(range(10**6)), np.zeros((99, 99)), 10**5000, {"a": {"b": bomb}}):
        assert "\n" not in shown(value)
        assert len(shown(value)) <= 80
    assert shown(bytes(10**7)) == "10000000 bytes"
    assert shown("caf\udce9") == "'caf\\udce9'"
    assert said(ValueError(" a\n\nb " * 1000)) == ("a b " * 75)


@pytest.mark.parametrize("value", [True, 2.0, "2", None, 0, 9, 10**400, float("nan"), [2]])
def test_what_is_no_whole_number_of_a_range(value):
    with pytest.raises(ValueError, match=r"^heads must be a whole number from 1 to 8, got "):
        whole(value, "heads", 1, 8)
    assert whole(np.int64(8), "heads", 1, 8) == 8


@pytest.mark.parametrize("value", [True, "2", None, 0, -1.0, 10**400, float("nan"), float("inf"), [2], 1j])
def test_what_is_no_finite_number_above_zero(value):
    with pytest.raises(ValueError, match=r"^theta must be a finite number above 0, got "):
        number(value, "theta", above=0)
    assert number(np.float32(0.5), "theta", above=0) == 0.5


@pytest.mark.parametrize("value", [-0.1, 1.01, True, float("nan"), "1"])
def test_what_is_no_share(value):
    with pytest.raises(ValueError, match=r"^part must be "):
        share(value, "part")
    assert (share(0, "part"), share(1, "part")) == (0.0, 1.0)
    assert number(-3, "alpha") == -3.0


def test_a_callable_is_named_by_its_module_and_name():
    assert named("json:dumps", "fetcher") is json.dumps
    for wrong in ("", "json", "json:", ":dumps", "json:nothing", "no_such_module:f", "json:__doc__", 3):
        with pytest.raises(ValueError, match=r"^fetcher .*module:function") as caught:
            named(wrong, "fetcher")  # type: ignore[arg-type]
        assert "\n" not in str(caught.value)
