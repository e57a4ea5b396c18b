"""From any name to what happened to its recording, and a takedown that takes all that was made of it."""

import json

import pytest

from afn_model.curate.audit import audit
from afn_model.curate.lineage import explain, take_down, text
from afn_model.curate.reply_cache import ReplyCache
from tests.model.curate.toy import WORDS, Toy


@pytest.fixture
def toy(tmp_path):
    toy = Toy(tmp_path)
    toy.run()
    return toy


def ids_of(toy):
    return {line["fields"]["url"]: row_id for row_id, line in toy.lines("find").items()}


def export(toy, rows):
    """What an export may look like: records that name their recording."""
    (toy.out / "export").mkdir(exist_ok=True)
    records = [{"id": f"r-{row_id[:4]}", "source": {"recording": row_id}} for row_id in rows]
    (toy.out / "export" / "a.jsonl").write_text("".join(json.dumps(one) + "\n" for one in records))
    return [record["id"] for record in records]


def test_every_name_of_a_recording_leads_to_its_row(toy):
    ids = ids_of(toy)
    (record,) = export(toy, [ids["u:g"]])
    source = toy.lines("load")[ids["u:g"]]["fields"]["source_id"]
    for name in (ids["u:g"], "u:g", source, "GOLF! x1", record):
        assert [row["id"] for row in explain(toy.out, name)] == [ids["u:g"]], name
    (row,) = explain(toy.out, "u:g")
    assert [step["stage"] for step in row["stages"]] == ["find", "load", "gate", "twins", "shout", "end"]
    assert row["made"] == [{"model": "rule", "prompt": "p1"}]
    with pytest.raises(ValueError, match="no row, recording, segment, annotation, record or url 'u:'"):
        explain(toy.out, "u:")
    with pytest.raises(ValueError, match="no run of afn curate is in it"):
        explain(toy.folder, "u:g")


def test_where_a_row_ended_is_said(toy):
    said = text(explain(toy.out, "u:e"))
    assert said.endswith("  gate 1: quarantined: RuntimeError: broken word")
    assert text(explain(toy.out, "u:b")).endswith("  gate 1: dropped: short")
    (kept, dropped) = sorted(explain(toy.out, "alpha"), key=lambda row: -len(row["stages"]))
    assert dropped["copies"] == [kept["id"]]
    assert f"  twins 1: dropped: copy (of {kept['id']})" in text([dropped])


def test_a_takedown_takes_copies_and_all_that_was_made(toy):
    ids = ids_of(toy)
    before = toy.files()
    found = take_down(toy.out, ["u:d", "u:g"])
    assert found["rows"] == sorted([ids["u:a"], ids["u:d"], ids["u:g"]])
    assert len(found["sources"]) == 2
    toy.calls()
    toy.run()
    assert toy.calls() == {"twins": 3}, "what is left is not made again"
    after = toy.files()
    written = {name for name, raw in after.items() if name.endswith(".jsonl") and raw != before[name]}
    shards = {f"{name.rpartition('-')[0].rpartition('/')[0]}" for name in written}
    assert shards, "some files were written anew"
    told = {(stage, shard) for stage, shards in found["stages"].items() for shard in shards}
    assert {(name.split("-")[0], name.partition("/")[2].removesuffix(".jsonl")) for name in written} == told
    gone = [ids["u:a"].encode(), ids["u:d"].encode(), ids["u:g"].encode()]
    assert not [name for name, raw in after.items() if not name.startswith("find") and any(one in raw for one in gone)]
    assert explain(toy.out, "u:d")[0]["taken"]
    # The same bytes at a new address do not come in again.
    toy.say(WORDS | {"u:new": "golf"})
    toy.run()
    assert ids_of(toy)["u:new"] not in toy.lines("gate")
    assert audit(toy.out) == []


def test_a_takedown_deletes_replies_about_all_that_is_of_a_recording(toy):
    ids, loaded = ids_of(toy), toy.lines("load")
    sources = {url: loaded[ids[url]]["fields"]["source_id"] for url in ("u:g", "u:h")}
    segments = [{"id": digit * 32, "start": 0, "end": 1} for digit in "12"]
    fields = {
        "segments": segments,
        "captions": [{"segment": "2" * 32, "annotation": "3" * 32}],
        "alike": [{"source_id": sources["u:h"], "segment": "4" * 32}],  # of another recording
    }
    old = toy.out / "stages" / "segment-of-an-earlier-plan" / "a.jsonl"
    old.parent.mkdir()
    old.write_text(json.dumps({"id": ids["u:g"], "of": "", "fields": fields}) + "\n")
    about = {"a1": sources["u:g"], "a2": ids["u:g"], "a3": "1" * 32, "3" * 32: "a group", "b1": "4" * 32}
    about["b2"] = sources["u:h"]
    path = toy.out / "cache" / "writer" / "a.sqlite"
    cache = ReplyCache(path)
    for name, subject in about.items():
        cache.put(name, subject, {"replies": [f"said of {name}"], "error": None, "attempts": 1})
    cache.close()
    toy.run()
    assert all(ReplyCache(path).get(name) for name in about), "nothing was taken down yet"
    take_down(toy.out, ["u:g"])
    toy.run()
    assert [name for name in about if ReplyCache(path).get(name)] == ["b1", "b2"]
    assert b"said of a" not in path.read_bytes()


def test_an_unknown_name_takes_nothing_down(toy):
    with pytest.raises(ValueError, match="'u:x': nothing was done"):
        take_down(toy.out, ["u:a", "u:x"])
    assert not (toy.out / "takedown.txt").exists()
    (toy.out / "takedown.txt").write_text("u:a\n")
    with pytest.raises(ValueError, match="expected 'row ID' or 'source ID', got 'u:a'"):
        toy.run()
