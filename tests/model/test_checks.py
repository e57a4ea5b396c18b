"""What values are."""

import numpy as np
import pytest

from afn_model.checks import is_listed, is_number, is_whole


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
    ],
)
def test_what_values_are(value, whole, number, listed):
    assert (is_whole(value), is_number(value), is_listed(value)) == (whole, number, listed)
