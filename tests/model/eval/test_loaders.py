"""Files that no benchmark has: they are refused in a line that names them, whatever is in them."""

import json
import os

import pytest

from tests.model.eval.loaders.written import loaded

ROW = {"id": "a", "audio_path": "a.wav", "question": "Which?", "choices": ["dog", "cat"], "answer": "dog"}


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{}",
        "5",
        '[{"id": ',
        "[null]",
        "[" * 100_000,
        '{"a":' * 100_000,
        json.dumps([ROW]).encode("utf-16"),
        json.dumps(ROW).encode() + b"\xe9",
        json.dumps([ROW | {"choices": "[" * 5000}]),
        json.dumps([ROW | {"question": None}]),
    ],
)
def test_what_is_no_file_of_a_benchmark_is_named(tmp_path, content):
    with pytest.raises(ValueError, match=f"^{tmp_path}/mmar"):
        loaded("mmar", tmp_path, questions=content)


def test_values_of_types_that_no_loader_expects(tmp_path):
    row = {"id": "a", "prompt": "Question: Which? Options:", "answers": ["dog", "cat"], "audio_path": "a.wav"}
    for change in ({"answer_orders": [0, None]}, {"answer_orders": [0, 1], "knowledge": 5}):
        with pytest.raises(ValueError, match=r"muchomusic-original: the files are not what .* \(TypeError: "):
            loaded("muchomusic-original", tmp_path, questions=[row | change])


def test_recordings_are_files_of_the_data_folder(tmp_path):
    assert loaded("mmar", tmp_path, questions=[ROW | {"audio_path": "a/../b.wav"}])
    assert (
        loaded("mmar", tmp_path, questions=[ROW | {"audio_path": "/etc/passwd"}])[0]
        .clips[0]
        .path.startswith(str(tmp_path))
    )
    with pytest.raises(ValueError, match="item 'a' names a recording outside of it"):
        loaded("mmar", tmp_path, questions=[ROW | {"audio_path": "../../../../etc/passwd"}])
    os.mkfifo(tmp_path / "mmar" / "pipe.wav")
    with pytest.raises(ValueError, match="item 'a' names a recording that is no regular file"):
        loaded("mmar", tmp_path, questions=[ROW | {"audio_path": "pipe.wav"}])


def test_ids_of_any_form_stay_apart(tmp_path):
    ids = ["a", "a", "a#2", "a#2", "a", "x" * 10_000, "../b\n", "\ud800"]
    items = loaded("mmar", tmp_path, questions=[ROW | {"id": name} for name in ids])
    assert len({item.id for item in items}) == len(ids)
    assert [item.id for item in items[:3]] == ["a", "a#2", "a#2#2"]
