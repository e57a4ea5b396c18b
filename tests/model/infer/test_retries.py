"""Requests that are tried again: for how long, after which errors, and without which settings."""

import json
import threading

import pytest

from afn_model.infer import retries
from afn_model.infer.elsewhere import ElsewhereError
from afn_model.infer.retries import LONGEST_WAIT, RetryingEndpoint
from tests.model.infer.text_endpoint import reply, text_endpoint


def failing(*errors):
    """A request that raises these, and then returns 7."""
    left = iter([ElsewhereError("http://x", "no", **error) for error in errors])

    def request():
        for error in left:
            raise error
        return 7

    return request


@pytest.fixture
def waited(monkeypatch):
    found = []
    monkeypatch.setattr(retries.random, "uniform", lambda low, high: high)
    monkeypatch.setattr(threading.Event, "wait", lambda self, seconds=None: found.append(seconds))
    return found


def test_waits_are_as_long_as_given_or_as_asked_for_within_a_limit(waited):
    busy = {"status": 429, "may_pass": True}
    endpoint = RetryingEndpoint("http://x", waits=(1.5, 3, 6, 12))
    assert endpoint.retried(failing(busy, busy, busy | {"after": 20.0}, busy | {"after": 1000.0})) == 7
    assert waited == [3, 6, 20, LONGEST_WAIT]
    with pytest.raises(ElsewhereError):
        endpoint.retried(failing(*[busy] * 5))
    assert len(waited) == 8


def test_what_cannot_pass_is_not_tried_again(waited):
    with pytest.raises(ElsewhereError):
        RetryingEndpoint("http://x").retried(failing({"status": 400}))
    with pytest.raises(ElsewhereError):
        RetryingEndpoint("http://x").retried(failing({}))
    assert waited == []
    assert RetryingEndpoint("http://x", broken=True).retried(failing({})) == 7
    closed = RetryingEndpoint("http://x")
    closed.closed.wait = lambda seconds: True
    with pytest.raises(ElsewhereError):
        closed.retried(failing({"may_pass": True}))


def test_settings_that_are_unsupported_are_left_out_or_renamed():
    def say(body):
        for name in ("max_tokens", "temperature"):
            if name in body:
                return 400, {"error": {"message": f"Unsupported parameter: '{name}' is not supported."}}
        return reply(json.dumps(sorted(body)))

    fields = {"max_tokens": 9, "temperature": 0.0, "seed": 0}
    with text_endpoint(say) as there:
        endpoint = RetryingEndpoint(there.url, waits=())
        for asked in (3, 4):
            told = endpoint.complete([], fields, model="m")["choices"][0]["message"]["content"]
            assert json.loads(told) == ["max_completion_tokens", "messages", "model", "seed"]
            assert (endpoint.without(fields), len(there.asked)) == (["temperature"], asked)
    with (
        text_endpoint(lambda body: (400, {"error": "unsupported: your question"})) as there,
        pytest.raises(ElsewhereError, match="unsupported: your question"),
    ):
        RetryingEndpoint(there.url).complete([], fields, model="m")
    assert len(there.asked) == 1
