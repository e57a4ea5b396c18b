import pyarrow.parquet as parquet
import pytest

from afn_model.audio.recording import Audio
from afn_model.audio.recording import load as load_audio
from afn_model.eval.copies.choices import write_parquet
from afn_model.eval.copies.sounds import Sounds, save
from afn_model.eval.loaders import load
from afn_model.eval.loaders.files import answer_at, lettered
from afn_model.eval.prompts import PROMPTS, content
from tests.model.eval.loaders.copied import copied, loaded, write


def test_a_spoken_request_is_shown_no_text(tmp_path):
    items = loaded("voicebench-commoneval", tmp_path)
    assert [item.id for item in items] == [f"test-{number}" for number in range(1, 6)]
    assert {item.answer for item in items} == {None}
    assert items[0].extra["transcription"] == items[0].question != ""
    (part,) = content(items[0], PROMPTS["spoken"](items[0], ""))
    assert part["type"] == "audio"
    assert len(load_audio(Audio(part["path"]))) > 8000


def test_options_are_read_from_what_is_spoken(tmp_path):
    row, folder = copied("voicebench-openbookqa", tmp_path)
    items = load(row, tmp_path)
    assert all(item.answer in item.question for item in items)
    assert all(len(item.choices) == 4 and item.extra["reference"] in "ABCD" for item in items)
    path = folder / "openbookqa" / "test-00000-of-00001.parquet"
    (one, *_) = parquet.read_table(path).to_pylist()
    write_parquet(path, [one | {"prompt": "Which is oxygen? A. N B. C C. O D. H", "reference": "C"}])
    (item,) = load(row, tmp_path)
    assert (item.choices, item.answer) == (("N", "C", "O", "H"), "O")  # the letter, not the text


def test_splits_and_their_parts(tmp_path):
    row, folder = copied("voicebench-mmsu", tmp_path)
    rows = parquet.read_table(folder / "mmsu" / "law-00000-of-00001.parquet").to_pylist()
    write_parquet(folder / "mmsu" / "law-00001-of-00002.parquet", rows[:1])
    items = load(row, tmp_path)
    assert [item.id for item in items] == ["law-1", "law-2", "law-3", "law-4", "physics-1", "physics-2", "physics-3"]
    assert items[3].clips[0].path.endswith("law-00001-of-00002.parquet#0.0:audio")
    assert [item.groups["split"] for item in items[3:5]] == ["law", "physics"]


def test_lines_and_a_reference_that_is_not_there(tmp_path):
    row, folder = copied("voicebench-sd-qa", tmp_path)
    (folder / "sd-qa" / "usa-00000-of-00001.parquet").unlink()
    save(folder / "audio" / "1.wav", Sounds(0).speech("one"))
    path = folder / "x-sd-qa-usa-audio.jsonl"
    write(path, [{"prompt": "Which?", "reference": "one", "audio": "1.wav"}])
    (item,) = load(row, tmp_path)
    assert (item.question, item.answer) == ("Which?", "one")
    assert item.clips[0].path == str(folder / "audio" / "1.wav")
    write(path, [{"prompt": "Which?", "audio": {"path": "1.wav"}}])
    with pytest.raises(ValueError, match="no field 'reference'; there are prompt, audio"):
        load(row, tmp_path)


@pytest.mark.parametrize(
    ("text", "question", "options"),
    [
        ("Who? A. one B. two", "Who?", ("one", "two")),
        ("Question: Who?\nOptions:\nA. one\nB. two, too\nC. 3.\nD. A. b\n", "Who?", ("one", "two, too", "3.", "A. b")),
        ("Who?\n(A) one\n(B) two\n(C) three", "Who?", ("one", "two", "three")),
        ("Who? A) one B) two", "Who?", ("one", "two")),
        ("Is vitamin A. good? A. yes B. no C. B. D. C.", "Is vitamin A. good?", ("yes", "no", "B.", "C.")),
        ("When? A. 50 B.C. B. 40 B.C. C. 30 A.D.", "When?", ("50 B.C.", "40 B.C.", "30 A.D.")),
        ("Who lived in 50 B.C. in the U.S.?", "Who lived in 50 B.C. in the U.S.?", ("A", "B", "C", "D")),
        ("Who? A. one", "Who? A. one", ("A", "B", "C", "D")),
    ],
)
def test_options_inside_a_text(text, question, options):
    assert lettered(text) == (question, options)


def test_letters_alone():
    assert [answer_at(one, ("B", "A")) for one in ("A", "b.", " (B) ", "C", "", None)] == [
        "B",
        "A",
        "A",
        "C",
        None,
        None,
    ]
