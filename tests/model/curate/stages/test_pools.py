"""Pools: who is similar to whom, by split, in any order of rows; a whole run, with a recording that is taken down."""

import json
import random
from dataclasses import dataclass

import numpy as np
import pytest

from afn_model.curate.audit import audit
from afn_model.curate.executors import here
from afn_model.curate.lineage import explain, take_down
from afn_model.curate.plan import read_plan
from afn_model.curate.rows import outcomes, rows_for, shard_names
from afn_model.curate.run import run
from afn_model.curate.splits import split_of
from afn_model.curate.stage import Context, Kept, Stage
from afn_model.curate.stages.pools import PoolClips, Pools, shortened
from afn_model.data.records import audios_of, parse_sample
from tests import tiny
from tests.model.curate.pooled import WRITER, clip

# Words of three kinds of places; a caption has some of one kind.
KINDS = {
    "farm": ["cow", "hen", "tractor", "barn", "goat", "rooster", "pig", "hay", "sheep", "gate"],
    "sea": ["wave", "gull", "ship", "foghorn", "anchor", "sailor", "harbour", "storm", "rope", "sail"],
    "stage": ["guitar", "drum", "singer", "applause", "piano", "chorus", "violin", "crowd", "bass", "trumpet"],
}


def rows(each=12, seed=0):
    rng, found = random.Random(seed), []
    for kind, words in KINDS.items():
        for number in range(each):
            name = f"{kind} {number}"
            told = clip(name, f"There are {' and '.join(rng.sample(words, 7))}, and a man speaks.")
            found.append({"id": name, "source_id": told["source_id"], "pool_clip": told})
    return found


def pools(given, folder, **options):
    kept = Pools(**{"heldout": 0.0, **options}).run(given, Context(folder))
    return {row["id"]: one.fields["pool"] for row, one in zip(given, kept, strict=True)}


def test_similar_ones_are_and_dissimilar_ones_are_not(tmp_path):
    given = rows()
    names = {row["source_id"]: row["id"] for row in given}
    found = pools(given, tmp_path)
    far = []
    for name, pool in found.items():
        kind = name.split()[0]
        similar, dissimilar = ([names[one["source_id"]] for one in pool[which]] for which in ("similar", "dissimilar"))
        assert len(similar) == len(set(similar)) == len(dissimilar) == len(set(dissimilar)) == 8
        assert {one.split()[0] for one in similar} == {kind}
        assert kind not in {one.split()[0] for one in dissimilar}
        assert name not in similar
        assert names[pool["own"]["source_id"]] == name
        far += dissimilar
    assert len(set(far)) > len(given) / 2  # not the same few for everyone


def test_the_same_in_any_order_of_rows_and_a_few_are_enough(tmp_path):
    given = rows()
    first = pools(given, tmp_path)
    random.Random(1).shuffle(given)
    assert pools(given, tmp_path) == first
    few = given[:3]
    assert all(
        {one["source_id"] for kind in ("similar", "dissimilar") for one in pool[kind]}
        == {one["source_id"] for one in few} - {pool["own"]["source_id"]}
        for pool in pools(few, tmp_path).values()
    )
    (alone,) = pools(given[:1], tmp_path).values()
    assert alone == {"own": given[0]["pool_clip"], "similar": [], "dissimilar": []}
    none = {**given[1], "pool_clip": None}
    kept = Pools(heldout=0.0).run([none, given[0]], Context(tmp_path))
    assert kept[0] == Kept({"pool": None}, {"recordings without a clip": 1})
    assert kept[1].fields["pool"] == alone


