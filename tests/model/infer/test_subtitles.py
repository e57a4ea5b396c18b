"""Files of transcripts, to the letter."""

import json

from afn_model.infer.subtitles import FORMATS, to_vtt
from afn_model.infer.timestamps import Segment

ROW = {
    "model": "m",
    "audio": ["talk.wav"],
    "answer": "[0:01.5] Über <b>one</b>\n\n & two\n[1:00:00] a --> b",
    "finish": "stop",
    "segments": [
        {"start": 1.5, "end": 3.0, "text": "Über <b>one</b>\n\n & two"},
        {"start": 3600.0, "end": 3601.0004, "text": "a --> b"},
    ],
}
FILES = {
    "txt": ROW["answer"] + "\n",
    "srt": ("1\n00:00:01,500 --> 00:00:03,000\nÜber <b>one</b>\n& two\n\n2\n01:00:00,000 --> 01:00:01,000\na -> b\n"),
    "vtt": (
        "WEBVTT\n\n00:00:01.500 --> 00:00:03.000\nÜber &lt;b&gt;one&lt;/b&gt;\n&amp; two\n"
        "\n01:00:00.000 --> 01:00:01.000\na -&gt; b\n"
    ),
    "tsv": "start\tend\ttext\n1500\t3000\tÜber <b>one</b> & two\n3600000\t3601000\ta --> b\n",
}


def test_files():
    for name, expected in FILES.items():
        assert FORMATS[name](ROW) == expected, name


def test_json_has_what_readers_of_whispers_look_for():
    found = json.loads(FORMATS["json"](ROW))
    assert found["text"] == ROW["answer"]
    assert [segment["id"] for segment in found["segments"]] == [0, 1]
    assert {"start": 1.5, "end": 3.0}.items() <= found["segments"][0].items()
    assert {name: found[name] for name in ("model", "audio", "finish")} == {
        name: ROW[name] for name in ("model", "audio", "finish")
    }


def test_nothing_said_is_a_valid_file():
    empty = ROW | {"answer": "", "segments": []}
    assert {name: FORMATS[name](empty) for name in FILES} == {
        "txt": "\n",
        "srt": "",
        "vtt": "WEBVTT\n",
        "tsv": "start\tend\ttext\n",
    }


def test_a_note_is_no_cue():
    assert to_vtt([Segment(0.0, 1.0, "Hi")], "said") == "WEBVTT\n\nNOTE said\n\n00:00:00.000 --> 00:00:01.000\nHi\n"
