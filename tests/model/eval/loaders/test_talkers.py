"""SegLST, STM, RTTM with UEM, and tables of events: what is read, and what is refused by name."""

import json

import pytest

from afn_model.eval.copies import writer
from afn_model.eval.copies.sounds import Sounds
from afn_model.eval.items import AnsweredItem
from afn_model.eval.loaders import load
from afn_model.eval.loaders.files import Files
from afn_model.eval.loaders.talkers import diarisation, event_captions, multi_talker
from afn_model.eval.rules import score
from afn_model.eval.score import Tools
from afn_model.eval.table import benchmarks

SEGLST = [
    {"session_id": "a", "speaker": "x", "start_time": "2.5", "end_time": 3, "words": "four"},
    {"session_id": "b", "speaker": "y", "start_time": 0, "end_time": 0, "words": ""},
    {"session_id": "a", "speaker": "y", "start_time": 0.5, "end_time": 2.6, "words": "one two"},
    {"session_id": "a", "speaker": "y", "start_time": 3, "end_time": 4, "words": "six"},
    {"session_id": "a", "speaker": "y", "start_time": 4, "end_time": 5, "words": "two"},
]
STM = """;; a comment
a 1 x 2.5 3 <o,f0,male> four
a 1 y 0.5 2.6 one two
a 1 y 3 4 six
a 1 y 4 5 two
a 1 z 4 9 IGNORE_TIME_SEGMENT_IN_SCORING
"""


def files(folder, **names):
    return Files(folder, {"segments": ["*.json", "*.stm"], "turns": "*.rttm", "events": ["*.jsonl", "*.tsv"]} | names)


@pytest.mark.parametrize("name", ["multi-talker", "diarisation", "event-captions"])
def test_copies_load_and_their_own_answers_are_right(name, tmp_path):
    row = benchmarks()[name]
    (tmp_path / name).mkdir()
    writer(row)(tmp_path / name, Sounds(0))
    items = load(row, tmp_path)
    assert len(items) == 5
    assert all(item.extra["seconds"] == pytest.approx(3.5) for item in items)
    if name != "event-captions":
        told = {item.id: tuple(item.groups.values()) for item in items}
        assert told == {
            "turns": ("2", "no"),
            "overlap": ("2", "yes"),
            "interruption": ("3", "yes"),
            "alone": ("1", "no"),
            "silence": (),  # no words, no rate
        }
    for scorer in row.scorers:
        found = score([AnsweredItem(item, item.answer) for item in items], scorer, Tools())
        assert found.value == pytest.approx(0.0 if row.lower else 100.0, abs=1e-9), scorer
        assert (found.n, found.unparsed) == (5, 0)
        nothing = score([AnsweredItem(item, None) for item in items], scorer, Tools())
        assert nothing.value == pytest.approx(100.0 if row.lower else 0.0)
        assert nothing.unparsed == 4  # silence has nothing to read


def test_stm_is_what_seglst_is(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    (tmp_path / "one" / "x.json").write_text(json.dumps(SEGLST))
    (tmp_path / "two" / "x.stm").write_text(STM)
    a, b = multi_talker(files(tmp_path / "one"))
    assert [(a.id, a.answer), (b.id, b.answer)] == [
        ("a", "[Speaker 1] one two [Speaker 2] four [Speaker 1] six two"),
        ("b", ""),
    ]
    assert a.groups == {"speakers": "2", "overlap": "yes"}
    assert (a.clips[0].path, a.extra["seconds"]) == (str(tmp_path / "one" / "a.wav"), 5.0)  # of an absent recording
    (again,) = multi_talker(files(tmp_path / "two"))
    assert again.extra == a.extra
    assert again.answer == a.answer


def test_regions_name_recordings_without_turns(tmp_path):
    rttm = "SPEAKER a 1 0.5 1.1 <NA> <NA> x <NA> <NA>\nLEXEME a 1 0.5 0.2 hi lex x <NA> <NA>\n"
    (tmp_path / "x.rttm").write_text(rttm)
    (one,) = diarisation(files(tmp_path))
    assert (one.answer, one.extra["regions"]) == ("[Speaker 1] 0.500-1.600", None)
    (tmp_path / "x.uem").write_text("b 1 0 5\na 1 0 1\na 1 2 4\n")
    b, a = diarisation(files(tmp_path))
    assert (b.extra["segments"], b.extra["regions"], a.extra["regions"]) == ([], [(0.0, 5.0)], [(0.0, 1.0), (2.0, 4.0)])
    (tmp_path / "x.uem").write_text("b 1 0 5\n")
    with pytest.raises(ValueError, match="a have turns and no region"):
        list(diarisation(files(tmp_path)))


def test_dcase_tables_are_what_json_lines_are(tmp_path):
    table = "filename\tonset\toffset\tevent_label\nk.wav\t1.5\t2.0\tDog\nk.wav\t0.1\t0.4\tCat\nq.wav\t\t\t\n"
    (tmp_path / "x.tsv").write_text(table)
    k, q = event_captions(files(tmp_path))
    assert (k.id, k.choices, k.answer) == ("k.wav", ("Cat", "Dog"), "Cat: 0.100-0.400\nDog: 1.500-2.000")
    assert (q.extra["events"], q.answer, q.groups, k.groups) == ([], "none", {}, {"events": "2"})
    events = [{"label": "Dog", "start": 1.5, "end": 2}, {"label": "Cat", "start": 0.1, "end": 0.4}]
    rows = [{"id": "k.wav", "audio": "k.wav", "events": events}, {"id": "q.wav", "audio": "q.wav", "events": []}]
    (tmp_path / "x.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert list(event_captions(files(tmp_path))) == [k, q]


@pytest.mark.parametrize(
    ("loader", "name", "text", "told"),
    [
        (
            multi_talker,
            "x.json",
            '[{"session_id": "a", "speaker": "x", "start": 0, "words": ""}]',
            "segment 1: no field",
        ),
        (multi_talker, "x.json", "{}", "SegLST is a list"),
        (multi_talker, "x.stm", "a 1 x 2 1 hello", "line 1: a segment from 2 to 1 s"),
        (multi_talker, "x.stm", "a 1 x soon 1 hello", "line 1: a number of seconds is expected"),
        (diarisation, "x.rttm", "SPEAKER a 1 0.5", "line 1: 8 fields are expected, got 4"),
        (event_captions, "x.tsv", "filename\tonset\toffset\tlabel\na\t1\t2\tdog", "line 2: no field 'event_label'"),
        (
            event_captions,
            "x.tsv",
            "filename\tonset\toffset\tevent_label\na\tnan\t2\tdog",
            "line 2: a number of seconds",
        ),
        (
            event_captions,
            "x.jsonl",
            '{"id": 1, "audio": "a", "events": [{"label": "a", "start": 2, "end": 1}]}',
            "2 to 1 s",
        ),
    ],
)
def test_what_is_no_such_file_is_refused_by_name(loader, name, text, told, tmp_path):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=told) as error:
        list(loader(files(tmp_path)))
    assert name in str(error.value)