def test_captions_that_say_the_same_are_no_partners(tmp_path):
    given = rows(each=3)
    same = [clip(f"copy {n}", given[0]["pool_clip"]["captions"][0]["text"].upper()) for n in range(20)]
    copies = [{"id": f"copy {n}", "source_id": one["source_id"], "pool_clip": one} for n, one in enumerate(same)]
    again = {**given[1], "id": "again"}  # another row of the same recording
    found = pools([*given, *copies, again], tmp_path, alike=0.2)
    alike = {one["source_id"] for one in [given[0]["pool_clip"], *same]}
    assert found["again"] == found[given[1]["id"]]
    assert not alike & {one["source_id"] for one in found[given[0]["id"]]["similar"]}
    drawn = []
    for name in ("farm 1", "farm 2", "sea 0", "stage 0", "stage 1"):
        partners = [one["source_id"] for kind in ("similar", "dissimilar") for one in found[name][kind]]
        drawn += [one for one in partners if one in alike]
    assert len(drawn) == 5  # one of them in each
    assert len(set(drawn)) > 1


def test_partners_are_of_one_split(tmp_path):
    given = [{**row, "cluster": f"c{n // 3}"} for n, row in enumerate(rows())]
    split = {row["source_id"]: split_of(row, "cluster", 0.4) for row in given}
    assert set(split.values()) == {"train", "heldout"}
    found = pools(given, tmp_path, heldout=0.4, split_by="cluster")
    for pool in found.values():
        partners = [*pool["similar"], *pool["dissimilar"]]
        assert partners
        assert {split[one["source_id"]] for one in partners} == {split[pool["own"]["source_id"]]}


def by_length(texts):
    return [[len(text), 100.0] for text in texts]


def broken(texts):
    return np.full((len(texts), 2), np.inf)


def test_another_embedding(tmp_path):
    given = rows(each=4)
    place = f"{__name__}:by_length"
    found = pools(given, tmp_path, embedding=place, alike=0.99, similar=2)
    lengths = {row["source_id"]: len(row["pool_clip"]["captions"][0]["text"]) for row in given}
    for pool in found.values():
        own, chosen = lengths[pool["own"]["source_id"]], [lengths[one["source_id"]] for one in pool["similar"]]
        assert max(abs(own - one) for one in chosen) <= sorted(abs(own - one) for one in lengths.values())[3]
    with pytest.raises(ValueError, match="an embedding of 12 texts returns finite"):
        pools(given, tmp_path, embedding=f"{__name__}:broken")
    for wrong in ({"similar": 0}, {"dissimilar": 0}, {"alike": 1}, {"heldout": 1}, {"embedding": "none"}):
        with pytest.raises(ValueError, match=r"similar|alike|heldout|embedding"):
            Pools(**wrong)


def test_the_clip_that_stands_for_a_recording(tmp_path):
    segments = [{"id": f"s{n}", "start": 10.0 * n, "end": 10.0 * n + 10} for n in range(4)]
    merged = [{"segment": f"s{n}", "text": f"A thing of part {n}.", "annotation": f"a{n}"} for n in (0, 2, 3)]
    mined = [(10.0, 20.0, 9.0), (15.0, 35.0, 5.0), (0.0, 10.0, 5.0), (20.0, 40.0, 4.0)]
    row = {"source_id": "x", "seconds": 40.0, "segments": segments, "merged": merged}
    row["mined"] = [{"start": start, "end": end, "score": score} for start, end, score in mined]
    first, second = PoolClips().run([row, {**row, "mined": row["mined"][:2]}], Context(tmp_path))
    own = {"source_id": "x", "start": 0.0, "end": 10.0, "annotations": ["a0"]}
    assert first.fields["pool_clip"] == own | {"captions": [{"start": 0.0, "end": 10.0, "text": "A thing of part 0."}]}
    told = second.fields["pool_clip"]
    assert [(one["start"], one["end"]) for one in told["captions"]] == [(5.0, 15.0), (15.0, 20.0)]
    assert told["annotations"] == ["a2", "a3"]
    nothing = PoolClips().run([{**row, "mined": row["mined"][:1]}, {**row, "mined": []}], Context(tmp_path))
    assert [one.fields["pool_clip"] for one in nothing] == [None, None]
    assert [shortened("One two. Three four five.", most) for most in (30, 20, 8, 5)] == [
        "One two. Three four five.", "One two.", "One two.", "One"
    ]  # fmt: skip


