"""Annotators against a server that fails by plan: what is paid for once, tried again, repaired, or named an error."""

import os
import signal
import sqlite3
import time
from dataclasses import replace

import pytest

from afn_model.curate.annotators import WAITS, annotator_of
from afn_model.curate.requests import AnnotationRequest
from afn_model.curate.spending import Spending, StopRun
from afn_model.curate.stage import NotReady
from afn_model.curate.stand_ins.server import RuleServer

SCHEMA = {"type": "object", "required": ["caption"], "properties": {"caption": {"type": "string"}}}
GOOD = '{"caption": "A bell rings twice in a large hall."}'


def request(number=0, *, text="", schema=None, language="", **more):
    asked = [{"role": "user", "content": text or f"Question {number}?"}]
    return AnnotationRequest(f"s{number}", "caption", 1, "p", "h", asked, schema=schema, language=language, **more)


def annotator(server, out, shard="0", **told):
    spending = told.pop("spending", None)
    waits = told.pop("waits", (0.001, 0.001))
    found = annotator_of("a", {"url": server.url, "model": "rules", **told}, out, shard, spending)
    found.waits = waits
    return found


def first(fault, times=1):
    return lambda body, sent: fault if sent < times and len(body.get("messages", ())) == 1 else ""


def test_a_reply_is_paid_for_once(tmp_path):
    asked = [request(n) for n in (*range(6), 0)]
    with RuleServer(lambda body: f"Reply to {body['messages'][0]['content']}") as server:
        found = annotator(server, tmp_path)(asked)
        assert [one.text for one in found] == [f"Reply to Question {n}?" for n in (*range(6), 0)]
        assert [one.model for one in found] == ["rules"] * 7
        assert len({one.id for one in found}) == 6
        assert server.answered == 6
        assert annotator(server, tmp_path)(asked) == found  # another process, the same shard
        assert annotator(server, tmp_path, shard="00000-of-00002")(asked) == found  # divided anew
        assert server.answered == 6
        annotator(server, tmp_path)([replace(one, version=2) for one in asked])
        annotator(server, tmp_path, revision="2")(asked)
        annotator(server, tmp_path, settings={"temperature": 1})(asked)
        assert server.answered == 24  # another version, model or setting is another reply


def test_no_reply_is_paid_for_twice_over_kills(tmp_path):
    """The process is killed while a request is on its way, at every third of them: only that one is sent again."""
    asked, told, kills = [request(n, schema=SCHEMA) for n in range(8)], [], []

    def answer(body):
        told.append(body["messages"])
        if len(told) % 3 == 0:
            kills.append(told[-1])
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        # Half of the requests need a repair, which is asked for after the next start too.
        return GOOD if len(body["messages"]) > 1 or int(body["messages"][0]["content"][9]) % 2 else "a bell"

    with RuleServer(answer) as server:
        while True:
            (read, write), (ready, go) = os.pipe(), os.pipe()
            child = os.fork()
            if child == 0:
                try:
                    os.close(read)
                    os.read(ready, 1)  # the other side knows the number of this process by then
                    found = annotator(server, tmp_path, max_in_flight=1)(asked)
                    os.write(write, "".join("x" if one.error else "." for one in found).encode())
                finally:
                    os._exit(0)
            os.write(go, b".")
            os.close(write)
            done = os.read(read, 100)
            for end in (read, ready, go):
                os.close(end)
            if done:
                os.waitpid(child, 0)
                break
        assert done == b"." * 8
        distinct = {str(one) for one in told}
        assert len(distinct) == 8 + 4
        assert len(kills) >= 4
        assert len(told) == len(distinct) + len(kills)  # one more for each that was lost on its way
        assert not [one.error for one in annotator(server, tmp_path)(asked) if one.error]
        assert len(told) == len(distinct) + len(kills)


@pytest.mark.parametrize("fault", ["429", "500", "drop", "page"])
def test_what_may_pass_is_tried_again_and_later_too(tmp_path, fault):
    with RuleServer(lambda body: "A bell rings.", faults=first(fault)) as server:
        (found,) = annotator(server, tmp_path)([request()])
        assert (found.text, found.error, found.attempts) == ("A bell rings.", "", 2)
    with RuleServer(lambda body: "A bell rings.", faults=first(fault, 3)) as server:
        (found,) = annotator(server, tmp_path / "b")([request()])
        assert found.error
        assert found.retryable
        assert found.data is None
        assert found.attempts == 3
        (found,) = annotator(server, tmp_path / "b")([request()])
        assert (found.data, found.attempts, server.answered) == ("A bell rings.", 4, 1 + 3 * (fault == "page"))


