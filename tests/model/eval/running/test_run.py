"""The run of questions: what is asked by whom, and that kills, shares and errors change no answer."""

import errno
import json
import os
import random
import signal
import time
from collections import Counter
from dataclasses import replace

import pytest

from afn_model.eval.running.answers import FOLDER, read_answers
from afn_model.eval.running.run import SPENT, Share, answers_of, prepare, read_run, run, write_run
from afn_model.eval.table import benchmarks
from afn_model.infer import batch
from tests.model.eval.running.scripted import ASKING, ScriptedWorkers, asks, echo, items
from tests.model.serve.serving import wav


def texts(out) -> dict[str, str]:
    return {key: row["answer"] for key, row in read_answers(out).items() if "answer" in row}


def lines(out) -> list[dict]:
    """All whole lines of all files of answers."""
    found = []
    for path in sorted((out / FOLDER).glob("*.jsonl")):
        found += [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]
    return found


def sometimes_wrong(fields) -> str:
    """Every seventh key has an error, the same one each time."""
    if int(fields["id"].rpartition("/")[2], 16) % 7 == 0:
        raise ValueError("no such sound")
    return echo(fields)


class Killed(ScriptedWorkers):
    """Ends its process with SIGKILL when so many answers have come; a process that has no more to do just ends."""

    def __init__(self, say, count, after):
        super().__init__(say, count)
        self.after = after

    def receive(self):
        if self.after == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        self.after -= 1
        return super().receive()


def forked(work) -> int:
    """Exit code of a process that does ``work``; a signal's is negative."""
    child = os.fork()
    if not child:
        try:
            work()
        except BaseException:
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def torn_at(left: int):
    """``os.write`` that ends the process inside of the line in which so many bytes are written."""
    write = os.write

    def torn(handle, data):
        nonlocal left
        if left < len(data):
            write(handle, data[:left])
            os.kill(os.getpid(), signal.SIGKILL)
        left -= len(data)
        return write(handle, data)

    return torn


def test_lines_of_answers_that_no_run_has_written_are_counted(tmp_path):
    """``score`` leaves them out; a run goes on beside them, and what is torn at the end is cut off."""
    todo = asks(items(6))
    run(todo[:3], tmp_path, lambda _: ScriptedWorkers(echo))
    (path,) = (tmp_path / FOLDER).glob("*.jsonl")
    path.write_bytes(path.read_bytes() + b'a diary\n[1]\n{"text": 1}\n{"id": "x", "ans')
    assert run(todo, tmp_path, lambda _: ScriptedWorkers(echo)).others == 3
    assert set(texts(tmp_path)) == {ask.key for ask in todo}
    assert path.read_bytes().count(b"diary") == 1
    assert b'"x"' not in path.read_bytes()


