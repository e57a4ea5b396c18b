"""A small AF-Whisper from nothing at the smallest scale, by the command that makes the whole."""

import json

import pytest

pytest.importorskip("espeakng_loader", reason="the world speaks with espeakng-loader")

from afn_model.bootstrap.tiny_speech import untrained
from afn_model.cli import main
from afn_model.prompt.conversation import read_conversation
from afn_model.prompt.speech_task import SPEAKER, SpeechTask
from afn_model.train.curriculum import read_curriculum
from afn_model.world import vocabulary
from afn_model.world.tasks import utterances
from afn_model.world.vocabulary import VOCABULARY, talkers_of

pytestmark = pytest.mark.filterwarnings("ignore:.*optimiser step", "ignore:.*the learning rate reaches")


@pytest.fixture
def one_couple(monkeypatch):
    """A man and a woman in each split: their words are quickly said."""
    monkeypatch.setattr(vocabulary, "_BANKS", {})
    few = {(split, voice): talkers_of(split, voice)[:1] for split in ("train", "heldout") for voice in ("man", "woman")}
    for module in (vocabulary, utterances):
        monkeypatch.setattr(module, "talkers_of", lambda *which: few[which])


def test_a_word_is_a_token_wherever_it_stands():
    _, processor = untrained(0)
    text = f"quatre fenêtre {SPEAKER} café öffne"
    ids = processor.tokenizer.encode(text, add_special_tokens=False).ids
    assert len(ids) == 5
    assert " ".join(processor.decode(ids).replace(SPEAKER, f" {SPEAKER} ").split()) == text
    for own in VOCABULARY.values():
        assert {len(processor.tokenizer.encode(word, add_special_tokens=False).ids) for word in own} == {1}
    turns = read_conversation(
        [{"role": "user", "content": SpeechTask("speakers", "fr").text}, {"role": "assistant", "content": text}]
    )
    prepared = processor.prepare(turns, training=True)
    learnt = prepared.ids[prepared.labels != -100]
    assert learnt.tolist() == [*ids, processor.token_id("<|im_end|>")]
    prompt = processor.prepare(turns[:1], add_generation_prompt=True).ids
    assert prepared.ids[: len(prompt)].tolist() == prompt.tolist()


def test_the_whole_at_the_smallest_scale(one_couple, tmp_path, capsys):
    command = ["train", "--curriculum", "afwhisper-tiny", "--out", str(tmp_path), "--quiet"]
    command += ["--set", "scale=0.0005", "--set", "workers=0", "--set", "seed=1"]
    assert main(command) in (0, None)
    assert capsys.readouterr().out.strip() == str(tmp_path / "report.md")
    results = json.loads((tmp_path / "report.json").read_text())
    names = [stage.name for stage in read_curriculum("afwhisper-tiny").stages]
    assert list(results["stages"]) == names
    assert list(results["seconds"]) == ["world", "base", names[0], "evaluation", *names[1:]]
    for found in results["stages"].values():
        assert found["n"]["phrases"] == 4
        assert found["wer"]["phrases"]["all"] > 0.5, "two steps teach no word"
        assert found["cpwer"]["speakers"] > 0.5
        assert 0 <= found["target"]["nearer"] <= 1
    report = (tmp_path / "report.md").read_text("utf-8")
    assert "Seed 1, corpora and steps at 0.0005 of their size" in report
    assert all(f"| {name} | 2 to 5 words |" in report for name in names)
    assert "No recording of 2 to 5 words was written down without an error." in report
