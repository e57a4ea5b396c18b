"""Other tools' corpora: what they say is what the records say, and what would be lost is refused by its place."""

import json
from pathlib import Path

import pytest

from afn_model.data.foreign import Columns, convert
from afn_model.data.index import Corpus, build
from afn_model.data.records import audios_of, parse_sample

NEMO = [
    {"audio_filepath": "a.wav", "duration": 1.5, "text": "one two"},
    {"audio_filepath": "b.wav", "duration": 0.25, "text": "three", "offset": 0.5, "lang": "en"},
]


@pytest.fixture
def folder(tmp_path):
    for name in "abc":
        (tmp_path / f"{name}.wav").write_bytes(b"RIFF")
    return tmp_path


def read(out):
    return [json.loads(line) for line in out.read_text().splitlines()]


def said(out):
    """(file, start, end, question, answer) of every record, as training reads it."""
    found = []
    for record in read(out):
        sample = parse_sample(record, out.parent)
        (audio,) = audios_of(sample)
        question, answer = sample.turns[-2].text, sample.turns[-1].text
        found.append((Path(audio.source).name, audio.start, audio.end, question.removeprefix("<sound>"), answer))
    return found


TRANSCRIBE = "Transcribe the input speech."


def test_a_nemo_manifest(folder):
    source, out = folder / "train.json", folder / "out.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in NEMO))
    assert convert(source, out) == 2
    assert said(out) == [
        ("a.wav", None, None, TRANSCRIBE, "one two"),
        ("b.wav", 0.5, 0.75, TRANSCRIBE, "three"),
    ]
    build(out)
    assert [Corpus(out).seconds(i) for i in range(2)] == [1.5, 0.25]


def test_a_json_array_of_records_or_rows(folder):
    (folder / "deep").mkdir()
    source, out = folder / "all.json", folder / "deep" / "out.jsonl"
    parts = [{"type": "audio", "path": "b.wav"}, {"type": "text", "text": "Q"}]
    records = [
        {"conversations": [{"from": "human", "value": "<audio>Q"}, {"from": "gpt", "value": "A"}], "audios": ["a.wav"]},
        {"messages": [{"role": "user", "content": parts}, {"role": "assistant", "content": "B"}]},
        {"audio": "c.wav", "question": "What?", "answer": "Rain."},
    ]
    source.write_text("\ufeff \n" + json.dumps(records, indent=1), encoding="utf-8")
    assert convert(source, out) == 3
    assert said(out) == [
        ("a.wav", None, None, "Q", "A"),
        ("b.wav", None, None, "Q", "B"),
        ("c.wav", None, None, "What?", "Rain."),
    ]
    sources = [audios_of(parse_sample(record, out.parent))[0].source for record in read(out)]
    assert sources == [str(folder / f"{name}.wav") for name in "abc"], "outside the new corpus' folder paths are full"


@pytest.mark.parametrize("delimiter", [",", "\t", ";"])
def test_a_table(folder, delimiter):
    source, out = folder / ("t.tsv" if delimiter == "\t" else "t.csv"), folder / "out.jsonl"
    rows = [["path", "sentence", "speaker"], ["a.wav", f'Yes{delimiter} "no"', "x"], ["b.wav", "Two\nlines", ""]]
    quoted = [['"' + cell.replace('"', '""') + '"' for cell in row] for row in rows]
    source.write_text("\n".join(delimiter.join(row) for row in quoted) + "\n", encoding="utf-8-sig")
    assert convert(source, out) == 2
    assert said(out) == [
        ("a.wav", None, None, TRANSCRIBE, f'Yes{delimiter} "no"'),
        ("b.wav", None, None, TRANSCRIBE, "Two\nlines"),
    ]
    assert [record["audios"][0]["path"] for record in read(out)] == ["a.wav", "b.wav"]


def test_quotation_marks_between_tabs_take_no_other_rows(folder):
    rows = ['"One"', '"one', 'and two."', '"One," he said', '"a ""b"" c"', 'Say "hi"']
    (folder / "t.tsv").write_text("path\tsentence\n" + "".join(f"a.wav\t{row}\n" for row in rows))
    assert convert(folder / "t.tsv", folder / "out.jsonl") == 6
    answers = [row[-1] for row in said(folder / "out.jsonl")]
    assert answers == ["One", '"one', 'and two."', '"One," he said', 'a "b" c', 'Say "hi"']


def test_columns_may_be_named(folder):
    source, out = folder / "t.csv", folder / "out.jsonl"
    source.write_text("clip,heard,ask\na.wav,Rain.,What falls?\n")
    convert(source, out, Columns(audio="clip", text="heard", question="ask"))
    assert said(out) == [("a.wav", None, None, "What falls?", "Rain.")]
    out.unlink()
    convert(source, out, Columns(audio="clip", text="heard", instruction="Say what you hear."))
    assert said(out) == [("a.wav", None, None, "Say what you hear.", "Rain.")]


def kaldi(folder, **files):
    for name, text in files.items():
        (folder / name.replace("_", ".")).write_text(text, encoding="utf-8")
    return folder


