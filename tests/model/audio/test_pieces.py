"""Long recordings in pieces: nothing lost, nothing twice, cuts where it is quiet."""

import io

import pytest
import soundfile

from afn_model.audio.pieces import cut, cut_samples, seconds_of
from afn_model.audio.recording import Audio, load
from tests.tiny import noise

PAUSES = (4.3, 8.9, 13.5)  # seconds


@pytest.fixture(scope="module")
def talk(tmp_path_factory):
    """16.3 s of noise with pauses of 0.3 s, at 44.1 kHz."""
    pcm = noise(16.3, rate=44_100)
    for pause in PAUSES:
        pcm[round(pause * 44_100) : round((pause + 0.3) * 44_100)] *= 1e-3
    file = tmp_path_factory.mktemp("talk") / "talk.flac"
    soundfile.write(file, pcm, 44_100)
    return str(file)


def test_pieces_of_a_long_recording(talk):
    pieces = cut(Audio(talk), 5.0)
    assert pieces[0][0] == 0.0
    assert pieces[-1][1] == pytest.approx(16.3)
    assert [first for first, _ in pieces[1:]] == [last for _, last in pieces[:-1]]
    assert all(last - first <= 5.0 for first, last in pieces)
    # Of the pauses, those in the last second that a piece may have.
    assert all(pause < last < pause + 0.3 for pause, (_, last) in zip(PAUSES, pieces, strict=False))
    whole = load(Audio(talk))
    parts = [load(Audio(talk, start=first, end=None if last > 16 else last)) for first, last in pieces]
    # The samples of a part are those of the whole but for where they are resampled from: half a sample of 44.1 kHz.
    assert sum(map(len, parts)) == pytest.approx(len(whole), abs=len(parts))


def test_short_ones_are_only_measured(talk, monkeypatch):
    monkeypatch.setattr("afn_model.audio.pieces.load", None)
    assert cut(Audio(talk), 17.0) == [(0.0, pytest.approx(16.3))]
    assert cut(Audio(talk, start=10.0, end=12.0), 3.0) == [(10.0, pytest.approx(12.0))]


def test_a_part_is_cut_within_itself(talk):
    pieces = cut(Audio(talk, start=4.1, end=15.0), 5.0)
    assert (pieces[0][0], pieces[-1][1]) == (4.1, pytest.approx(15.0))
    assert 8.9 < pieces[0][1] < 9.2


@pytest.mark.parametrize(("seconds", "longest"), [(16.3, 5.0), (6.0, 5.99), (3.0, 3.0)])
def test_samples_are_cut_where_a_file_of_them_is(tmp_path, seconds, longest):
    pcm, file = noise(seconds), str(tmp_path / "talk.wav")
    pcm[int(4.3 * 16_000) : int(4.4 * 16_000)] = 0
    soundfile.write(file, pcm, 16_000, subtype="FLOAT")
    whole = load(Audio(file))
    found, of_file = cut_samples(whole, longest), cut(Audio(file), longest)
    assert found == [(round(a * 16_000), round(b * 16_000)) for a, b in of_file]
    assert sum(b - a for a, b in found) == len(whole)


def test_no_piece_is_too_short_to_be_heard(tmp_path):
    pcm = noise(6.0)
    pcm[4 * 16_000 :] = 0  # the last of the quietest places is at the very end
    soundfile.write(tmp_path / "fade.wav", pcm, 16_000)
    for longest, count in ((5.99, 2), (5.0, 2), (3.0, 3)):
        pieces = cut(Audio(str(tmp_path / "fade.wav")), longest)
        assert len(pieces) == count
        assert all(last - first >= 0.9 for first, last in pieces)


def test_a_header_that_promises_more_than_there_is(talk):
    pieces = cut(Audio(talk, start=10.0), 5.0, seconds=12.0)
    assert pieces[-1][1] == pytest.approx(16.3)


def test_bytes_and_what_is_no_recording(talk):
    with open(talk, "rb") as file:
        data = io.BytesIO(file.read())
    assert seconds_of(Audio(data)) == pytest.approx(16.3)
    assert len(cut(Audio(data), 5.0)) == len(cut(Audio(talk), 5.0))
    with pytest.raises(ValueError, match=r"nowhere\.wav: no such file"):
        cut(Audio("nowhere.wav"), 5.0)
