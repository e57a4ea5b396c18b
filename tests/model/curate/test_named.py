"""Callables by name."""

import json

import pytest

from afn_model.checks import named


def test_a_callable_is_named_by_its_module_and_name():
    assert named("json:dumps", "fetcher") is json.dumps
    for wrong in ("", "json", "json:", ":dumps", "json:nothing", "no_such_module:f", "json:__doc__", 3):
        with pytest.raises(ValueError, match=r"^fetcher .*module:function") as caught:
            named(wrong, "fetcher")  # type: ignore[arg-type]
        assert "\n" not in str(caught.value)
