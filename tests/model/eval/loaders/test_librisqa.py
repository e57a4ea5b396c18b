import pytest

from afn_model.eval.loaders import load
from tests.model.eval.loaders.copied import changed, copied, loaded


def test_open_questions(tmp_path):
    items = loaded("librisqa-part1", tmp_path)
    assert [item.id for item in items][3:] == ["1089-134686-0003", "1089-134686-0003#2"]
    assert all(item.choices == () and item.answer == item.extra["transcription"] for item in items)
    assert {item.clips[0].path[-5:] for item in items} == {".flac"}  # the third row says .wav


def test_options_inside_the_question(tmp_path):
    items = loaded("librisqa-part2", tmp_path)
    assert {item.question for item in items} == {"Which word is said?", "What word do you hear?"}
    assert all(len(item.choices) == 4 and item.answer in item.choices for item in items)
    assert "Option" in items[0].extra["analysis"]


def test_utterances_of_the_benchmark_librispeech(tmp_path):
    row, folder = copied("librisqa-part1", tmp_path)
    moved = tmp_path / "librispeech" / "LibriSpeech"
    moved.parent.mkdir()
    (folder / "LibriSpeech").rename(moved)
    path = folder / "LibriSQA-PartI" / "LibriSQA-PartI-test.json"
    changed(path, lambda rows: rows[0].update(speech_path="1089-134686-0000.flac"))
    found = [item.clips[0].path for item in load(row, tmp_path)]
    assert [name.endswith(f"000{number}.flac") for name, number in zip(found, (0, 1, 2, 3, 3), strict=True)] == [
        True
    ] * 5
    assert all((tmp_path / name).resolve().is_relative_to(moved) for name in found)
    changed(path, lambda rows: rows[1].update(path=rows[1].pop("speech_path")))
    with pytest.raises(ValueError, match="question 2: no field 'speech_path'"):
        load(row, tmp_path)
