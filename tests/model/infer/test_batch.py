"""Files of requests and answers: what is dealt to whom, what is written, and what a killed run leaves."""

import errno
import json
import os

import pytest

from afn_model.infer import batch
from afn_model.infer.batch import BatchItem, BatchOutput, answer_batch, pieces_of
from afn_model.infer.batch_lines import Said, Usage, read_line
from afn_model.infer.sampling_params import SamplingParams

SHORT = SamplingParams(max_new_tokens=4)


class Echo:
    """Workers that answer with the id, the last one that they were given first."""

    def __init__(self, count: int = 1):
        self.count, self.sent, self.calls = count, [[] for _ in range(count)], []
        self.groups = [[] for _ in range(count)]

    def send(self, index, lines):
        self.sent[index] += lines
        self.groups[index] += [number for number, _ in lines]
        self.calls.append(index)

    def receive(self):
        index = self.calls.pop(0)
        number, raw = self.sent[index].pop()
        line = read_line(raw, number)
        try:
            row = line.answer(line.request("", SHORT), [Said(str(line.id), "stop", 1)], Usage(1, 0, 0))
        except ValueError as error:
            row = line.error(str(error))
        return index, [(number, row)]

    def close(self):
        self.count = 0


def write(path, rows):
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows))
    return path


