"""``afn data``: an index from the command line, records to read, and statistics with pictures."""

import json
from argparse import ArgumentParser

import numpy as np
import pytest
import soundfile

from afn_model.cli import data
from afn_model.data.index import Corpus
from afn_model.data.stats import collect, padding
from tests import tiny


@pytest.fixture
def corpus(tmp_path):
    """Three recordings of 1, 2 and 3 s without durations, and a text."""
    records = []
    for i in range(3):
        soundfile.write(tmp_path / f"{i}.wav", np.full(16_000 * (i + 1), 0.1), 16_000)
        messages = [
            {"role": "system", "content": "Listen."},
            {"role": "user", "content": "<sound>\nWhat is said?"},
            {"role": "assistant", "content": "First line.\nSecond line."},
        ]
        audios = [{"path": f"{i}.wav", "start": 0.5}]
        records.append({"id": f"clip-{i}", "axis": "skills", "task": "asr", "audios": audios, "messages": messages})
    talk = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}]
    records.append({"id": "7", "messages": talk, "rewards": [{"kind": "format"}]})
    path = tmp_path / "c.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def run(add, command, *words):
    parser = ArgumentParser()
    add(parser)
    command(parser.parse_args([str(word) for word in words]))


def test_index(corpus, capsys, recwarn):
    run(data.add_index, data.index, corpus)
    assert "4 records, 0.00 hours" in capsys.readouterr().out
    assert Corpus(corpus).seconds(2) == 0
    run(data.add_index, data.index, corpus, "--json", "--measure")
    found = json.loads(capsys.readouterr().out)
    assert (found["records"], found["seconds"]) == (4, 4.5)
    assert [Corpus(corpus).seconds(i) for i in range(4)] == [0.5, 1.5, 2.5, 0.0]
    with corpus.open("a") as file:
        file.write(json.dumps({"messages": []}) + "\n")
    assert "cannot train" in str(recwarn.list[0].message)
    with pytest.raises(ValueError, match=r"c\.jsonl, line 5: the conversation has no messages"):
        run(data.add_index, data.index, corpus)
    run(data.add_index, data.index, corpus, "--no-check")
    assert len(Corpus(corpus)) == 5


def test_measure_may_stand_before_the_files(corpus, capsys):
    run(data.add_index, data.index, "--measure", corpus)
    assert Corpus(corpus).seconds(2) == 2.5
    run(data.add_index, data.index, "--measure", corpus, corpus)
    assert capsys.readouterr().out.count("4 records") == 3
    with pytest.raises(ValueError, match="the following arguments are required: FILE"):
        run(data.add_index, data.index, "--measure")


def test_missing_recordings_are_named_when_the_index_is_made(corpus, capsys):
    for name in "02":
        (corpus.parent / f"{name}.wav").unlink()
    with pytest.raises(ValueError, match="2 recordings cannot be read"):
        run(data.add_index, data.index, corpus)
    said = capsys.readouterr().err.splitlines()
    assert said == [f"afn: error: {corpus}[{name}]: {name}.wav: no such file" for name in "02"]
    run(data.add_index, data.index, corpus, "--no-check")


def test_all_wrong_lines_are_shown_each_on_its_own(corpus, tmp_path, capsys):
    with corpus.open("a") as file:
        file.write("7\n{}\n")
    with pytest.raises(ValueError, match=r"c\.jsonl is not indexed$"):
        run(data.add_index, data.index, corpus)
    assert [line.split(": ")[2] for line in capsys.readouterr().err.splitlines()] == [
        f"{corpus}, line {n}" for n in (5, 6)
    ]
    (tmp_path / "t.csv").write_text("path,text\na.wav\nb.wav\n")
    with pytest.raises(ValueError, match=r"t\.jsonl is not written$"):
        run(data.add_import, data.import_, tmp_path / "t.csv", tmp_path / "t.jsonl")
    assert len(capsys.readouterr().err.splitlines()) == 2


