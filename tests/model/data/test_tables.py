"""Rows of Parquet and Arrow files as records: every form of recording and text, and what is wrong named by row."""

import json
from dataclasses import replace

import pytest
import torch

from afn_model.audio.recording import load, measured_seconds
from afn_model.data.check import missing_recordings
from afn_model.data.foreign import Columns
from afn_model.data.index import Corpus, build
from afn_model.data.records import audios_of, check, parse_sample
from tests.corpora import clip, parquet

pa = pytest.importorskip("pyarrow", reason="pyarrow reads Parquet and Arrow files")
pq = pytest.importorskip("pyarrow.parquet", reason="pyarrow reads Parquet and Arrow files")
ONE, TWO = clip(0.5), clip(0.75, seed=1)
AUDIO = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def embedded(data=ONE, path="a.flac"):
    return {"bytes": data, "path": path}


def turns(record):
    return [(turn.role, turn.text) for turn in parse_sample(record, "").turns]


def indexed(path, columns=None, **options):
    build(path, check=check, columns=columns, measure=True, **options)
    return Corpus(path)


@pytest.mark.parametrize(
    ("row", "columns", "said"),
    [
        ({"text": "One."}, Columns(), ("<sound>Transcribe the input speech.", "One.")),
        ({"sentence": "One.", "path": "a.mp3"}, Columns(), ("<sound>Transcribe the input speech.", "One.")),
        ({"transcription": "One."}, Columns(instruction="Write."), ("<sound>Write.", "One.")),
        ({"question": "Who?", "answer": "She."}, Columns(), ("<sound>Who?", "She.")),
        ({"caption": "Rain."}, Columns(instruction="What?"), ("<sound>What?", "Rain.")),
        ({"text": "One.", "raw": "one"}, Columns(text="raw", instruction="Write."), ("<sound>Write.", "one")),
        (
            {"messages": [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "She."}]},
            Columns(),
            ("<sound>Who?", "She."),
        ),
        (
            {"conversations": [{"from": "human", "value": "Who <audio>?"}, {"from": "gpt", "value": "She."}]},
            Columns(),
            ("<sound>Who ?", "She."),
        ),
        (
            {"messages": '[{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "She."}]'},
            Columns(),
            ("<sound>Who?", "She."),
        ),
        (
            {
                "messages": [
                    {"role": "user", "content": [{"type": "audio", "text": None}, {"type": "text", "text": "Who?"}]},
                    {"role": "assistant", "content": [{"type": "text", "text": "She."}]},
                ]
            },
            Columns(),
            ("<sound>Who?", "She."),
        ),
    ],
)
def test_columns(tmp_path, row, columns, said):
    path = parquet(tmp_path / "data" / "a.parquet", [row | {"audio": embedded()}] * 3)
    corpus = indexed(path, columns)
    assert len(corpus) == 3
    assert [role for role, _ in turns(corpus[2])] == ["user", "assistant"]
    assert tuple(text for _, text in turns(corpus[2])) == said
    assert corpus[2]["id"] == "a.parquet[2]"
    assert [audio.source for audio in audios_of(parse_sample(corpus[2], ""))] == ["a.parquet#1.0:audio"]
    assert corpus.seconds(2) == 0.5
    assert missing_recordings({"a": corpus}) == []


def test_every_form_of_recording(tmp_path):
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips" / "b.flac").write_bytes(TWO)
    forms = {
        "struct": {"audio": embedded()},
        "path in the struct": {"audio": embedded(None, "clips/b.flac")},
        "binary": {"wav": ONE},
        "path": {"file_name": "clips/b.flac"},
        "list": {"audios": [embedded(), embedded(TWO)]},
    }
    for number, row in enumerate(forms.values()):
        corpus = indexed(parquet(tmp_path / f"{number}.parquet", [row | {"text": "One."}]))
        audios = audios_of(parse_sample(corpus[0], corpus.folder))
        heard = [TWO] if "b.flac" in str(row) and b"fLaC" not in str(row).encode() else [ONE]
        heard = [ONE, TWO] if "audios" in row else heard
        assert [load(audio).tolist() for audio in audios] == [
            load(replace(audio, source=data)).tolist() for audio, data in zip(audios, heard, strict=True)
        ]
        assert corpus.seconds(0) == sum(measured_seconds(audio) for audio in audios)


