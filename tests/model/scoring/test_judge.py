"""The judge against a server on this machine that is slow, fails, or talks nonsense."""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from afn_model.scoring.judge import Again, Endpoint, GradeRequest, Judge, grade_in

GARBAGE = b"<html>"


@pytest.fixture
def server():
    """A server that answers by ``plan``: seconds to wait, an HTTP status, bytes to send or the text of a reply."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                found.requests.append((self.path, self.headers.get("Authorization"), body))
                answer = found.plan.pop(0) if isinstance(found.plan, list) else found.plan(body)
                found.now += 1
                found.most = max(found.most, found.now)
            try:
                if isinstance(answer, float):
                    time.sleep(answer)
                    answer = "10"
                status = answer if isinstance(answer, int) else 200
                reply = {"choices": [{"message": {"content": answer}}]}
                data = answer if isinstance(answer, bytes) else json.dumps(reply).encode()
                self.send_response(status)
                self.end_headers()
                self.wfile.write(data)
            except OSError:
                pass
            finally:
                with lock:
                    found.now -= 1

        def log_message(self, *_):
            pass

    lock = threading.Lock()
    found = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    found.daemon_threads = True
    found.plan, found.requests, found.now, found.most = [], [], 0, 0
    found.url = f"http://127.0.0.1:{found.server_port}/v1"
    thread = threading.Thread(target=found.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield found
    found.shutdown()
    thread.join()
    found.server_close()


def judge(server, **changes) -> Judge:
    return Judge(Endpoint(**{"url": server.url, "model": "grader", "timeout": 5.0, "backoff": 0.01, **changes}))


CASE = GradeRequest("What is heard?", "A dog.", "It must name the dog.")


def test_a_grade(server):
    server.plan = ["7"]
    assert judge(server).grades([CASE]) == [0.7]
    ((path, key, body),) = server.requests
    assert (path, key, body["model"], body["temperature"]) == ("/v1/chat/completions", None, "grader", 0)
    for part in (CASE.question, CASE.answer, CASE.rubric):
        assert part in body["messages"][1]["content"]


def test_an_access_key_from_the_environment(server, monkeypatch):
    monkeypatch.setenv("GRADER_KEY", "abc")
    server.plan = ["1"]
    judge(server, key_variable="GRADER_KEY").grades([CASE])
    assert server.requests[0][1] == "Bearer abc"


@pytest.mark.parametrize("failure", [500, 503, 429, GARBAGE, b"{}", "very good", "11", 3.0])
def test_a_failure_and_then_success(server, failure):
    server.plan = [failure, "10"]
    found = judge(server, timeout=0.3)
    assert found.grades([CASE]) == [1.0]
    assert len(server.requests) == 2
    assert found.failures == 0


def test_failures_without_end(server):
    server.plan = lambda body: 500
    found = judge(server, retries=2)
    assert found.grades([CASE]) == [None]
    assert (len(server.requests), found.failures) == (3, 1)
    assert "HTTP 500" in found.last_failure


def test_time_outs_without_end(server):
    server.plan = lambda body: 3.0
    found = judge(server, retries=1, timeout=0.2)
    began = time.perf_counter()
    assert found.grades([CASE]) == [None]
    assert time.perf_counter() - began < 2
    assert "timed out" in found.last_failure


def test_a_deadline_for_all(server):
    """Slow answers, one after another by a single thread, cost their grades and no more time than was given."""
    server.plan = lambda body: "10" if body["messages"][1]["content"].endswith("first") else 3.0
    found = judge(server, deadline=1.5, concurrency=1)
    cases = [GradeRequest("q", "first", "r"), *[CASE] * 8]
    began = time.perf_counter()
    assert found.grades(cases) == [1.0, *[None] * 8]
    assert time.perf_counter() - began < 10, "one after another they take 24 s"
    assert found.failures == 8
    assert "no grade within the deadline of 1.5 s" in found.last_failure


def test_a_refused_request_is_not_sent_again(server):
    server.plan = [401]
    found = judge(server)
    assert found.grades([CASE]) == [None]
    assert len(server.requests) == 1
    assert "HTTP 401" in found.last_failure


def test_nobody_there(server):
    found = judge(server, url="http://127.0.0.1:9/v1", retries=1)
    assert found.grades([CASE]) == [None]
    assert "127.0.0.1:9" in found.last_failure


def test_waiting_doubles(server, monkeypatch):
    slept = []
    monkeypatch.setattr(time, "sleep", slept.append)
    server.plan = lambda body: 500
    judge(server, retries=3, backoff=0.5).grades([CASE])
    assert slept == [0.5, 1.0, 2.0]


def test_many_at_a_time_in_order(server):
    server.plan = lambda body: body["messages"][1]["content"][-1]
    cases = [GradeRequest("q", str(i % 10), "r") for i in range(30)]
    assert judge(server, concurrency=4).grades(cases) == [i % 10 / 10 for i in range(30)]
    assert server.most <= 4

    server.most, server.plan = 0, lambda body: 0.2
    began = time.perf_counter()
    assert judge(server, concurrency=8).grades(cases[:8]) == [1.0] * 8
    assert time.perf_counter() - began < 8 * 0.2
    assert server.most > 1


def test_grades():
    for text, grade in (("7", 0.7), (" 10\n", 1.0), ("Score: 7/10", 0.7), ("**3**", 0.3), ("2.5", 0.25), ("0", 0.0)):
        assert grade_in(text) == grade
    for text in ("", "good", "11", "-3", "7 or 8", "7, because 3 dogs", None):
        with pytest.raises(Again, match="is no grade"):
            grade_in(text)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"url": "localhost"}, "url 'localhost'"),
        ({"model": ""}, "model ''"),
        ({"timeout": 0}, "out of range"),
        ({"timeout": float("inf")}, "out of range"),
        ({"retries": -1}, "out of range"),
        ({"deadline": 600.0}, "deadline is 600.0 s"),
        ({"key_variable": "NO_SUCH_VARIABLE"}, "NO_SUCH_VARIABLE is not set"),
    ],
)
def test_an_endpoint_that_cannot_be(changes, reason):
    with pytest.raises(ValueError, match=reason):
        Endpoint(**{"url": "http://localhost/v1", "model": "m", **changes})