@pytest.mark.parametrize("shares", [(1,), (2,), (3,), (1, 2, 3)])
def test_twenty_kills_change_no_answer(tmp_path, shares):
    todo, whole = asks(items(60)), tmp_path / "whole"
    run(todo, whole, lambda _: ScriptedWorkers(sometimes_wrong))
    assert 3 < len(todo) - len(texts(whole)) < 20
    out, dice = tmp_path / "out", random.Random(sum(shares))
    killed, left = 0, []
    for point in range(20):
        count = shares[point % len(shares)]
        share = Share(point // len(shares) % count, count)
        before = {row["id"] for row in lines(out)} if out.exists() else set()

        def work(point=point, share=share, before=before):
            workers = Killed(sometimes_wrong, 2, dice.randrange(6) if point % 2 else 10**6)
            if point % 2 == 0:
                batch.os.write = torn_at(dice.randrange(1, 900))
            run(todo, out, lambda _: workers, share=share)

        killed += forked(work) == -signal.SIGKILL
        dice.random(), dice.random()  # the child has thrown its own
        left.append(len(texts(out)))
    assert killed >= 15
    assert left == sorted(left)
    assert 0 < len(texts(out)) < len(texts(whole))
    count, workers = shares[-1], []
    for index in range(count):
        answered = set(texts(out))
        workers.append(ScriptedWorkers(sometimes_wrong, 2))
        run(todo, out, lambda _: workers[-1], share=Share(index, count))
        assert not answered & set(workers[-1].asked), "asked again"
    assert texts(out) == texts(whole)
    assert read_answers(out).keys() == {ask.key for ask in todo}
    times = Counter(row["id"] for row in lines(out) if "answer" in row)
    assert set(times.values()) == {1}
    assert {key for key, row in read_answers(out).items() if "error" in row} == {
        ask.key for ask in todo if ask.key not in times
    }


def test_shares_are_the_whole_and_work_at_the_same_time(tmp_path):
    todo = asks(items(40))
    run(todo, tmp_path / "one", lambda _: ScriptedWorkers(echo))
    children = []

    def together(questions):
        """Workers, when all three know what is left to ask."""
        until = time.monotonic() + 30
        while len(list(questions.parent.glob("*.jsonl"))) < 3 and time.monotonic() < until:
            time.sleep(0.001)
        return ScriptedWorkers(echo)

    for index in range(3):
        child = os.fork()
        if not child:
            run(todo, tmp_path / "three", together, share=Share(index, 3))
            os._exit(0)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0, 0]
    assert texts(tmp_path / "one") == texts(tmp_path / "three")
    assert Counter(row["id"] for row in lines(tmp_path / "three")) == Counter(ask.key for ask in todo)
    assert [row["share"] for row in map(json.loads, (tmp_path / "one" / SPENT).read_text().splitlines())] == [[1, 1]]
    assert len((tmp_path / "three" / SPENT).read_text().splitlines()) == 3
    for index, count in ((3, 3), (-1, 2), (0, 0)):
        with pytest.raises(ValueError, match="the first number is from 1 to the second"):
            Share(index, count)


def test_a_share_has_one_process_whose_questions_stay(tmp_path):
    todo = asks(items(4))

    def second(_):
        before = (tmp_path / "questions" / "1-of-1.jsonl").read_bytes()
        with pytest.raises(ValueError, match=r"1-of-1\.jsonl: another process answers this share"):
            run(todo[:1], tmp_path, lambda _: ScriptedWorkers(echo))
        assert (tmp_path / "questions" / "1-of-1.jsonl").read_bytes() == before
        return ScriptedWorkers(echo)

    assert run(todo, tmp_path, second).lines == 4
    assert run(todo, tmp_path, lambda _: ScriptedWorkers(echo)).before == 4


def test_errors_are_asked_again_and_what_cannot_be_asked_is_counted(tmp_path):
    todo = asks(items(4))
    todo[3] = replace(todo[3], problem="names recording 2 of 1")

    def no(fields):
        raise ValueError("later")

    for _ in range(2):
        done = run(todo, tmp_path, lambda _: ScriptedWorkers(no))
        assert (done.lines, done.errors, done.before) == (3, 4, 0)
    shares = [run(todo, tmp_path, lambda _: ScriptedWorkers(echo), share=Share(index, 2)) for index in range(2)]
    assert [(sum(x)) for x in zip(*((one.lines, one.errors, one.before) for one in shares), strict=True)] == [3, 1, 0]
    asked_again = ScriptedWorkers(no)
    done = run(todo, tmp_path, lambda _: asked_again)
    assert (done.lines, done.errors, done.before, asked_again.asked) == (0, 1, 3, [])


def test_a_full_disk_and_a_folder_that_cannot_be_written(tmp_path, monkeypatch):
    todo = asks(items(3))
    with monkeypatch.context() as patched:
        patched.setattr(batch.os, "write", full)
        with pytest.raises(ValueError, match=r"1-of-1\.jsonl: No space left on device; .*goes on"):
            run(todo, tmp_path, lambda _: ScriptedWorkers(echo))
    assert run(todo, tmp_path, lambda _: ScriptedWorkers(echo)).lines == 3
    (tmp_path / "file").touch()
    for work in (
        lambda out: run(todo, out, lambda _: ScriptedWorkers(echo)),
        lambda out: write_run(out, [], tmp_path, ASKING, None),
    ):
        with pytest.raises(ValueError, match=r"file.*: (Not a directory|File exists)$"):
            work(tmp_path / "file" / "out")
    with monkeypatch.context() as patched:
        patched.setattr("afn_model.eval.running.run.write_rows", full)
        with pytest.raises(ValueError, match=r"1-of-1\.jsonl: No space left on device$"):
            run(asks(items(5)), tmp_path, lambda _: ScriptedWorkers(echo))


