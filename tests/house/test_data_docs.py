"""What docs/data.md shows runs as shown."""

import json
import re
import shlex
from pathlib import Path

import pytest
import soundfile

from afn_model.cli import main
from afn_model.data.index import Corpus
from afn_model.data.records import audios_of, check, parse_sample
from tests import tiny

TEXT = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", TEXT, re.S)


@pytest.mark.parametrize("line", "".join(blocks("json")).splitlines())
def test_records_that_are_shown_are_read(line, tmp_path):
    check(json.loads(line))
    sample = parse_sample(json.loads(line), tmp_path)
    assert [audio.source for audio in audios_of(sample)] == [f"{tmp_path}/a.wav"]
    assert [turn.text for turn in sample.turns if turn.role != "system"] == ["<sound>What is said?", "One."]


def test_commands_that_are_shown_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        soundfile.write(f"{name}.wav", [0.1] * 16_000, 16_000)
    Path("manifest.json").write_text('{"audio_filepath": "a.wav", "duration": 1.0, "text": "one"}\n')
    Path("clips.csv").write_text("path,ask,heard\na.wav,What?,Rain.\nb.wav,What?,Hail.\n")
    Path("all.json").write_text('[{"audio": "a.wav", "text": "one"}]')
    Path("kaldi").mkdir()
    Path("kaldi/wav.scp").write_text("u1 b.wav\n")
    Path("kaldi/text").write_text("u1 one two\n")
    tiny.processor().save_pretrained("DIR")
    stage = "{trains: all, blend: {a: 1, b: 1}, context: 2048, batch_tokens: 8192, epochs: 3}"
    Path("finetune.yaml").write_text(f"datasets: {{a: nemo.jsonl, b: clips.jsonl}}\nstages:\n  finetune: {stage}\n")
    for line in "".join(blocks("sh")).splitlines():
        assert main(shlex.split(line)[1:]) == 0, line
    said = capsys.readouterr().out
    assert [len(Corpus(f"{name}.jsonl")) for name in ("nemo", "clips")] == [1, 2]
    assert "the stage: 3 epochs, 9 samples" in said
    for block in blocks("python"):
        exec(block, {})
    assert capsys.readouterr().out.startswith("[]\n1 records, 1 with audio")
