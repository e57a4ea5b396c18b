"""Standard input, pipes and open files: what is in them is read, whatever their size is said to be."""

import io
import os
import subprocess
import sys
import threading

import pytest
import torch

from afn_model.audio.decode import load_audio
from afn_model.audio.recording import Audio, measured_seconds
from afn_model.audio.source import is_pipe, read_source
from bench.recordings import ladder, sound_file

WAV = sound_file(ladder(2), 16_000, "WAV")


def test_a_dash_is_standard_input(monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(WAV)))
    assert torch.equal(load_audio("-"), load_audio(WAV))
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"")))
    with pytest.raises(ValueError, match="-: the file is empty"):
        load_audio("-")


def test_a_pipe_is_read_though_it_says_that_it_has_no_bytes(tmp_path):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    assert os.stat(path).st_size == 0
    writer = threading.Thread(target=path.write_bytes, args=(WAV,))
    writer.start()
    assert torch.equal(load_audio(path), load_audio(WAV))
    writer.join()


def test_dev_stdin_is_read_in_a_process_of_its_own():
    code = "from afn_model import load_audio; print(load_audio('/dev/stdin').numel(), load_audio.__name__)"
    done = subprocess.run([sys.executable, "-c", code], input=WAV, capture_output=True, check=True)
    assert done.stdout == b"32000 load_audio\n"


def test_what_can_be_read_once_is_not_measured(tmp_path):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    for source in ("-", str(path)):
        assert is_pipe(source)
        with pytest.raises(ValueError, match="how long it is will be known when it has been read"):
            measured_seconds(Audio(source))
    (tmp_path / "a.wav").write_bytes(WAV)
    assert not any(map(is_pipe, (tmp_path / "a.wav", tmp_path / "absent", WAV, io.BytesIO(WAV))))


def test_an_open_file_is_read_from_its_beginning(tmp_path):
    (tmp_path / "a.wav").write_bytes(WAV)
    with open(tmp_path / "a.wav", "rb") as file:
        file.read(1000)
        assert read_source(file).data == WAV
        assert read_source(file).name == str(tmp_path / "a.wav")
    used = io.BytesIO(WAV)
    used.read()
    assert torch.equal(load_audio(used), load_audio(WAV))
    with open(tmp_path / "a.wav", encoding="latin-1") as text, pytest.raises(ValueError, match="binary mode"):
        read_source(text)


class OnlyReads:
    """Something that can be read, and nothing more."""

    def read(self) -> bytes:
        return WAV


def test_what_can_only_be_read_is_enough():
    assert read_source(OnlyReads()).data == WAV
