"""An audit finds what was done to a run's folder behind its back."""

import json

import pytest

from afn_model.curate.audit import audit
from afn_model.curate.lineage import take_down
from afn_model.curate.rows import outcomes
from tests.model.curate.test_lineage import export, ids_of
from tests.model.curate.toy import Toy


@pytest.fixture
def toy(tmp_path):
    toy = Toy(tmp_path)
    toy.run()
    return toy


def rewrite(toy, stage, change):
    """Commits other lines of a stage, as a run with a mistake would."""
    for shard in ("00000-of-00002", "00001-of-00002"):
        store = outcomes(toy.plan(), toy.out, stage, shard)
        told = store.manifest() or {}
        store.commit([changed for line in store.lines() if (changed := change(line))], inputs=told["inputs"])


def test_a_run_that_nothing_happened_to(toy):
    assert audit(toy.out) == []
    toy.run(limit=2)
    export(toy, toy.lines("end"))
    assert audit(toy.out) == []


def test_a_run_that_is_not_at_its_end_is_not_whole(tmp_path):
    toy = Toy(tmp_path)
    toy.run(only="find")
    assert audit(toy.out) == ["load, 00000-of-00002: not committed", "load, 00001-of-00002: not committed"]
    toy.run(limit=4)
    assert audit(toy.out) == []


def test_what_files_say(toy):
    store = outcomes(toy.plan(), toy.out, "shout", "00000-of-00002")
    raw, told = store.path.read_bytes(), store.manifest() or {}
    store.path.write_bytes(raw.replace(b"!", b"?"))
    assert audit(toy.out) == ["shout, 00000-of-00002: the file is not what its manifest says"]
    store.path.write_bytes(raw)
    store.manifest_path.write_text(json.dumps(told | {"kept": 9}))
    assert audit(toy.out) == ["shout, 00000-of-00002: the manifest lies about kept"]


def test_rows_that_are_lost_or_went_on_after_their_end(toy):
    ids = ids_of(toy)
    rewrite(toy, "shout", lambda line: None if line["id"] == ids["u:g"] else line)
    (lost, *_) = [one for one in audit(toy.out) if "lost" in one]
    assert f"row {ids['u:g']} is lost, which the stage before kept" in lost
    toy = Toy(toy.folder / "other")
    toy.run()

    def denied(line):  # a licence that was denied, in the middle of files that went on
        return {"id": line["id"], "of": "", "dropped": {"reason": "no"}} if line["id"] == ids["u:g"] else line

    rewrite(toy, "gate", denied)
    found = audit(toy.out)
    assert any(one.startswith("end, ") and f"row {ids['u:g']} had ended before" in one for one in found)
    rewrite(toy, "load", lambda line: line | {"fields": line["fields"] | {"seconds": 1.0}})
    assert any("made from another file of load than is there" in one for one in audit(toy.out))


def test_licences_and_records(toy):
    ids, (first, *_) = ids_of(toy), toy.lines("end")
    rewrite(toy, "end", lambda line: line | {"fields": {"uses": {"train": line["id"] != first}}})
    assert audit(toy.out) == [f"end: row {first} kept without a licence to be trained on"]
    toy = Toy(toy.folder / "other")
    toy.run()
    (record,) = export(toy, [ids["u:b"]])
    assert audit(toy.out) == [f"export: record {record} is of row {ids['u:b']} not kept to the end"]


def test_a_takedown_that_no_run_has_followed_yet(toy):
    ids = ids_of(toy)
    take_down(toy.out, ["u:h"])
    export(toy, [ids["u:h"]])
    found = audit(toy.out)
    assert len([one for one in found if f"row {ids['u:h']} was taken down" in one]) == 5
    assert "export" in found[-1]
    toy.run()
    assert [one.partition(":")[0] for one in audit(toy.out)] == ["export"]
