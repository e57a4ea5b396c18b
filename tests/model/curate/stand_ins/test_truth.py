"""Stand-ins that know the truth: what they answer is what is heard where the request says."""

import json

import pytest

from afn_model.curate.stages.captions import SegmentCaptions
from afn_model.curate.stages.diarise import Diarise
from afn_model.curate.stand_ins.rules import RULES
from afn_model.curate.stand_ins.rules.rule_input import RuleInput
from afn_model.curate.stand_ins.truth import answer, between, read_truth
from tests.model.curate.stages.heard import row


def test_events_of_a_part():
    events = [{"label": "a", "start": 0.5, "end": 1.5}, {"label": "b", "start": 2.0, "end": 4.0}]
    assert between(events, None, None) == events
    assert between(events, 1.0, 2.5) == [{"label": "a", "start": 0.0, "end": 0.5}]  # most of b is later
    assert between(events, 1.1, 3.1) == [{"label": "b", "start": 0.9, "end": 2.0}]


def test_answers_are_those_of_the_recording(tmp_path):
    one, other = row(tmp_path), row(tmp_path, events=(("sound", "horn", 1.0, 2.0, "", ""),), name="y")
    truth = str(tmp_path / "truth.jsonl")
    parts = [{"audio": {"path": f"/x/{each['source_id']}.ogg", "start": 0.0, "end": 9.0}} for each in (one, other)]
    asked = [SegmentCaptions().request("s", [part]) for part in parts]
    assert answer(asked, truth) == ["A man speaks, then a bell is heard.", "A horn is heard."]
    assert answer([Diarise().request("s", parts[1:])], truth) == [{"turns": []}]
    (lost,) = answer([SegmentCaptions().request("s", [{"audio": {"path": "z.ogg"}}])], truth)
    assert isinstance(lost, ValueError)
    (tmp_path / "truth.jsonl").write_text(json.dumps({"source_id": "z", "events": []}))
    assert read_truth(truth) == {"z": []}  # read anew


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("caption", "There is silence, and nothing else is heard."),
        ("voices", "Nobody speaks here."),
        ("transcript", {"text": "", "language": "", "words": []}),
        ("diarise", {"turns": []}),
    ],
)
def test_silence(name, said):
    assert RULES[name](RuleInput("")) == said