PLAN = """
name: pools
shards: 2
stages:
- discover: {folder: in}
- fetch: {folder: in}
- probe
- licences
- tests.model.curate.stages.test_pools:Captioned
- privacy: {texts: [merged]}
- pool-clips
- pools: {heldout: 0.4}
- multi-audio
- chat: {share: 1.0}
- export: {products: [multi_audio, chats], heldout: 0.4}
annotators:
  writer: {call: "WRITER", options: {truth: truth.jsonl}}
"""


@dataclass(frozen=True)
class Captioned(Stage):
    """Stands for the stages before: two captions of each recording, by its title."""

    name = "captioned"
    reads, writes = ("title", "source_id"), ("segments", "merged", "mined")

    def run(self, rows, context):
        return [self._one(row["title"], row["source_id"]) for row in rows]

    def _one(self, title, source):
        segments = [{"id": f"{source[:8]}{n}", "start": 0.5 * n, "end": 0.5 * n + 0.5} for n in range(2)]
        texts = (f"A {title} is heard.", f"A man speaks. A {title[::-1]} plays.")
        merged = [{"segment": one["id"], "text": text} for one, text in zip(segments, texts, strict=True)]
        mined = [{"id": f"m{source}", "start": 0.0, "end": 1.0, "score": 5.0}]
        return Kept({"segments": segments, "merged": merged, "mined": mined})


def lines(plan, out, stage):
    return [line for shard in shard_names(plan.shards) for line in outcomes(plan, out, stage, shard).lines()]


def records(out):
    return [json.loads(line) for path in sorted((out / "export/data").glob("*.jsonl")) for line in path.open()]


def test_a_whole_run_and_a_partner_that_is_taken_down(tmp_path):
    for seed, title in enumerate(["bell", "dog", "horn", "siren", "cat", "drum"]):
        tiny.record(tmp_path / f"in/{title}.wav", 1.0, seed)
        (tmp_path / f"in/{title}.json").write_text(json.dumps({"title": title, "license": "CC BY 4.0"}))
    (tmp_path / "truth.jsonl").touch()
    (tmp_path / "plan.yaml").write_text(
        PLAN.replace("WRITER", WRITER).replace("truth.jsonl", str(tmp_path / "truth.jsonl"))
    )
    plan, out = read_plan(tmp_path / "plan.yaml"), tmp_path / "out"
    run(plan, out, here)
    tallies = [line["tally"] for line in lines(plan, out, "export") if "tally" in line]
    assert not [name for tally in tallies for name in tally if "split" in name or "malformed" in name]
    before = records(out)
    assert {one["split"] for one in before} == {"train", "heldout"}
    assert {one["axis"] for one in before} == {"multi_audio", "multi_turn"}
    for one in before:
        heard = audios_of(parse_sample(one, out / "export/data"))
        assert len(heard) == len(one["audios"]) == len({audio["path"] for audio in one["audios"]})
    fetched = {line["id"]: line["fields"]["source_id"] for line in lines(plan, out, "fetch")}
    partners = [source for source in fetched.values() if sum(source in str(one["audios"]) for one in before) > 5]
    gone = partners[0]
    assert [fetched[row["id"]] for row in explain(out, gone)] == [gone]  # and none that has it in its pool
    (row_id,) = [one for one, source in fetched.items() if source == gone]
    export = plan.stage("export")
    left = [row for shard in shard_names(2) for row, _ in rows_for(plan, out, export, shard) if row["id"] != row_id]
    export.run(left, Context(out))  # others still have products that hear it
    assert [one for one in before if gone in str(one["audios"]) and one["lineage"]["source_id"] != gone]
    assert {one["id"] for one in records(out)} == {one["id"] for one in before if gone not in str(one["audios"])}
    taken = take_down(out, [gone])
    assert (taken["rows"], taken["sources"]) == ([row_id], [gone])
    run(plan, out, here)
    after = records(out)
    assert after
    assert gone not in json.dumps(after)
    for stage in ("pool-clips", "pools", "multi-audio", "chat"):
        assert gone not in json.dumps(lines(plan, out, stage)), stage
    assert audit(out) == []
