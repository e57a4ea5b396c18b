"""Exports: records of a whole run that a trainer reads; what may not leave does not; nothing depends on order."""

import io
import json
import random
import shutil
import tarfile
import warnings
from contextlib import nullcontext
from dataclasses import dataclass, replace

import numpy as np
import pytest
import soundfile
import torch

from afn_model import AFNext
from afn_model.audio.decode import load_audio
from afn_model.audio.recording import load
from afn_model.cli import main
from afn_model.curate.audit import audit
from afn_model.curate.executors import here
from afn_model.curate.plan import read_plan
from afn_model.curate.run import outcomes, run, shard_names
from afn_model.curate.stage import Context, Dropped, Failed, Kept, Stage
from afn_model.curate.stages.export import Export, check_sounds, flac, with_sounds
from afn_model.curate.stages.fetch import digest_of
from afn_model.curate.takedown import Takedown, write_takedown
from afn_model.data.index import Corpus
from afn_model.data.records import audios_of, parse_sample
from afn_model.train.curriculum import read_curriculum
from afn_model.train.run_layout import RunLayout
from afn_model.train.stage_run import Options
from afn_model.train.trainer import train
from bench.resume import TEMPLATE
from tests import tiny

SAID = {"a": "A dog barks.", "b": "call 555-123-4567", "c": "One two three.", "d": "Which is louder?"}
PLAN = """
name: small
shards: 2
stages:
- discover: {folder: in}
- fetch: {folder: in}
- probe
- licences
- exact-duplicates
- tests.model.curate.stages.test_export:Annotated
- privacy: {texts: [transcripts], action: mask}
- quotas: {channel_share: 0.9}
- export:
    texts: {transcripts: transcribe}
    products: [pairs]
    counts: [language]
    shards: 2
    heldout: 0.5
"""


@dataclass(frozen=True)
class Annotated(Stage):
    """Stands for the stages that annotate: everything is known from the title."""

    name = "annotated"
    reads, writes = ("title", "seconds", "source_id"), ("segments", "transcripts", "pairs", "language")

    def run(self, rows, context):
        return [self._one(row) for row in rows]

    def _one(self, row):
        segments = [
            {"id": f"{row['title']}{start}", "start": start, "end": min(start + 1.0, row["seconds"])}
            for start in (0.0, 1.0)
        ]
        pair = {
            "axis": "multi_audio",
            "task": "compare",
            "audios": [{"segment": f"{row['title']}0.0"}, {"source_id": row["source_id"], "start": 1.0, "end": 1.5}],
            "messages": [
                {"role": "user", "content": "<sound-1> <sound-2> Which is louder?"},
                {"role": "assistant", "content": "One"},
            ],
            "annotator": "rules",
        }
        wrong = [
            {"messages": []},
            {**pair, "audios": [{"source_id": "none"}]},
            3,
            {**pair, "audios": [{"segment": "s9"}]},
        ]
        text = [
            {"segment": f"{row['title']}0.0", "text": SAID[row["title"]]},
            {"segment": f"{row['title']}1.0", "text": " "},
        ]
        return Kept({"segments": segments, "transcripts": text, "pairs": [pair, pair, *wrong], "language": "en"})


def write(folder, name, seed, **about):
    tiny.record(folder / f"{name}.wav", 2.0, seed)
    (folder / f"{name}.json").write_text(
        json.dumps({"title": name[0], "channel": name, "license": "CC BY 4.0", **about})
    )


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    folder = tmp_path_factory.mktemp("curated")
    for seed, name in enumerate("abcd"):
        write(folder / "in", name, seed)
    write(folder / "in", "a-again", 0)
    write(folder / "in", "denied", 9, license="All rights reserved")
    (folder / "plan.yaml").write_text(PLAN)
    plan = read_plan(folder / "plan.yaml")
    run(plan, folder / "out", here)
    return folder, plan


