"""A run ends with the same files however it went: killed anywhere, in any order, by any number of workers."""

import errno
import json
import os
import signal
from dataclasses import dataclass

import pytest

from afn_model.curate import commit
from afn_model.curate import run as running
from afn_model.curate.executors import here
from afn_model.curate.rows import outcomes, shard_names, shard_of
from afn_model.curate.run import alone, run_rows
from afn_model.curate.stage import Context, Dropped, Failed, Kept, NotReady, Stage
from afn_model.curate.takedown import Takedown, write_takedown
from tests.model.curate.toy import WORDS, Toy, ToyLoad


@pytest.fixture
def toy(tmp_path):
    return Toy(tmp_path)


@pytest.fixture(scope="module")
def wanted(tmp_path_factory):
    """The files of a run that nothing happened to."""
    toy = Toy(tmp_path_factory.mktemp("toy"))
    toy.run()
    return toy.files()


def child(work):
    """Runs in a process of its own; the signal that ended it, 0 where none did."""
    pid = os.fork()
    if not pid:
        try:
            work()
        finally:
            os._exit(0)
    return os.WTERMSIG(os.waitpid(pid, 0)[1])


class Killer:
    """Ends this process at the nth time that the disk is written to; in the middle of it where that can be."""

    def __init__(self, patch, at):
        self.seen, self.at = 0, at
        for owner, name in ((os, "write"), (os, "replace"), (os, "fsync"), (os, "open"), (os, "unlink")):
            patch.setattr(owner, name, self.wrapped(getattr(owner, name)))
        patch.setattr(commit, "written", self.wrapped(commit.written))

    def wrapped(self, function):
        def call(*args, **options):
            self.seen += 1
            if self.seen == self.at:
                if function.__name__ == "write":
                    function(args[0], args[1][: len(args[1]) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **options)

        return call


def test_a_run_that_is_killed_anywhere_goes_on_to_the_same_files(tmp_path, wanted, monkeypatch):
    toy = Toy(tmp_path / "count")
    with monkeypatch.context() as patch:
        killer = Killer(patch, -1)
        toy.run()
        events = killer.seen
    assert events > 200
    for number in range(20):
        toy = Toy(tmp_path / str(number))

        def work(toy=toy, at=1 + number * events // 20):
            Killer(monkeypatch, at)
            toy.run()

        assert child(work) == signal.SIGKILL
        toy.run()
        assert toy.files() == wanted, number
        assert not [path for path in toy.out.rglob(".*")]


def test_between_file_and_manifest_nothing_is_run_again(toy, wanted, monkeypatch):
    toy.run()
    toy.calls()
    store = outcomes(toy.plan(), toy.out, "shout", shard_names(2)[0])
    with monkeypatch.context() as patch:
        patch.setattr(commit, "write_json", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
        assert child(lambda: store.commit([*store.lines()], inputs={})) == signal.SIGKILL
    store.manifest_path.unlink()
    toy.run()
    assert toy.calls() == {}
    assert toy.files() == wanted


def test_every_row_is_kept_dropped_or_quarantined_and_the_kept_go_on(toy):
    toy.run()
    plan, kept = toy.plan(), None
    for stage in plan.stages:
        lines = toy.lines(stage.name).values()
        if kept is not None:
            assert {line["id"] for line in lines} == kept, stage.name
        kept = {line["id"] for line in lines if "fields" in line}
        assert all(len({"fields", "dropped", "failed"} & set(line)) == 1 for line in lines)
        manifests = [outcomes(plan, toy.out, stage.name, shard).manifest() for shard in shard_names(2)]
        assert all(manifests)
        for name, held in (("kept", "fields"), ("failed", "failed")):
            assert sum(one[name] for one in manifests if one) == sum(held in line for line in lines)
    assert sorted(line["fields"]["record"] for line in toy.lines("end").values()) == [
        "ALPHA! x2", "FLAKY! x1", "GAMMA! x1", "GOLF! x1", "HOTEL! x1",
    ]  # fmt: skip


def test_any_order_of_shards_and_rows_gives_the_same_files(toy, wanted):
    toy.say(dict(reversed(WORDS.items())))
    toy.run(executor=lambda task, work: here(task, work[::-1]))
    assert toy.files() == wanted


def test_nothing_is_run_where_nothing_changed(toy):
    first = toy.run()
    toy.calls()
    again = toy.run()
    assert toy.calls() == {}
    for name, one in again.items():
        assert (one.rows, one.kept, one.dropped, one.failed) == (
            first[name].rows, first[name].kept, first[name].dropped, first[name].failed,
        )  # fmt: skip


def test_a_version_or_parameter_runs_its_stage_and_descendants_alone(toy, monkeypatch):
    toy.run()
    toy.calls()
    with monkeypatch.context() as patch:
        patch.setattr(ToyLoad, "version", 2)
        toy.run()
        assert toy.calls() == {"load": 9, "twins": 6, "shout": 5, "end": 5}  # gate reads nothing of it
    toy.run(toy.plan(**{"shout_mark": "?"}))
    assert toy.calls() == {"shout": 5, "end": 5}
    # A gate that lets more through: they are new to the stages after it; the others stay.
    toy.run(toy.plan(**{"gate_least": 1}))
    assert toy.calls() == {"gate": 9, "twins": 8, "shout": 2, "end": 2}
    toy.run(toy.plan(**{"gate_least": 5}))
    assert toy.calls() == {"gate": 9, "twins": 5}
    assert len(toy.lines("end")) == 4


def test_new_rows_changed_rows_and_errors_that_may_pass_run_alone(toy):
    (toy.folder / "down").touch()
    assert toy.run()["load"].failed == 1
    toy.calls()
    (toy.folder / "down").unlink()
    assert toy.run()["load"].failed == 0
    assert toy.calls() == {"load": 1, "gate": 1, "twins": 6, "shout": 1, "end": 1}
    toy.say(WORDS | {"u:j": "juliett"})
    toy.run()
    assert toy.calls() == {"load": 1, "gate": 1, "twins": 7, "shout": 1, "end": 1}
    toy.say(WORDS | {"u:j": "july"})
    toy.run()
    assert toy.calls() == {"load": 1, "gate": 1, "twins": 7, "shout": 1, "end": 1}
    # What the whole stage says of a row is the same: its descendants are not run. A copy more: of that row alone.
    toy.say(WORDS | {"u:j": "july", "u:k": "july"})
    toy.run()
    assert toy.calls() == {"load": 1, "gate": 1, "twins": 8, "end": 1}
    toy.say(WORDS)
    toy.run()
    fresh = Toy(toy.folder / "fresh")
    fresh.run()
    assert toy.files() == fresh.files()


def test_a_changed_row_whose_checkpoint_is_there_is_committed(toy, monkeypatch):
    toy.run()
    toy.say(WORDS | {"u:h": "hostel"})
    with monkeypatch.context() as patch:
        patch.setattr(commit.ShardOutcomes, "commit", lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL))
        work = running._work(toy.plan(), toy.out, toy.plan().stages[0], "all")
        assert child(lambda: running.run_whole(work)) == signal.SIGKILL
    plan = toy.plan()
    running.run_whole(running._work(plan, toy.out, plan.stages[0], "all"))
    with monkeypatch.context() as patch:
        patch.setattr(commit.ShardOutcomes, "commit", lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL))
        for shard in shard_names(2):  # every shard is killed after its last checkpoint
            child(lambda shard=shard: running.run_shard(running._work(plan, toy.out, plan.stages[1], shard)))
    toy.calls()
    toy.run()
    assert "load" not in toy.calls()
    fresh = Toy(toy.folder / "fresh", words=WORDS | {"u:h": "hostel"})
    fresh.run()
    assert toy.files() == fresh.files()


@pytest.mark.parametrize("harm", ["torn", "edited", "gone", "lies", "no json"])
def test_files_that_are_not_what_was_committed_are_made_again(toy, wanted, harm):
    toy.run()
    stores = [outcomes(toy.plan(), toy.out, "shout", shard) for shard in shard_names(2)]
    store = max(stores, key=lambda one: len([*one.lines()]))
    raw = store.path.read_bytes()
    told = json.loads(store.manifest_path.read_bytes())
    if harm == "torn":
        store.path.write_bytes(raw[: len(raw) // 2])
        store.part.write_bytes(b'{"id": "a", "of"\nnull\n{"id": "b", "of": "c"}\n\x00\x00')
    elif harm == "edited":
        store.path.write_bytes(raw.replace(b"!", b"?"))
    elif harm == "gone":
        store.path.unlink()
    elif harm == "lies":
        store.manifest_path.write_text(json.dumps(told | {"sha256": "0" * 64}))
    else:
        store.manifest_path.write_text("[]")
    with pytest.raises(ValueError, match="not committed, or not what its manifest says"):
        list(store.lines())
    toy.calls()
    toy.run()
    assert toy.calls() == {"shout": told["rows"]}
    assert toy.files() == wanted


@dataclass(frozen=True)
class ToyFaulty(Stage):
    fault: str = ""
    name = "faulty"
    reads, writes = ("word",), ("x",)

    def run(self, rows, context):
        found = [Kept({"x": row["word"]}) for row in rows]
        bad = next((place for place, row in enumerate(rows) if row["word"] == "bad"), None)
        if bad is None:
            return found
        faults = {
            "few": None,
            "extra": Kept({"y": 1}),
            "none": 3,
            "nan": Kept({"x": float("nan")}),
            "drop": Dropped(""),
        }
        if self.fault == "few":
            return found[:-1]
        if self.fault in faults:
            found[bad] = faults[self.fault]
            return found
        raise {"raises": KeyError("z"), "os": OSError(5, "Input/output error"), "disk": OSError(errno.ENOSPC, "full")}[
            self.fault
        ]


ROWS = [{"id": str(place), "word": word} for place, word in enumerate(["good", "bad", "fine"])]


@pytest.mark.parametrize(
    ("fault", "error", "retryable"),
    [
        ("few", "ValueError: stage faulty gave 0 outcomes for 1 rows", False),
        ("extra", "stage faulty wrote y, which is not among its writes", False),
        ("none", "stage faulty gave no outcome: int", False),
        ("nan", "stage faulty wrote no JSON: ({'x': nan}, {})", False),
        ("drop", "stage faulty dropped a row and does not say that it does", False),
        ("raises", "KeyError: 'z'", False),
        ("os", "OSError: [Errno 5] Input/output error", True),
    ],
)
def test_what_a_stage_does_wrong_is_the_quarantine_of_the_row_that_shows_it(tmp_path, fault, error, retryable):
    found = run_rows(ToyFaulty(fault), ROWS, Context(tmp_path))
    assert found == [Kept({"x": "good"}), Failed(error, retryable), Kept({"x": "fine"})]


def test_what_no_row_has_caused_ends_the_run(tmp_path, monkeypatch):
    with pytest.raises(OSError, match="full"):
        run_rows(ToyFaulty("disk"), ROWS, Context(tmp_path))
    monkeypatch.setattr(ToyFaulty, "whole", True)
    for fault, told in (
        ("raises", "stage faulty: KeyError: 'z'"),
        ("extra", "wrote y, .*: row 1"),
        ("few", "2 outcomes"),
    ):
        with pytest.raises(ValueError, match=told):
            run_rows(ToyFaulty(fault), ROWS, Context(tmp_path))
    monkeypatch.setattr(ToyFaulty, "run", lambda *_: __import__("no_such_package"))
    with pytest.raises(NotReady, match="stage faulty: No module named 'no_such_package'"):
        run_rows(ToyFaulty(), ROWS, Context(tmp_path))


def test_a_full_disk_is_one_error_and_the_run_goes_on_later(toy, wanted, monkeypatch):
    from afn_model import files

    left = [7]

    def full(path, sync=files.sync):
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        sync(path)

    with monkeypatch.context() as patch:
        patch.setattr(files, "sync", full)
        with pytest.raises(OSError, match="No space left"):
            toy.run()
    toy.run()
    assert toy.files() == wanted


def test_a_folder_that_cannot_be_written_to(tmp_path):
    toy = Toy(tmp_path)
    toy.out.write_text("a file")
    with pytest.raises(OSError, match="out"):
        toy.run()


def test_two_processes_at_once(toy, wanted):
    toy.out.mkdir()
    with alone(toy.out / "run.lock", toy.out), pytest.raises(ValueError, match="another process curates there"):
        toy.run()
    toy.run()
    assert toy.files() == wanted


def test_no_rows_and_one_row(toy):
    toy.say({})
    assert {one.rows for one in toy.run().values()} == {0}
    assert toy.calls() == {}
    toy.say({"u:a": "alpha"})
    assert {one.kept for one in toy.run().values()} == {1}


def test_a_whole_stage_with_an_error_that_may_pass_runs_again(toy, monkeypatch):
    from tests.model.curate.toy import ToyTwins

    with monkeypatch.context() as patch:
        patch.setattr(ToyTwins, "run", lambda _, rows, __: [Failed("later", retryable=True)] * len(rows))
        assert toy.run()["twins"].failed == 6
    toy.calls()
    toy.run()
    assert toy.calls() == {"twins": 6, "shout": 5, "end": 5}


def test_rows_that_are_quarantined_for_good_run_again_when_asked(toy):
    toy.run()
    toy.calls()
    toy.run(retry=True)
    assert toy.calls() == {"gate": 1}


def test_a_budget_ends_a_run_which_goes_on_when_it_is_given_again(toy, wanted):
    toy.told["budgets"] = {"shout": {"calls": 2}}
    done = toy.run()
    assert list(done) == ["find", "load", "gate", "twins", "shout"]
    assert (done["shout"].stopped, done["shout"].left) == ("calls: 2 of 2", 3)
    assert toy.calls()["shout"] == 2
    runs = 1
    while any(one.stopped for one in toy.run().values()):
        runs += 1
    assert runs == 2
    assert toy.files() == wanted
    toy.told["budgets"] = {"shout": {"tokens": 0}}
    assert not any(one.stopped for one in toy.run().values()), "nothing is left to be paid for"
    assert toy.run(toy.plan(**{"shout_mark": "?"}))["shout"].stopped == "tokens: 0 of 0"


def test_a_limit_runs_the_first_recordings_and_more_later(toy, wanted):
    done = toy.run(limit=3)
    first = set(sorted(toy.lines("find"))[:3])
    assert set(toy.lines("load")) == first
    assert (done["load"].run, done["load"].left) == (3, 6)
    toy.calls()
    assert toy.run(limit=3)["load"].run == 0
    assert toy.calls() == {}
    toy.run(limit=5)
    assert toy.calls()["load"] == 2
    toy.run()
    assert toy.calls()["load"] == 4
    assert toy.files() == wanted
    toy.run(limit=1)
    assert toy.files() == wanted, "nothing that is done is thrown away"


def test_only_one_stage(toy, wanted):
    with pytest.raises(ValueError, match="stage gate needs stage load first"):
        toy.run(only="gate")
    with pytest.raises(ValueError, match="no stage 'gates' in the plan; it has find"):
        toy.run(only="gates")
    for name in ("find", "load", "gate", "twins", "shout", "end"):
        assert list(toy.run(only=name)) == [name]
    assert toy.files() == wanted
    toy.run(toy.plan(**{"gate_least": 1}), only="gate")
    with pytest.raises(ValueError, match="stage end needs stage twins again: what it reads has changed"):
        toy.run(toy.plan(**{"gate_least": 1}), only="end")


def test_what_is_taken_down_reaches_no_stage(toy):
    toy.run()
    toy.calls()
    ids = {line["fields"]["url"]: row_id for row_id, line in toy.lines("find").items()}
    write_takedown(toy.out, Takedown(rows={ids["u:c"]: "u:c"}))
    done = toy.run()
    assert toy.calls() == {"twins": 5}
    assert ids["u:c"] not in {row_id for stage in ("load", "gate", "twins", "end") for row_id in toy.lines(stage)}
    assert done["end"].rows == 4
    # The bytes of another, at whatever address.
    source = toy.lines("load")[ids["u:a"]]["fields"]["source_id"]
    write_takedown(toy.out, Takedown(sources={source: "alpha"}))
    toy.run()
    assert not {ids["u:a"], ids["u:d"]} & set(toy.lines("gate"))
    assert ids["u:a"] in toy.lines("load"), "what it is known by stays"


def test_a_shard_is_a_function_of_the_id(toy):
    toy.run()
    for shard in shard_names(2):
        for line in outcomes(toy.plan(), toy.out, "find", shard).lines():
            assert shard_of(2, line["id"]) == shard