def test_import(tmp_path, capsys):
    (tmp_path / "t.csv").write_text("path,text\na.wav,One.\n")
    run(data.add_import, data.import_, tmp_path / "t.csv", tmp_path / "t.jsonl")
    said = f"{tmp_path}/t.jsonl: 1 records; index it with `afn data index {tmp_path}/t.jsonl --measure`\n"
    assert capsys.readouterr().out == said
    run(data.add_import, data.import_, tmp_path / "t.csv", tmp_path / "u.jsonl", "--instruction", "What is said?")
    assert "What is said?" in (tmp_path / "u.jsonl").read_text()
    with pytest.raises(ValueError, match=r"t\.csv: a table, not JSON Lines; `afn data import"):
        run(data.add_index, data.index, tmp_path / "t.csv")
    with pytest.raises(ValueError, match="is a folder; `afn data import"):
        run(data.add_index, data.index, tmp_path)


def test_measure_all_overrules_what_records_say(corpus, capsys):
    record = json.loads(corpus.read_text().splitlines()[1]) | {"duration": 99}
    corpus.write_text(json.dumps(record) + "\n")
    run(data.add_index, data.index, corpus, "--measure")
    assert Corpus(corpus).seconds(0) == 99
    run(data.add_index, data.index, corpus, "--measure", "all")
    assert Corpus(corpus).seconds(0) == 1.5
    (corpus.parent / "1.wav").unlink()
    with pytest.raises(ValueError, match=r"line 1: .*1\.wav: no such file"):
        run(data.add_index, data.index, corpus, "--measure", "all")


@pytest.mark.parametrize("indexed", [False, True])
def test_inspect(corpus, capsys, indexed):
    if indexed:
        run(data.add_index, data.index, corpus, "--measure")
        capsys.readouterr()
    run(data.add_inspect, data.inspect, corpus, "clip-1")
    out = capsys.readouterr().out
    assert out.startswith(f"{corpus}[1]  clip-1\naxis skills, task asr")
    assert f"[audio 1] {corpus.parent}/1.wav 0.5 s to its end\n  What is said?" in out
    assert "assistant (learnt)\n» First line.\n» Second line." in out
    assert ("1.50 s of audio" if indexed else "audio of unknown length") in out
    run(data.add_inspect, data.inspect, corpus, "2")
    assert f"{corpus}[2]  clip-2" in capsys.readouterr().out
    run(data.add_inspect, data.inspect, corpus, "7")
    assert f"{corpus}[3]  7" in (out := capsys.readouterr().out)
    assert 'reward {"kind": "format"}' in out
    with pytest.raises(ValueError, match="no record with number or id 'clip-9' among its 4"):
        run(data.add_inspect, data.inspect, corpus, "clip-9")


def test_inspect_with_a_model_counts_tokens(corpus, tmp_path, capsys):
    tiny.processor().save_pretrained(tmp_path / "model")
    run(data.add_inspect, data.inspect, corpus, "0", "--model", tmp_path / "model")
    last = capsys.readouterr().out.splitlines()[-1]
    assert ", 12 of them audio, " in last, "half a second"
    (tmp_path / "0.wav").unlink()
    run(data.add_inspect, data.inspect, corpus, "0", "--model", tmp_path / "model")
    out = capsys.readouterr().out
    assert "0.wav 0.5 s to its end (no such file)" in out
    assert "its audio cannot be used" in out.splitlines()[-1]


def test_inspect_a_text_beyond_the_context(corpus, tmp_path, capsys):
    tiny.processor().save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "config.json").write_text('{"text_config": {"max_position_embeddings": 64}}')
    talk = [{"role": "user", "content": "One " * 100}, {"role": "assistant", "content": "Hi"}]
    corpus.write_text(json.dumps({"messages": talk}) + "\n")
    run(data.add_inspect, data.inspect, corpus, "0", "--model", tmp_path / "model")
    assert "tokens of text, but the model's context is 64" in capsys.readouterr().out.splitlines()[-1]


