"""A judge behind an endpoint: what it is asked, what is kept, and everything that goes wrong there."""

import json
import threading

import pytest

from afn_model.eval.rules.judge import RemoteJudge
from tests.model.infer.text_endpoint import reply, text_endpoint


def number(text):
    return float(text) if text.isdecimal() else None


def told(body):
    return body["messages"][-1]["content"]


def named(text, model="judge-2026"):
    return reply(text) | {"model": model}


def judge(there, path=None, **changes):
    return RemoteJudge(there.url, **{"model": "own", "cache": path, "waits": (0.001,) * 5, "together": 3} | changes)


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_reply_is_paid_for_once(tmp_path):
    path = tmp_path / "new" / "judge.jsonl"
    with text_endpoint(lambda body: named(told(body))) as there:
        first = judge(there, path, key="secret")
        assert first.grade(["1", "2", "1"], number, system="s", repeats=2, temperature=0.5) == [[1, 1], [2, 2], [1, 1]]
        messages = [{"role": "system", "content": "s"}, {"role": "user", "content": "2"}]
        bodies = [body for _, _, body in there.asked]
        assert bodies.count({"model": "own", "messages": messages, "temperature": 0.5}) == 2
        assert (len(bodies), first.asked, first.failures, first.unparsed, first.name) == (4, 4, 0, 0, "judge-2026")
        again = judge(there, path)
        assert again.grade(["2", "1"], lambda text: -float(text), system="s", repeats=2, temperature=0.5)[0] == [-2, -2]
        assert (again.asked, again.name, len(bodies)) == (0, "judge-2026", len(there.asked))
        # What the answer depends on is in the key: a third repeat, other settings, another system message or model.
        changes = [{"repeats": 3}, {"temperature": 0.0}, {"system": "other"}]
        for change in changes:
            again.grade(["1"], number, **{"system": "s", "repeats": 1, "temperature": 0.5} | change)
        judge(there, path, model="other").grade(["1"], number, system="s", temperature=0.5)
        assert len(there.asked) == 4 + 1 + 1 + 1 + 1
    assert {(row["model"], row["served"]) for row in lines(path)} == {("own", "judge-2026"), ("other", "judge-2026")}
    assert len({row["key"] for row in lines(path)}) == 8
    assert "secret" not in path.read_text() + repr(first)


def test_a_model_that_changes_under_its_name_is_seen(tmp_path):
    path = tmp_path / "judge.jsonl"
    with text_endpoint(lambda body: named("1", "judge-old")) as there:
        judge(there, path).grade(["a"], number)
    with text_endpoint(lambda body: named("1", "judge-new")) as there:
        both = judge(there, path)
        both.grade(["a", "b"], number)
        assert both.name == "judge-new + judge-old"
        both.grade(["b"], number)
        assert both.name == "judge-new"


@pytest.mark.parametrize("fault", [429, 500, 503, b"<html>", b'{"choices": [{"mess', {"choices": []}, b""])
def test_a_fault_that_passes(fault):
    faults = iter([fault] * 4)
    with text_endpoint(lambda body: next(faults, named("7"))) as there:
        found = judge(there)
        assert found.grade(["a", "b"], number) == [[7], [7]]
        assert (found.failures, found.asked, len(there.asked)) == (0, 2, 6)


def test_garbage_is_no_grade_and_is_kept(tmp_path):
    path = tmp_path / "judge.jsonl"
    with text_endpoint(lambda body: named({"a": "7", "b": "seven, or eight", "c": ""}[told(body)])) as there:
        found = judge(there, path)
        assert found.grade(["a", "b", "c"], number) == [[7], [None], [None]]
        found.grade(["b"], number)
        assert (found.unparsed, found.failures, len(there.asked)) == (2, 0, 3)
        assert judge(there, path).grade(["b"], lambda text: 7.5) == [[7.5]]
        assert len(there.asked) == 3