def read(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def asks(name, **fields) -> dict:
    return {"id": name, "messages": [{"role": "user", "content": "What is said?"}], **fields}


def run(source, target, workers=None, **options):
    return answer_batch(source, target, lambda: workers or Echo(), defaults=SHORT, **options)


def test_lines_about_a_recording_go_together_the_longest_first():
    about = [("a", 10.0), ("b", 99.0), (None, 0.0), ("a", 10.0), (None, 0.0), ("b", 99.0)]
    items = [
        BatchItem(read_line(b"{}", number), 0, 1, () if name is None else ((name, None, None),), seconds)
        for number, (name, seconds) in enumerate(about)
    ]

    def numbers(**options) -> list[list[int]]:
        return [[item.line.number for item in piece] for piece in pieces_of(items, **options)]

    assert numbers(in_order=False) == [[1, 5], [0, 3], [2], [4]]
    assert numbers(in_order=True) == [[0], [1], [2], [3], [4], [5]]
    many = [items[0]] * (2 * batch.PIECE + 1)
    assert [len(piece) for piece in pieces_of(many, False)] == [batch.PIECE, batch.PIECE, 1]


def test_every_line_once(tmp_path):
    said = {"custom_id": "c", "method": "POST", "url": "/v1/chat/completions"}
    said["body"] = {"messages": [{"role": "user", "content": "?"}]}
    rows = [asks("a"), asks("b"), "", "no json", asks("a"), said, {"id": "wrong"}, asks("last")]
    source, target = write(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl"
    told = []
    done = run(source, target, on_progress=lambda progress: told.append(progress.lines))
    assert (done.lines, done.errors, done.before, told) == (7, 3, 0, list(range(8)))
    found = read(target)
    assert {row.get("answer") for row in found} >= {"a", "b", "last"}
    wrong = {row["error"]["line"]: row["error"] for row in found if row.get("error")}
    assert wrong[5]["message"] == "line 5 has the id 'a' of line 1, which alone is answered"
    assert wrong[4]["message"].startswith("not JSON")
    assert wrong[7]["message"].startswith("a record needs either")
    again = run(source, target, workers=object())
    assert (again.lines, again.before, read(target)) == (0, 7, found)
    with source.open("a") as file:
        file.write(json.dumps(asks("new")) + "\n")
    assert (run(source, target).lines, read(target)[:-1]) == (1, found)
    assert run(source, tmp_path / "first.jsonl", limit=2).lines == 2


def test_order_and_replicas(tmp_path):
    source = write(tmp_path / "in.jsonl", [asks(f"{n}") if n != 3 else "no json" for n in range(9)])
    for count in (1, 3):
        workers, target = Echo(count), tmp_path / f"{count}.jsonl"
        run(source, target, workers, in_order=True)
        assert [row["id"] for row in read(target)] == ["0", "1", "2", None, "4", "5", "6", "7", "8"]
        assert workers.count == 0, "closed"
        assert all(workers.groups)
        assert sorted(number for group in workers.groups for number in group) == [1, 2, 3, 5, 6, 7, 8, 9]
        free = tmp_path / f"free{count}.jsonl"
        run(source, free, Echo(count), together=1)
        assert {row["id"] for row in read(free)} == {row["id"] for row in read(target)}
        assert len(read(free)) == 9


def test_a_torn_line_is_written_anew_and_another_file_is_left_alone(tmp_path):
    source, target = write(tmp_path / "in.jsonl", [asks("a"), asks("b")]), tmp_path / "out.jsonl"
    run(source, target)
    whole = target.read_bytes()
    first = whole.index(b"\n") + 1
    for torn in (whole[: first + 3], whole[:first] + b'{"id": "b", "ans', whole[:-1], b'{"'):
        target.write_bytes(torn)
        run(source, target)
        assert sorted(target.read_bytes().splitlines()) == sorted(whole.splitlines())
    for other in (b"a diary", b'{"text": 1}\n', b"\n", whole + b"more"):
        target.write_bytes(other)
        with pytest.raises(ValueError, match=r"out\.jsonl.*that a batch has written; choose another"):
            run(source, target)
        assert target.read_bytes() == other
    with pytest.raises(ValueError, match=r"in\.jsonl: is the file of requests"):
        run(source, source)
    with pytest.raises(ValueError, match=r"nowhere: no such file"):
        run(tmp_path / "nowhere", target)
    with pytest.raises(ValueError, match="is there and not a regular file"):
        run(source, tmp_path)


def test_one_process_writes(tmp_path):
    source, target = write(tmp_path / "in.jsonl", [asks("a")]), tmp_path / "out.jsonl"
    output = BatchOutput(target)
    with pytest.raises(ValueError, match="another process is writing to it"):
        run(source, target)
    output.close()
    assert run(source, target).lines == 1


def test_errors_are_answered_again_where_that_is_asked(tmp_path):
    source, target = write(tmp_path / "in.jsonl", [asks("a"), {"id": "w"}]), tmp_path / "out.jsonl"
    assert run(source, target).errors == 1
    write(source, [asks("a"), asks("w")])
    assert (run(source, target).lines, run(source, target, retry_errors=True).lines) == (0, 1)
    again = run(source, target, retry_errors=True)
    assert (again.lines, again.before, [row["id"] for row in read(target)]) == (0, 2, ["w", "a", "w"])
    assert [row.get("answer") for row in read(target)] == [None, "a", "w"]


def test_too_many_errors(tmp_path):
    rows = [asks("a"), {"id": "w1"}, {"id": "w2"}]
    source, target = write(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl"
    with pytest.raises(ValueError, match=r"2 lines with errors; the last one, line 2: a record needs"):
        run(source, target, max_errors=1)
    assert run(source, target, max_errors=1).errors == 0


def test_a_full_disk_is_one_error_and_the_run_goes_on_later(tmp_path, monkeypatch):
    source, target = write(tmp_path / "in.jsonl", [asks(f"{n}") for n in range(5)]), tmp_path / "out.jsonl"
    write_, left = os.write, 200

    def full(handle, data):
        nonlocal left
        if not left:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        done = write_(handle, data[:left])
        left -= done
        return done

    with monkeypatch.context() as patched:
        patched.setattr(batch.os, "write", full)
        with pytest.raises(ValueError, match=r"out\.jsonl: No space left on device; .* the same command goes on"):
            run(source, target)
    assert target.read_bytes().endswith(b"\n")
    assert 0 < len(read(target)) < 5
    done = run(source, target)
    assert (done.lines + done.before, len(read(target))) == (5, 5)
    assert {row["answer"] for row in read(target)} == set("01234")