def test_names_of_classes_stand_for_their_numbers(tmp_path):
    table = {"label": 1, "audio": embedded()}
    classes = {"label": {"names": ["rain", "dog"], "_type": "ClassLabel"}, "audio": {"_type": "Audio"}}
    schema = pa.schema(
        [("label", pa.int64()), ("audio", AUDIO)],
        metadata={"huggingface": json.dumps({"info": {"features": classes}})},
    )
    path = parquet(tmp_path / "a.parquet", [table], schema=schema)
    assert turns(indexed(path, Columns(text="label", instruction="What?"))[0])[1] == ("assistant", "dog")


def test_rows_that_cannot_be_used_are_named_with_their_file(tmp_path):
    schema = pa.schema([("text", pa.string()), ("audio", AUDIO)])
    rows = [{"text": "One.", "audio": embedded()} for _ in range(6)]
    rows[1]["audio"], rows[3]["audio"], rows[4]["text"] = None, embedded(None, None), None
    path = parquet(tmp_path / "a.parquet", rows, schema=schema)
    with pytest.raises(ValueError) as error:
        build(path, check=check)
    assert str(error.value).splitlines() == [
        f"{path}, row 1: nothing under 'audio'; there are text, audio",
        f"{path}, row 3: nothing under 'audio'; there are text, audio",
        f"{path}, row 4: nothing under text",
    ]
    assert [file.name for file in tmp_path.iterdir()] == ["a.parquet"], "nothing is left behind"
    build(path)
    assert len(Corpus(path)) == 6
    with pytest.raises(ValueError, match="either 'messages' or 'conversations'"):
        parse_sample(Corpus(path)[3], "")
    assert missing_recordings({"a": path}) == []


@pytest.mark.parametrize(
    ("row", "columns", "problem"),
    [
        (
            {"sentence": "One.", "audio": embedded()},
            Columns(),
            "its columns are audio, sentence, but those of",
        ),
        ({"text": "One."}, Columns(), "b.parquet: its columns are text, but those of .*a.parquet are audio, text"),
        ({"text": "One.", "audio": embedded(), "wav": ONE}, Columns(), "audio or wav may be the recording; --audio"),
        ({"text": "One.", "audio": embedded()}, Columns(text="words"), "a.parquet: no column 'words'; there are"),
    ],
)
def test_columns_that_cannot_be_used_are_one_line(tmp_path, row, columns, problem):
    parquet(tmp_path / "a.parquet", [{"text": "One.", "audio": embedded()}])
    parquet(tmp_path / "b.parquet", [row])
    with pytest.raises(ValueError, match=problem) as error:
        build(tmp_path / "*.parquet", check=check, columns=columns)
    assert "\n" not in str(error.value)


def test_a_folder_that_datasets_has_saved(tmp_path):
    schema = pa.schema([("text", pa.string()), ("audio", AUDIO)])
    for split, count in (("train", 3), ("test", 1)):
        folder = tmp_path / "saved" / split
        folder.mkdir(parents=True)
        names = [f"data-{number:05d}-of-{count:05d}.arrow" for number in range(count)]
        for name in names:
            with pa.ipc.new_stream(str(folder / name), schema) as out:
                out.write_batch(pa.RecordBatch.from_pylist([{"text": name, "audio": embedded()}] * 2, schema=schema))
        state = {"_data_files": [{"filename": name} for name in names], "_fingerprint": "1", "_split": split}
        (folder / "state.json").write_text(json.dumps(state))
    (tmp_path / "saved" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    corpus = indexed(tmp_path / "saved" / "train")
    assert [turns(corpus[number])[1][1] for number in range(6)] == [name for name in sorted(_names(3)) for _ in "ab"]
    audio = audios_of(parse_sample(corpus[5], corpus.folder))[0]
    assert audio.source.endswith("train/data-00002-of-00003.arrow#0.1:audio")
    assert torch.equal(load(audio), load(replace(audio, source=ONE)))
    with pytest.raises(ValueError, match="saved: holds several splits; name one of them: test, train"):
        build(tmp_path / "saved")


def _names(count):
    return [f"data-{number:05d}-of-{count:05d}.arrow" for number in range(count)]


def test_lists_with_gaps_and_columns_of_one_name_are_refused_in_one_line(tmp_path):
    heard = [[], [None], [{"bytes": None, "path": "a.flac"}]]
    table = pa.table({"text": list("abc"), "audio": pa.array(heard, pa.list_(AUDIO))})
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"row 0: .*text, got \[\] .*\n.*row 1: .*text, got \[None\] and 'b'$"):
        build(tmp_path / "a.parquet", check=check)
    pq.write_table(table.append_column("text", table["text"]), tmp_path / "b.parquet")
    with pytest.raises(ValueError, match=r"b\.parquet: two of its columns have one name: text, audio, text$"):
        build(tmp_path / "b.parquet", check=check)