def lines(plan, out, stage):
    return [line for shard in shard_names(plan.shards) for line in outcomes(plan, out, stage, shard).lines()]


def corpora(out):
    return {
        path.stem: [json.loads(line) for line in path.open()] for path in sorted((out / "export/data").glob("*.jsonl"))
    }


def test_records_of_a_whole_run(done):
    folder, plan = done
    found = corpora(folder / "out")
    assert {name.partition("-")[0] for name in found} == {"train", "heldout"}
    records = [record for listed in found.values() for record in listed]
    assert len(records) == len({record["id"] for record in records}) == 8
    kept = [line for line in lines(plan, folder / "out", "export")]
    assert sum(len(line["fields"]["exported"]["records"]) for line in kept) == 8
    assert all(line["tally"]["products twice"] == 1 for line in kept)
    assert all(line["tally"]["products malformed"] == 2 for line in kept)
    assert all(line["tally"]["products without their recording"] == 2 for line in kept)
    (private,) = [record for record in records if record["task"] == "transcribe" and "call" in str(record)]
    assert private["messages"][1]["content"] == "call [phone]"
    lineage = private["lineage"]
    assert (lineage["url"], lineage["licence"], lineage["title"]) == ("b.wav", "CC-BY-4.0", "b")
    assert str(folder) not in json.dumps(records)
    for name, listed in found.items():
        corpus = Corpus(folder / f"out/export/data/{name}.jsonl", verify=True)
        assert len(corpus) == len(listed)
        for record in listed:
            for audio in audios_of(parse_sample(record, folder / "out/export/data")):
                pcm = load(audio)
                assert abs(len(pcm) / 16_000 - (audio.end - audio.start)) < 1e-3
                # What is said where nobody may hear it is silent, and the rest is what was fetched.
                source = folder / "in" / record["lineage"]["url"]
                heard = load_audio(source, start=audio.start, end=audio.end, dtype=torch.int16).float() / 32_768
                silenced = record["lineage"]["url"] == "b.wav" and audio.start < 1
                assert torch.equal(pcm, torch.zeros_like(pcm) if silenced else heard)
    assert main(["data", "index", str(folder / "out/export/data/train-skills.jsonl")]) in (0, None)


def test_again_and_after_a_takedown(done, tmp_path):
    folder, plan = done
    out = tmp_path / "out"
    shutil.copytree(folder / "out", out)
    before = bytes_of(out)
    assert sum(one.run for one in run(plan, out, here) if one.stage != "discover") == 0
    assert bytes_of(out) == before
    assert audit(out) == []
    (gone,) = [line for line in lines(plan, out, "fetch") if line["id"] in str(lines(plan, out, "export"))][:1]
    source = gone["fields"]["source_id"]
    assert source.encode() in b"".join(before.values())
    write_takedown(out, Takedown({gone["id"]: "asked for by its author"}))
    run(plan, out, here)
    assert source.encode() not in b"".join(bytes_of(out).values())
    assert "1 were asked for and are left out" in (out / "export/card.md").read_text()
    assert audit(out) == []
    assert sum(map(len, corpora(out).values())) == 6


def test_the_card_and_the_curriculum(done):
    folder, _ = done
    text = (folder / "out/export/card.md").read_text()
    assert "4 recordings, 0.00 hours, 8 records" in text
    for line in ("| multi_audio | compare | 4 |", "| CC-BY-4.0 | 4 | 0.00 | 8 |", "| en | 4 |", "| pairs | rules |"):
        assert line in text
    assert "masked and silenced: phone, 1 times" in text
    plan = read_curriculum(folder / "out/export/curriculum.yaml")
    assert plan["sft"].blend == {"multi_audio": 1, "skills": 1}
    assert all(path.is_file() for path in plan.datasets.values())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*optimiser step", "ignore:.*the learning rate reaches")