CURRICULUM = """
datasets: {talks: c.jsonl}
stages:
  first: {trains: all, blend: {talks: 1}, context: 256, batch_tokens: 256, epochs: 3, max_audio: 1.0}
  post: {method: grpo, trains: all, blend: {talks: 1}, batch_prompts: 2}
"""


def test_stats_of_a_curriculum(corpus, tmp_path, capsys):
    run(data.add_index, data.index, corpus, "--measure")
    tiny.processor().save_pretrained(tmp_path / "model")
    (tmp_path / "c.yaml").write_text(CURRICULUM)
    capsys.readouterr()
    run(data.add_stats, data.stats, "--curriculum", tmp_path / "c.yaml", "--model", tmp_path / "model")
    out = capsys.readouterr().out
    assert out.startswith("first\n  4 records, 3 with audio, 0.00 hours\n  an epoch: 4 samples, about ")
    assert "the stage: 3 epochs, 12 samples" in out
    assert "warning: 2 records (66.7% of those with audio) are longer than max_audio 1 s" in out
    assert "post\n" in out
    run(data.add_stats, data.stats, "--curriculum", tmp_path / "c.yaml", "--model", tmp_path / "model", "--json")
    first, post = map(json.loads, capsys.readouterr().out.splitlines())
    assert (first["stage"], first["samples"], post["optimiser_steps"]) == ("first", 12, 2)
    with pytest.raises(ValueError, match="--curriculum needs --model"):
        run(data.add_stats, data.stats, "--curriculum", tmp_path / "c.yaml")
    with pytest.raises(ValueError, match="neither a FILE nor a --curriculum"):
        run(data.add_stats, data.stats)


def test_stats(corpus, tmp_path, capsys):
    with pytest.raises(ValueError, match="no index; make one"):
        run(data.add_stats, data.stats, corpus)
    run(data.add_index, data.index, corpus, "--measure")
    capsys.readouterr()
    run(data.add_stats, data.stats, corpus, "--context", "64", "128", "--out", tmp_path / "out", "--json")
    found = json.loads(capsys.readouterr().out)
    assert (found["records"], found["hours"], found["bad"]) == (4, 4.5 / 3600, [])
    assert found["axes"] == {"skills": 3, "(none)": 1}
    assert found["seconds"] == {"no audio": 1, "0 s to 1 s": 1, "1 s to 2 s": 1, "2 s to 5 s": 1}
    assert [row["context"] for row in found["padding"]] == [64, 128]
    for picture in found["pictures"]:
        with open(picture, "rb") as file:
            assert file.read(4) == b"\x89PNG"
    run(data.add_stats, data.stats, corpus)
    assert "4 records, 0.00 hours of audio" in capsys.readouterr().out


def test_stats_of_a_part_and_of_bad_records(corpus):
    with corpus.open("a") as file:
        file.write("{}\n" * 20)
    run(data.add_index, data.index, corpus, "--no-check")
    part = collect([corpus], most=10)
    assert (part.records, part.looked_at) == (24, 10)
    assert len(part.bad) + len(part.tokens) == 10
    assert len(collect([corpus]).bad) == 20


def test_padding_by_hand():
    found = padding(np.array([10, 10, 10, 10, 50, 50, 999]), context=50, batch=1)
    assert (found.cut, found.padded, found.clips) == (1, 1.0, 7)
    assert found.packed == pytest.approx(190 / 200)
    one = padding(np.array([10, 40]), context=50, batch=16)
    assert (one.padded, one.packed) == (50 / 80, 1.0)
    assert one.saved == pytest.approx(1 - 50 / 80)
    few = padding(np.array([10, 10]), context=1000)
    assert (few.padded, few.packed, few.saved) == (1.0, 20 / 1000, 0.0), "what a bin has left is not computed"