def test_a_refusal_is_asked_once_and_the_others_go_on():
    with text_endpoint(lambda body: 400 if told(body) == "b" else named("1")) as there:
        found = judge(there, give_up=1)
        assert found.grade(["a", "b", "c"], number, repeats=2) == [[1, 1], [None, None], [1, 1]]
        assert (found.failures, found.unparsed, len(there.asked)) == (2, 0, 6)
        assert "400 Bad Request" in found.last_failure


def test_only_failures_in_a_row_end_it():
    with text_endpoint(lambda body: named("1") if int(told(body)) % 3 else 404) as there:
        found = judge(there, give_up=2, together=1)
        assert found.grade([str(n) for n in range(30)], number) == [[1 if n % 3 else None] for n in range(30)]
    assert found.failures == 10


def test_a_model_that_takes_no_temperature(tmp_path):
    path = tmp_path / "judge.jsonl"
    said = json.dumps({"error": {"message": "Unsupported value: 'temperature' does not support 0 with this model."}})

    def answer(body):
        return (400, said.encode()) if "temperature" in body else named("1", "gpt")

    with text_endpoint(answer) as there:
        found = judge(there, path, together=1)
        assert found.grade(["a", "b"], number, temperature=0.0, top_p=1.0) == [[1], [1]]
        assert [sorted(body) for _, _, body in there.asked[1:]] == [["messages", "model", "top_p"]] * 2
        again = judge(there, path)
        again.grade(["a"], number, temperature=0.0, top_p=1.0)
        assert (found.name, again.name, again.asked) == ("gpt without temperature", "gpt without temperature", 0)


def test_an_endpoint_that_dies_in_the_middle(tmp_path):
    """Nine of twenty come; the rest is given up after a few tries, and asked for when it is back."""
    path, came, lock = tmp_path / "judge.jsonl", [], threading.Lock()

    def answer(body):
        with lock:
            came.append(told(body))
            return 503 if len(came) > 9 else named("1")

    prompts = [str(n) for n in range(200)]
    with text_endpoint(answer) as there:
        found = judge(there, path, waits=(0.001,), give_up=4)
        grades = found.grade(prompts, number)
        assert sum(grade == [1] for grade in grades) == 9
        assert (found.failures, found.unparsed) == (191, 0)
        assert len(there.asked) < 9 + 2 * (4 + 3) + 1
        asked = len(there.asked)
        assert found.grade(prompts, number) == grades  # another way of scoring does not wait again
        assert (found.failures, len(there.asked)) == (191, asked)
        path.write_bytes(path.read_bytes()[:-5])  # killed while it wrote
    # Nobody is there at all.
    gone = judge(there, path, waits=(0.001,), give_up=4)
    assert sum(grade == [1] for grade in gone.grade(prompts, number)) == 8
    assert gone.failures == 192
    assert "nobody answers" in gone.last_failure
    with text_endpoint(lambda body: named("1")) as back:
        more = judge(back, path)
        assert more.grade(prompts, number) == [[1]] * 200
        assert (more.asked, more.failures) == (192, 0)
    assert RemoteJudge(there.url, "own", cache=path).grade(prompts, number) == [[1]] * 200


def test_the_first_model_that_is_listed(tmp_path):
    path = tmp_path / "judge.jsonl"
    with text_endpoint(lambda body: named("1", body["model"])) as there:
        assert judge(there, path, model=None).grade(["a"], number) == [[1]]
    assert lines(path)[0]["model"] == "first"
    gone = judge(there, path, model=None)
    assert gone.grade(["a"], number) == [[1]]  # of the one model whose replies are there
    nobody = judge(there, model=None, waits=(1000.0,))  # and nobody waits for nobody
    assert nobody.grade(["a", "b"], number, repeats=2) == [[None, None], [None, None]]
    assert nobody.failures == 4
    path.write_text('[1]\n{"key": 1}\n{"key": "k", "model": "m", "text": null, "served": "m"}\nnull\n' + "[" * 9999)
    assert judge(there, path).grade(["a"], number) == [[None]]
