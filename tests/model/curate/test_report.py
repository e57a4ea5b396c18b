"""What a folder says of itself: counts, errors, what is stale, in words, a table and a picture."""

from collections import Counter

from afn_model.curate.chains import entered, lost_by
from afn_model.curate.report import taken_by_filters, write_report
from afn_model.curate.stages.think_filters import ORDER
from afn_model.curate.status import RunStatus, StageStatus, status, text
from tests.model.curate.toy import Toy


def test_status_and_report(tmp_path):
    toy = Toy(tmp_path)
    (toy.folder / "down").touch()
    toy.run(toy.plan(shout_mark="?"))
    toy.told["budgets"] = {"shout": {"calls": 3}}
    toy.run()
    found = status(toy.out)
    gate, shout = found.stages[2], found.stages[4]
    assert (gate.rows, gate.kept, gate.dropped, gate.failed) == (8, 5, {"short": 2}, 1)
    assert (gate.tally, gate.errors[0][:2]) == ({"letters": 24}, ("RuntimeError: broken word", 1))
    assert (shout.shards, shout.rows + shout.working) == (1, 3)
    assert [name.partition("-")[0] for name in found.stale] == ["end", "shout"]
    said = text(found)
    for line in (
        "load: 1 of the quarantined are tried again by the next run",
        "load: quarantined 1: 503 (such as",
        "gate: dropped 2: short",
        "twins: dropped 1: copy",
        "bytes of another version or parameters",
    ):
        assert line in said, line
    report = write_report(toy.out).read_text()
    assert "| gate | 8 | 5 | 2 | 1 | 0 | 0 |" in report
    assert "| shout (1 of 2 shards) |" in report
    assert "| gate | short | 2 |" in report
    assert "| cc0 | 9 | 4 | 3 | 2 |" in report
    assert (toy.out / "rows.png").stat().st_size > 10_000


def test_what_filters_have_taken():
    lost = {"questions lost: a": 1, "questions lost: b": 5, "questions lost: c|d": 2, "questions lost: e": 1}
    merge = StageStatus("merge", 1, 1, tally=Counter({**lost, "scores lost: x": 3, "questions": 90}))
    tally = Counter({entered(name): 4 for name in ORDER[:2]}) + Counter({entered(name): 1 for name in ORDER[2:]})
    tally[lost_by(ORDER[1], "far away")] = 3
    think = StageStatus("think-filters", 1, 1, tally=tally)
    said = taken_by_filters(RunStatus("p", [merge, think], 0, {}))
    assert "| merge | questions | 9 | b 5, c\\|d 2, a 1, 1 more |" in said
    assert "| merge | scores | 3 | x 3 |" in said
    assert f"| {ORDER[1]} | 4 | 1 | 25% |" in said
    assert said[-1] == "| all filters | 4 | 1 | 25% |"
    assert taken_by_filters(RunStatus("p", [StageStatus("merge", 1, 1)], 0, {})) == []