def test_a_training_step_on_it(done, tmp_path):
    folder, _ = done
    processor = tiny.processor(chat_template=TEMPLATE)
    torch.manual_seed(0)
    AFNext(tiny.config(processor)).save_pretrained(tmp_path / "base")
    processor.save_pretrained(tmp_path / "base")
    plan = read_curriculum(folder / "out/export/curriculum.yaml")
    stage = replace(plan["sft"], steps=1, context=256, batch_tokens=256)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        train(
            replace(plan, stages=(stage,)),
            tmp_path / "base",
            tmp_path / "run",
            layout=RunLayout(workers=0, log_every=1),
            options=Options(show=False, tensorboard=False),
        )
    (row,) = [json.loads(line) for line in (tmp_path / "run/sft/log.jsonl").open() if '"loss"' in line]
    assert row["step"] == 0
    assert 0 < row["loss"] < 20


def row(folder, name, seed=0, **options):
    path = folder / "recordings" / f"{name}.wav"
    tiny.record(path, 1.5, seed)
    digest = digest_of(path)
    uses = {"licence": "CC0", "train": True, "annotations": True, "audio": False}
    own = {"id": f"{seed:032x}", "url": f"https://h.org/{name}.wav", "title": "", "channel": name, "about": {}}
    own |= {"file": f"recordings/{name}.wav", "source_id": digest, "seconds": 1.5, "uses": uses, "segments": []}
    return own | {"privacy": {"silences": [], "flags": []}, "captions": [{"text": f"A {name}."}], **options}


CAPTIONS = {"texts": {"captions": "caption"}, "heldout": 0.0}


def export(out, rows, **options):
    return Export(**{**CAPTIONS, **options}).run(rows, Context(out))


def bytes_of(out):
    files = [path for path in (out / "export").rglob("*") if path.is_file() and ".index" not in str(path)]
    return {str(path.relative_to(out)): path.read_bytes() for path in files}


def test_the_same_whatever_the_order_and_one_more_moves_one_shard(tmp_path):
    rows = [row(tmp_path, name, seed) for seed, name in enumerate(("dog", "cat", "bell", "rain"))]
    export(tmp_path, rows, shards=3)
    first = bytes_of(tmp_path)
    (tmp_path / ".partial-export").mkdir()  # a run that was killed
    random.Random(1).shuffle(rows)
    export(tmp_path, rows, shards=3)
    assert bytes_of(tmp_path) == first
    assert not (tmp_path / ".partial-export").exists()
    for seed in (7, 8, 9):
        more = row(tmp_path, f"bird{seed}", seed)
        export(tmp_path, [more, *rows], shards=3)
        after = bytes_of(tmp_path)
        changed = {name for name in after if name.endswith(".tar") and after[name] != first.get(name)}
        assert len(changed) == 1
        with tarfile.open(tmp_path / changed.pop()) as tar:
            assert f"{more['source_id']}.flac" in tar.getnames()


def test_what_must_not_leave(tmp_path):
    dog, cat, gone = (row(tmp_path, name, seed) for seed, name in enumerate(("dog", "cat", "gone")))
    (tmp_path / gone["file"]).unlink()
    cat["uses"] = {**cat["uses"], "train": False}
    found = export(tmp_path, [dog, cat, gone])
    assert isinstance(found[0], Kept)
    assert found[1] == Dropped("licence denies train", "CC0")
    assert isinstance(found[2], Failed)
    assert str(tmp_path) not in found[2].error
    written = b"".join(bytes_of(tmp_path).values())
    assert dog["source_id"].encode() in written
    assert cat["source_id"].encode() not in written
    # Text may be passed on, audio may not.
    assert isinstance(export(tmp_path, [dog], needs=("train", "annotations"))[0], Kept)
    assert export(tmp_path, [dog], needs=("audio",)) == [Dropped("licence denies audio", "CC0")]
    assert export(tmp_path, [{**dog, "captions": []}]) == [Dropped("no records", "")]


