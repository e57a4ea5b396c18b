"""A model describes, a text model answers: captions once for each recording, and nothing is skipped in silence."""

import json
import os
import re

import pytest

from afn_model.eval.running.asks import AskSettings
from afn_model.eval.running.captioner import answer_by_captions, caption_asks, questions_by_now
from afn_model.eval.running.run import Share, answers_of, prepare
from afn_model.eval.table import benchmarks
from afn_model.prompt.questions import DETAILED_CAPTION
from tests.model.eval.running.scripted import ScriptedWorkers, text
from tests.model.serve.serving import wav

HEARS = AskSettings({"name": "hears", "weights": "1"}, variant="captioner")
READS = AskSettings({"name": "reads", "url": "there/v1"}, variant="captioner", generation={"max_tokens": 5})
SOUNDS = ("1.wav", "1.wav", "copy.wav", "2.wav", "silent.wav", "broken.wav", "absent.wav", "long.wav")


@pytest.fixture
def data(tmp_path):
    folder = tmp_path / "data" / "mmau-mini"
    folder.mkdir(parents=True)
    for name, seed in (("1.wav", 1), ("copy.wav", 1), ("2.wav", 2), ("silent.wav", 3), ("long.wav", 4)):
        (folder / name).write_bytes(wav(0.3, seed))
    (folder / "broken.wav").write_bytes(b"no sound")
    row = {"choices": ["dog", "cat"], "answer": "cat", "task": "sound"}
    rows = [row | {"id": f"q{n}", "audio_id": name, "question": f"What is {n}?"} for n, name in enumerate(SOUNDS)]
    rows[7]["question"] = "Is <sound> a dog?"
    (folder / "mmau-test-mini.json").write_text(json.dumps(rows))
    return tmp_path / "data"


class Hears(ScriptedWorkers):
    """Describes a recording by its file's name."""

    def __init__(self, fails=("broken.wav",)):
        super().__init__(self.caption)
        self.fails, self.heard = fails, []

    def caption(self, fields):
        audio, question = fields["messages"][0]["content"]
        assert question["text"] == DETAILED_CAPTION
        name = os.path.basename(audio["path"])
        self.heard.append(name)
        if name in self.fails:
            raise ValueError(f"{name}: cannot be decoded")
        return "<think>hm</think>" if name == "silent.wav" else f"<think>hm</think>It is <|a|> {name}."


class Reads(ScriptedWorkers):
    def __init__(self):
        super().__init__(self.read)
        self.texts = {}

    def read(self, fields):
        self.texts[re.search(r"mmau-mini/(q\d)/", fields["id"])[1]] = text(fields)
        assert fields["max_tokens"] == 5
        assert "duration" not in fields
        return text(fields).split(":")[1].split(".wav")[0].strip()


def both(data, out, hears=None, reads=None, **options):
    hears, reads = hears or Hears(), reads or Reads()
    prepared = prepare([benchmarks()["mmau-mini"]], data, out, HEARS)
    found = answer_by_captions(prepared, out, HEARS, READS, lambda _: hears, lambda _: reads, **options)
    return found, hears, reads


def test_two_passes(data, tmp_path):
    out = tmp_path / "out"
    (questions, first, second), hears, reads = both(data, out)
    assert sorted(hears.heard) == ["1.wav", "2.wav", "broken.wav", "long.wav", "silent.wav"], "the same bytes once"
    assert (first.lines, first.errors) == (5, 1)
    assert (second.lines, second.errors) == (5, 3)
    choices = "Choose the correct option from the following options:\n(A) dog\n(B) cat"
    caption = "[Recording 1, 0.3 s. What is to be heard in it: It is < |a|> {}.]\n"
    assert reads.texts["q1"] == f"{caption.format('1.wav')}What is 1? {choices}"
    assert reads.texts["q7"] == f"Is {caption.format('long.wav')} a dog? {choices}"
    answered = answers_of(questions, out)["mmau-mini"]
    assert [one.text for one in answered] == ["It is < |a|> 1"] * 3 + ["It is < |a|> 2", *[None] * 3] + [
        "It is < |a|> long"
    ]
    errors = [one.error for one in answered[4:7]]
    folder = data / "mmau-mini"
    assert errors[0] == f"no caption: {folder / 'silent.wav'}: the model said nothing"
    assert errors[1] == f"no caption: {folder / 'broken.wav'}: broken.wav: cannot be decoded"
    assert errors[2].startswith("no caption: ")
    assert "absent.wav" in errors[2]
    (_, first, second), hears, reads = both(data, out, Hears(fails=()))
    assert hears.heard == ["broken.wav"], "what has failed alone"
    assert (first.before, list(reads.texts)) == (4, ["q5"])
    (_, first, second), hears, reads = both(data, out)
    assert (hears.asked, reads.asked, first.before, second.before) == ([], [], 5, 6)
    prepared = prepare([benchmarks()["mmau-mini"]], data, out, HEARS)
    scored = answers_of(questions_by_now(prepared, out, HEARS, READS), out)["mmau-mini"]
    assert [one.text for one in scored[:5]] == [one.text for one in answered[:5]]
    assert scored[5].text == "It is < |a|> broken"


def test_shares(data, tmp_path):
    """A share whose recordings others describe says so until they have; in the end all is answered as by one."""
    out = tmp_path / "out"
    waiting = 0
    for index in (0, 1, 0):
        (questions, *_), _, _ = both(data, out, share=Share(index, 2))
        waiting += sum("no caption yet" in one.error for one in answers_of(questions, out)["mmau-mini"])
    assert waiting > 0
    (whole, *_), _, _ = both(data, tmp_path / "one")
    assert [(one.text, one.error) for one in answers_of(questions, out)["mmau-mini"]] == [
        (one.text, one.error) for one in answers_of(whole, tmp_path / "one")["mmau-mini"]
    ]


def test_a_part_has_a_caption_of_its_own(data, tmp_path):
    prepared = prepare([benchmarks()["mmau-mini"]], data, tmp_path / "out", HEARS)
    ask = prepared.asks["mmau-mini"][0]
    (heard, asked) = ask.messages[0]["content"]
    parts = [heard, heard | {"start": 0.1}, heard | {"start": 0.1, "end": 0.2}, heard | {"end": 0.2}]
    ask.messages[0]["content"][:] = [*parts, *parts[:2], asked]
    prepared.asks["mmau-mini"] = [ask]
    captions = caption_asks(prepared, tmp_path / "out", HEARS)
    assert len({one.key for one in captions.asks}) == len(captions.asks) == 4
    assert [one.seconds for one in captions.asks] == [0.3, 0.2, 0.1, 0.2]
    assert [one.item.id.partition(":")[2] for one in captions.asks] == ["", "0.1-", "0.1-0.2", "0-0.2"]