def full(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_folder_is_of_one_run(tmp_path):
    row = benchmarks()["mmau-mini"]
    write_run(tmp_path, [row], tmp_path / "data", ASKING, None)
    write_run(tmp_path, [row], tmp_path / "moved", ASKING, None)
    for rows, asking, limit, differs in (
        ([], ASKING, 3, r"benchmarks: mmau-mini there, none here; limit: none there, 3 here"),
        (
            [row],
            replace(ASKING, seed=1, variant="think"),
            None,
            "variant: instruct there, think here; seed: 0 there, 1",
        ),
        ([row], replace(ASKING, model={"name": "x" * 99, "weights": "y"}), None, "model's name: another"),
    ):
        with pytest.raises(ValueError, match=rf"another run \({differs}.*\); choose another --out"):
            write_run(tmp_path, rows, tmp_path / "moved", asking, limit)


def test_prepared_from_files(tmp_path):
    """What cannot be asked is named: a missing benchmark, a recording that is not there, one that is no sound."""
    folder, rows = tmp_path / "data" / "mmau-mini", [benchmarks()[name] for name in ("mmau-mini", "mmau-test")]
    folder.mkdir(parents=True)
    found = {"question": "What?", "choices": ["dog", "cat"], "answer": "cat", "task": "sound"}
    audios = {"heard": "1.wav", "broken": "2.wav", "absent": "3.wav", "same": "1.wav"}
    (folder / "1.wav").write_bytes(wav(0.3))
    (folder / "2.wav").write_bytes(b"no sound")
    table = [found | {"id": name, "audio_id": audio} for name, audio in audios.items()]
    (folder / "mmau-test-mini.json").write_text(json.dumps(table))
    made = prepare(rows, tmp_path / "data", tmp_path / "out", ASKING)
    assert list(made.problems) == ["mmau-test"]
    assert "no mmau-test.json" in made.problems["mmau-test"]
    absent = str(folder / "3.wav")
    assert list(made.unreadable) == [absent]
    assert "No such file" in made.unreadable[absent]
    todo = made.asks["mmau-mini"]
    assert [ask.seconds for ask in todo] == [0.3, 0.0, 0.0, 0.3]
    assert len({ask.key for ask in todo}) == 4
    run(todo, tmp_path / "out", lambda _: ScriptedWorkers(echo))
    answered = answers_of(made, tmp_path / "out")["mmau-mini"]
    assert [(one.item.id, one.text is None) for one in answered] == [(name, False) for name in audios]
    os.rename(tmp_path / "data", tmp_path / "moved")
    again = prepare(rows[:1], tmp_path / "moved", tmp_path / "out", ASKING)
    assert [ask.key for ask in again.asks["mmau-mini"]] == [ask.key for ask in todo]
    (tmp_path / "moved" / "mmau-mini" / "1.wav").write_bytes(wav(0.3, 1))
    again = prepare(rows[:1], tmp_path / "moved", tmp_path / "out", ASKING)
    changed = [new.key != old.key for new, old in zip(again.asks["mmau-mini"], todo, strict=True)]
    assert changed == [True, False, False, True]


def test_a_folder_says_whose_run_it_is(tmp_path):
    with pytest.raises(ValueError, match=f"^{tmp_path}: no run"):
        read_run(tmp_path)
    write_run(tmp_path, [], tmp_path, ASKING, 3)
    assert read_run(tmp_path) == {"benchmarks": [], "data": str(tmp_path), "limit": 3, "asking": ASKING}
    (tmp_path / "run.json").write_text('{"benchmarks": [], "data": ""}')
    with pytest.raises(ValueError, match=r"run\.json: there is no limit, asking in it"):
        read_run(tmp_path)