def test_the_original_bytes_but_where_something_is_silenced(tmp_path):
    dog, cat = row(tmp_path, "dog"), row(tmp_path, "cat", 1, privacy={"silences": [[0.5, 1.0]], "flags": ["minors"]})
    export(tmp_path, [dog, cat], audio="original", shards=1)
    with tarfile.open(tmp_path / "export/data/shards/train-000-00000.tar") as tar:
        names = tar.getnames()
        assert sorted(names) == sorted([dog["file"].removeprefix("recordings/"), f"{cat['source_id']}.flac"])
        assert tar.extractfile("dog.wav").read() == (tmp_path / dog["file"]).read_bytes()
    (record,) = [one for one in corpora(tmp_path)["train-skills"] if one["lineage"]["channel"] == "cat"]
    assert record["lineage"]["flags"] == ["minors"]
    pcm, _ = soundfile.read(io.BytesIO(flac(tmp_path / cat["file"], "cat", [[0.5, 1.0]])), dtype="int16")
    assert not pcm[8_000:16_000].any()
    assert np.count_nonzero(pcm[:8_000]) > 7_000
    assert np.count_nonzero(pcm[16_000:]) > 7_000


def test_what_is_split_stays_together(tmp_path):
    rows = [row(tmp_path, f"n{seed}", seed, cluster=f"k{seed // 2}") for seed in range(12)]
    asked = [{"role": "user", "content": "Which is louder?"}, {"role": "assistant", "content": "One"}]
    for first, other in ((0, 1), (1, 2)):  # of one cluster, and of two
        rows[other]["segments"] = [{"id": f"of {other}", "start": 0.5, "end": 1.0}]
        rows[first]["pairs"] = [{"audios": [{}, {"segment": f"of {other}"}], "messages": asked}]
    found = export(tmp_path, rows, heldout=0.5, split_by="cluster", products=("pairs",))
    splits = [one.fields["exported"]["split"] for one in found if isinstance(one, Kept)]
    assert splits[::2] == splits[1::2]
    assert set(splits) == {"train", "heldout"}
    assert splits[1] != splits[2], "of these clusters"
    assert found[1].tally.get("products across the split", 0) == 1  # type: ignore[union-attr]
    (record,) = corpora(tmp_path)[f"{splits[0]}-other"]
    assert [(one["start"], one["end"]) for one in record["audios"]] == [(0.0, 1.5), (0.5, 1.0)]
    assert [rows[n]["source_id"] in record["audios"][n]["path"] for n in (0, 1)] == [True, True]


def test_places_for_sounds_and_parameters():
    asked = [{"role": "system", "content": "x"}, {"role": "user", "content": "q"}]
    assert with_sounds(asked, 2)[1]["content"] == "<sound>\n<sound>\nq"
    assert with_sounds([{"role": "user", "content": "<sound> q"}], 1)[0]["content"] == "<sound> q"
    said = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "<sound-1> a <sound> b <sound of rain"}]
    assert with_sounds(said, 1)[0]["content"] == "<sound>\nq"
    for wrong in (
        {"texts": {}},
        {"texts": {"a": "sing"}},
        {"audio": "mp3"},
        {"heldout": 1},
        {"needs": ("x",)},
        {"shards": 0},
    ):
        with pytest.raises(ValueError, match=r"texts|audio|heldout|needs|shards"):
            Export(**{**CAPTIONS, **wrong})


@pytest.mark.parametrize(
    ("asked", "answer", "stands"),
    [
        ("q <sound-2> <sound-1>", "a <sound of rain", True),
        ("q", "a", False),
        ("<sound-1> <sound-2>", "<sound-1>", False),
        ("<sound-1> <sound-2> <sound-1>", "a", False),
        ("<sound-1>", "<sound-2>", False),
    ],
)
def test_a_recording_has_one_place_and_no_answer_has_it(asked, answer, stands):
    messages = [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
    with nullcontext() if stands else pytest.raises(ValueError, match="a place for each"):
        check_sounds(messages, 2)