def test_a_kaldi_folder(folder):
    out = folder / "out.jsonl"
    kaldi(folder, wav_scp=f"u1 a.wav\nu2 {folder}/b.wav\n", text="u1 one two\nu2 drei \u2028 vier\n")
    assert convert(folder, out) == 2
    assert said(out) == [
        ("a.wav", None, None, TRANSCRIBE, "one two"),
        ("b.wav", None, None, TRANSCRIBE, "drei \u2028 vier"),
    ]
    assert [record["id"] for record in read(out)] == ["u1", "u2"]
    out.unlink()
    kaldi(folder, segments="u1 r 0.5 1.25\nu2 r 2 -1\n", wav_scp="r a.wav\n")
    convert(folder, out)
    assert [row[:3] for row in said(out)] == [("a.wav", 0.5, 1.25), ("a.wav", 2.0, None)]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            {"wav_scp": "u1 sph2pipe -f wav a.sph |\n"},
            "utterance u1: wav.scp has a command, which is not run: sph2pipe",
        ),
        ({"wav_scp": "u1 wav.ark:17\n"}, "utterance u1: wav.scp has a place in an archive"),
        ({"wav_scp": "u1 a.wav\nu2 b.wav\n"}, "utterance u2: has no text"),
        ({"text": "u1 one\nu3 three\n"}, "utterance u3: is in text and has no recording"),
        ({"text": "u1\n"}, "utterance u1: has no text"),
        ({"text": "u1 one\nu1 two\n"}, "text: 1 keys come twice"),
        ({"segments": "u1 r9 0 1\n"}, "utterance u1: recording r9 is not in wav.scp"),
        ({"segments": "u1 u1 x 1\n"}, "utterance u1: segments: 'x' is no number of seconds"),
        ({"segments": "u1 u1 3 1\n"}, "utterance u1: .*end 1.0 s is not after start 3.0 s"),
    ],
)
def test_what_would_be_lost_of_a_kaldi_folder(folder, files, message):
    kaldi(folder, **({"wav_scp": "u1 a.wav\n", "text": "u1 one\n"} | files))
    refused(folder, message)


def refused(source, message, columns=None):
    home = (source if source.is_dir() else source.parent) / "out"
    home.mkdir(exist_ok=True)
    with pytest.raises(ValueError, match=message):
        convert(source, home / "refused.jsonl", columns)
    assert not list(home.iterdir()), "nothing is written"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("t.csv", "a,b\n1,2\n", "line 2: no column for the recording among a, b; --audio names it"),
        ("t.csv", "path,audio,text\na.wav,b.wav,x\n", "line 2: audio or path may be the recording; --audio names it"),
        ("t.csv", "path,text\na.wav\nb.wav,x\n", "line 2: 1 columns, but the header has 2"),
        ("t.csv", "path,text\na.wav,\n", "line 2: nothing under text"),
        ("t.csv", "path,path\na.wav,b\n", "two columns of its header have one name"),
        ("t.csv", "path,answer\na.wav,Rain\n", "line 2: nothing is asked: no question column; --instruction"),
        ("t.csv", "path,text\na.wav,<sound> x\n", "line 2: 2 <sound> placeholders, but 1 audios"),
        ("t.csv", "path,text,duration\na.wav,x,long\n", "line 2: duration: 'long' is no number of seconds"),
        ("t.csv", 'path,text\na.wav,x\nb.wav,"y\nc.wav,z\n', "line 4: .*; is a quotation mark not closed?"),
        ("t.csv", 'path,text\na.wav,"y\nb.wav,"z"\n', "line 3: .*; is a quotation mark not closed?"),
        ("t.csv", "", "nothing in it"),
        ("t.json", "[1, {}]", r"item 0: a record is an object, not int\n.*item 1: no column for the recording"),
        ("t.json", "[{", "not JSON"),
        ("t.json", "[" * 100_000, "not JSON"),
        ("t.json", '[{"audio": {"bytes": "x"}, "text": "y"}]', "item 0: audio and text must be text, got {'bytes'"),
        (
            "t.jsonl",
            '{"audio_filepath": "a.wav", "text": "x"}\n{\n{"text": 1}\n',
            r"line 2: not JSON.*\n.*line 3: no col",
        ),
    ],
)
def test_what_is_wrong_is_said_line_by_line(folder, name, text, message):
    (folder / name).write_text(text)
    refused(folder / name, message)


def test_files_that_are_not_there_or_are(folder):
    refused(folder / "none.csv", r"none\.csv: no such file")
    with pytest.raises(ValueError, match=r"all\.json: only what lies here is imported; `afn data index`"):
        convert("s3://bucket/all.json", folder / "out.jsonl")
    (folder / "x.tar").touch()
    refused(folder / "x.tar", r"x\.tar: needs no import: `afn data index .*x\.tar` reads it as it is")
    refused(folder, "no wav.scp in it, so no Kaldi folder")
    (folder / "t.csv").write_text("path,text\na.wav,x\n")
    (folder / "there.jsonl").write_text("mine")
    with pytest.raises(ValueError, match=r"there\.jsonl: is there already"):
        convert(folder / "t.csv", folder / "there.jsonl")
    assert (folder / "there.jsonl").read_text() == "mine"
    (folder / "l.csv").write_bytes("path,text\na.wav,na\u00efve\n".encode("latin-1"))
    refused(folder / "l.csv", "can't decode")
