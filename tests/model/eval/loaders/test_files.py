"""Where the files of a benchmark are found, however people unpacked them."""

import pytest

from afn_model.eval.loaders.files import Files, plain_names


@pytest.fixture
def files(tmp_path):
    for path in ("hub/audio/1.wav", "hub/audio/2.wav", "other/audio/2.wav", "part/3.wav", "part/b/3.wav"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).touch()
    return Files(tmp_path, {"questions": ["test.json", "**/test.json", "data/*.parquet"]})


def test_a_recording_in_a_folder_of_the_archive_is_found_by_the_end_of_its_path(files):
    there = files.folder
    assert files.audio("./audio/1.wav") == str(there / "hub/audio/1.wav")
    assert files.audio("1.wav", "audio") == str(there / "hub/audio/1.wav")
    assert files.audio("b/3.wav") == str(there / "part/b/3.wav")
    assert files.audio("video/2.wav", "other/audio") == str(there / "other/audio/2.wav")
    assert files.audio("video/1.wav", str(there), "audio") == str(there / "hub/audio/1.wav")
    assert files.audio("3.wav", "part") == str(there / "part/3.wav"), "the folder that is named comes first"


def test_a_recording_that_could_be_several_or_another_is_none(files):
    for path in ("audio/2.wav", "video/1.wav", "io/1.wav", ""):
        assert files.audio(path) == str(files.folder / path)


def test_missing_files_are_named_as_people_read_them(files):
    with pytest.raises(ValueError, match=r": no test\.json or data/\*\.parquet in it$"):
        files.one("questions")
    assert plain_names(["a.json", "**/a.json"]) == "a.json"
