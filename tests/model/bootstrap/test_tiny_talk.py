"""A small voice from nothing at the smallest scale, by the command that makes the whole, and answers with it."""

import json

import pytest
import torch

pytest.importorskip("espeakng_loader", reason="the world speaks with espeakng-loader")

from afn_model.bootstrap import talk_scores, tiny_talk
from afn_model.bootstrap.tiny import build
from afn_model.cli import main
from afn_model.config import TextConfig
from afn_model.speech.config import CodecConfig, TalkerConfig, VoiceConfig
from afn_model.speech.voice import AFVoice
from afn_model.train.curriculum import read_curriculum
from afn_model.world import speeches
from tests.tiny import record

pytestmark = pytest.mark.filterwarnings("ignore:.*optimiser step", "ignore:.*the learning rate reaches")
SMALL = VoiceConfig(
    CodecConfig(16_000, 320, 160, (8,), (4,), 1, 3, latent=8, levels=4, codes=8),
    TalkerConfig(TextConfig(64, 16, 1, 2, 1, 32, max_positions=2048), 16, 2, 4, 2),
)


@pytest.fixture
def short(monkeypatch):
    """A voice of two small networks, and few texts that it says."""
    monkeypatch.setattr(tiny_talk, "voice_preset", lambda name: SMALL)
    monkeypatch.setattr(tiny_talk, "TIMED", 1)
    monkeypatch.setattr(talk_scores, "LONGEST", 0.4)
    monkeypatch.setattr(speeches, "PROMPTS", 2)


@pytest.fixture
def demo(tmp_path):
    """A folder as ``afn demo`` leaves it, of a model that has learnt nothing, but whose answers can be said."""
    folder = tmp_path / "demo"
    heldout = folder / "corpus" / "heldout"
    heldout.mkdir(parents=True)
    model, processor = build(0)
    rows = [processor.tokenizer.encode(text, add_special_tokens=False).ids[0] for text in ("\n", "seven")]
    with torch.no_grad():
        model.lm_head.weight[rows] = model.lm_head.weight[rows[::-1]]
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    for number, (axis, answer) in enumerate(
        (("word", "seven"), ("word", "luz"), ("sound", "bell"), ("onset", "1.3 s"))
    ):
        record(heldout / f"{number}.wav", 0.5, seed=number)
        messages = [{"role": "user", "content": "<sound>\nWhat is said?"}, {"role": "assistant", "content": answer}]
        row = {"id": str(number), "axis": axis, "audios": [{"path": f"{number}.wav"}], "messages": messages}
        with open(heldout / f"{axis}.jsonl", "a") as file:
            file.write(json.dumps(row | {"truth": {"answer": answer}}) + "\n")
    return folder


def test_the_whole_at_the_smallest_scale(short, demo, tmp_path, capsys):
    out = tmp_path / "talk"
    command = ["train", "--curriculum", "talk-tiny", "--out", str(out), "--quiet"]
    names = [stage.name for stage in read_curriculum("talk-tiny").stages]
    changes = ["scale=0.0005", "seed=1", "workers=0", f"demo={demo}", *(f"{name}.batch_prompts=2" for name in names)]
    for change in changes:
        command += ["--set", change]
    assert main(command) in (0, None)
    assert capsys.readouterr().out.strip() == str(out / "report.md")
    results = json.loads((out / "report.json").read_text())
    assert list(results["stages"]) == names
    assert list(results["seconds"]) == ["world", "base", names[0], "evaluation", *names[1:]]
    codec, talker = results["stages"].values()
    assert [codec[axis]["n"] for axis in ("known", "new", "spoken")] == [4, 4, 4]
    assert codec["known"]["mel_distance"] > 3, "two steps teach no sound"
    assert talker["all"]["n"] == 4
    assert talker["all"]["original_wrong_speaker"] == talker["all"]["original_wrong_spectrum"] == 0
    assert talker["pitch"]["man"] < 110 < 140 < talker["pitch"]["woman"]
    assert talker["speed"]["real_time_factor"] > 0
    aloud = talker["aloud"]
    assert aloud["n"] == aloud["sounded"] == 3, "a Spanish answer cannot be heard"
    assert 0 < aloud["after_token"]["median"] <= aloud["after_question"]["median"]
    assert len(AFVoice.from_pretrained(out / "voice").default_voice) >= 25
    report = (out / "report.md").read_text("utf-8")
    assert "Seed 1, corpora and steps at 0.0005 of their size" in report
    assert "The model of afn demo, asked about 3 held-out recordings." in report
    sounds = (out / "sounds.md").read_text("utf-8")
    for one in results["shown"]:
        for file in (one["picture"], *one["files"].values()):
            assert (out / "sounds" / file).stat().st_size > 1000
            assert f"(sounds/{file})" in sounds
    before = (out / "report.json").read_text()
    assert main(command) in (0, None)
    again = json.loads((out / "report.json").read_text())
    assert again["stages"] == results["stages"], "what is done is not done again"
    assert again["starts"] == json.loads(before)["starts"] == 1
    with pytest.raises(ValueError, match="there is a run with seed 1 and scale 0"):
        tiny_talk.run(out, seed=2, scale=0.0005)


def test_the_tokens_are_those_of_the_demo(short, demo, tmp_path):
    tiny_talk.base(tmp_path / "base", 0, demo)
    assert (tmp_path / "base" / "tokenizer.json").read_text() == (demo / "tokenizer.json").read_text()
    tiny_talk.base(tmp_path / "own", 0, None)
    assert AFVoice.from_pretrained(tmp_path / "own").config == AFVoice.from_pretrained(tmp_path / "base").config


def test_a_demo_without_a_model(tmp_path):
    with pytest.raises(ValueError, match="no model of afn demo with its recordings"):
        tiny_talk.run(tmp_path / "talk", demo=tmp_path)
    assert not (tmp_path / "talk").exists()