def test_waits_grow_and_heed_the_server(tmp_path):
    waited, server = [], RuleServer(lambda body: "A bell rings.", faults=first("429", 3))
    with server:
        found = annotator(server, tmp_path, waits=(0.001, 0.002, 0.04))
        found.stop.wait = lambda seconds: waited.append(seconds) is not None
        assert not found([request()])[0].error
    assert waited[:2] == [0.01, 0.01]
    assert 0.04 <= waited[2] <= 0.08


USELESS = [
    ("garbage", "garbage", None),
    ("loop", "garbage: a loop", None),
    ("half", "cut off", None),
    ("half", "cut off", SCHEMA),
    ("refusal", "refused", None),
    ("refusal", "refused", SCHEMA),
    ("empty", "empty", SCHEMA),
    ("garbage", "no JSON", SCHEMA),
    ("language", "another language: de", None),
]


@pytest.mark.parametrize(("fault", "error", "schema"), USELESS)
def test_a_useless_reply_is_repaired_once_or_named(tmp_path, fault, error, schema):
    asked = [request(schema=schema, language="en")]
    with RuleServer(lambda body: GOOD, faults=first(fault)) as server:
        (found,) = annotator(server, tmp_path)(asked)
        if fault == "refusal":
            assert found.error == "refused"
            assert server.answered == 1
        else:
            assert not found.error
            assert found.attempts == 2 == server.answered
            assert found.data == ({"caption": "A bell rings twice in a large hall."} if schema else GOOD)
    with RuleServer(lambda body: GOOD, faults=lambda body, sent: fault) as server:
        for _ in range(2):
            (found,) = annotator(server, tmp_path / "always")(asked)
            assert (found.error, found.data, found.retryable) == (error, None, False)
        assert server.answered == (1 if fault == "refusal" else 2)  # and is not asked for again


def test_a_budget_of_calls_is_never_passed(tmp_path):
    asked = [request(n) for n in range(12)]
    with RuleServer(lambda body: "A bell rings.") as server:
        for run, calls in enumerate((5, 5, 5)):
            since = (tmp_path / "spent").stat().st_size if run else 0
            limit = Spending(tmp_path / "spent", since, {"calls": calls})
            ask = annotator(server, tmp_path, spending=limit, max_in_flight=4)
            if run < 2:
                with pytest.raises(StopRun, match="calls"):
                    ask(asked)
                assert server.answered == 5 * (run + 1)
            else:
                assert not any(one.error for one in ask(asked))
        assert server.answered == 12
        told = Spending(tmp_path / "spent").look().total
        assert told["calls"] == 12
        assert told["tokens"] > 12


def test_calls_at_a_time_and_in_a_minute(tmp_path):
    def answer(body):
        time.sleep(0.01)
        return "A bell rings."

    with RuleServer(answer) as server:
        annotator(server, tmp_path, max_in_flight=3)([request(n) for n in range(9)])
        assert server.most <= 3
        ask, began = annotator(server, tmp_path / "slow", per_minute=600), time.monotonic()
        ask([request(n) for n in range(4)])
        assert time.monotonic() - began >= 0.3  # three times a tenth of a second after the first


def test_a_plan_says_how_long_a_second_try_waits(tmp_path):
    told = {"url": "http://127.0.0.1:1/v1", "model": "m"}
    assert annotator_of("a", told, tmp_path, "0").waits == WAITS
    assert annotator_of("a", {**told, "wait": 0.5}, tmp_path, "0").waits == tuple(one / 2 for one in WAITS)
    with pytest.raises(NotReady, match="annotator a: wait must be a finite number above 0"):
        annotator_of("a", {**told, "wait": 0}, tmp_path, "0")


def test_what_no_request_can_mend_ends_the_run(tmp_path):
    with RuleServer(lambda body: "A bell.", key="secret") as server, pytest.raises(NotReady, match="401"):
        annotator(server, tmp_path)([request()])
    rows = sqlite3.connect(tmp_path / "cache" / "a" / "0.sqlite").execute("SELECT * FROM replies").fetchall()
    assert not rows
    nobody = annotator(server, tmp_path, max_in_flight=1, waits=(0.0,))
    with pytest.raises(NotReady, match="nobody answers"):
        nobody([request(n) for n in range(20)])
