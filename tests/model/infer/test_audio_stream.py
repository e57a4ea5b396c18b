"""A recording piece by piece has the windows and digests of the whole."""

import hashlib
import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from afn_model.audio.decode import array_to_pcm
from afn_model.audio.digests import window_digest, windows_of
from afn_model.audio.frames import MIN_SAMPLES, WINDOW, split_windows
from afn_model.infer.audio_stream import AudioStream

FLOAT, WHOLE = torch.float32, torch.int16


def recording(samples: int, dtype=WHOLE) -> torch.Tensor:
    pcm = torch.arange(samples).mul_(7919).remainder_(65_521).sub_(32_760).to(WHOLE)
    return pcm if dtype == WHOLE else pcm / 30_000  # beyond full scale, and between the steps of int16


def streamed(pieces, **options):
    """The stream, its full windows, and the one that was left."""
    stream = AudioStream(**options)
    full = [window for piece in pieces for window in stream.push(piece)]
    return stream, full, stream.close()


def test_a_digest_is_of_dtype_length_and_samples():
    pcm = recording(400)
    expected = hashlib.sha256(b"int16" + (400).to_bytes(8, "little") + pcm.numpy().tobytes()).digest()
    assert window_digest(pcm) == expected
    assert window_digest(torch.stack([pcm, -pcm], 1)[:, 0]) == expected, "strided samples"
    others = [pcm[:399], torch.cat([pcm, torch.zeros(1, dtype=WHOLE)]), pcm.float(), pcm / 32_768, pcm.flip(0)]
    assert len({window_digest(other) for other in [pcm, *others]}) == 6


def test_windows_of_recordings_are_those_of_a_batch():
    clips = [recording(WINDOW + 500), recording(WINDOW + MIN_SAMPLES - 1), recording(320), recording(1_000)]
    expected = [row[:n] for clip in clips for row, n in zip(*split_windows(clip), strict=True)]
    found = windows_of(clips)
    assert [len(row) for row in found] == [WINDOW, 500, WINDOW, 1_000]
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))


@settings(deadline=None, max_examples=25)
@given(
    tail=st.sampled_from([0, 1, 320, 321, 5_000, WINDOW - 1]),
    windows=st.integers(0, 2),
    cuts=st.lists(st.floats(0, 1), max_size=6),
    given=st.sampled_from([FLOAT, WHOLE]),
    wanted=st.sampled_from([FLOAT, WHOLE]),
)
def test_any_pieces_give_the_windows_of_the_whole(tail, windows, cuts, given, wanted):
    samples = windows * WINDOW + tail
    if samples < MIN_SAMPLES:
        return
    pcm = recording(samples, given)
    whole = array_to_pcm(pcm, dtype=wanted)
    at = [0, *sorted(round(cut * samples) for cut in cuts), samples]
    stream, full, last = streamed((pcm[a:b] for a, b in itertools.pairwise(at)), dtype=wanted)
    rows = windows_of([whole])
    found = full + ([] if last is None else [last])
    assert [window.index for window in found] == list(range(len(rows)))
    assert all(torch.equal(window.pcm, row) for window, row in zip(found, rows, strict=True))
    assert [window.digest for window in found] == list(map(window_digest, rows)) == stream.digests
    assert stream.samples == samples


def test_the_last_window_as_far_as_it_is_there():
    stream, pcm = AudioStream(dtype=WHOLE), recording(WINDOW + 2_000)
    assert stream.push(pcm[:320]) == []
    assert stream.partial() is None
    stream.push(pcm[320:321])
    first = stream.partial()
    assert (first.index, first.digest, len(first.pcm)) == (0, window_digest(pcm[:321]), 321)
    (full,) = stream.push(pcm[321 : WINDOW + 400].numpy())
    assert (full.index, full.digest) == (0, window_digest(pcm[:WINDOW]))
    # What was handed out does not change with what comes.
    assert torch.equal(full.pcm, pcm[:WINDOW])
    assert torch.equal(first.pcm, pcm[:321])
    assert stream.partial().index == 1
    assert torch.equal(stream.partial().pcm, pcm[WINDOW : WINDOW + 400])
    assert stream.digests == [full.digest]


def test_the_limit_is_counted_in_samples():
    stream, pcm = AudioStream(dtype=WHOLE, max_seconds=0.25), recording(4_001)
    stream.push(pcm[:3_000])
    with pytest.raises(ValueError, match=r"of 4001 samples is longer than 0\.25 s, 4000 samples: close the stream"):
        stream.push(pcm[3_000:])
    assert stream.samples == 3_000
    stream.push(pcm[3_000:4_000])
    assert torch.equal(stream.close().pcm, pcm[:4_000])
    assert AudioStream().max_seconds == 1800


def test_what_is_refused_leaves_the_stream_as_it_was():
    stream = AudioStream()
    stream.push(np.zeros(16_000, np.float32))
    for piece, says in (
        (torch.zeros(2, 5), r"\[n\] float32 or int16, got torch.float32 \[2, 5\]"),
        (torch.zeros(5, dtype=torch.float64), "got torch.float64"),
        (torch.tensor([0.0, torch.nan]), "a sample after 1.000 s that is no number or far beyond full scale"),
        (torch.tensor([torch.inf]), "no number or far beyond"),
        (torch.tensor([1e10]), "no number or far beyond"),
    ):
        with pytest.raises(ValueError, match=says):
            stream.push(piece)
    assert stream.samples == 16_000
    assert not stream.partial().pcm.any()
    with pytest.raises(ValueError, match=r"must be torch\.float32 or torch\.int16, not torch\.float64"):
        AudioStream(dtype=torch.float64)


def test_a_stream_ends_once():
    short = AudioStream()
    short.push(torch.zeros(320))
    with pytest.raises(ValueError, match=r"0\.0200 s is too short: one audio token needs 0\.0201 s"):
        short.close()
    short.push(torch.zeros(1))
    assert len(short.close().pcm) == 321
    for end in (short.close, lambda: short.push(torch.zeros(1))):
        with pytest.raises(ValueError, match="the audio stream has ended: begin another"):
            end()
    aborted = AudioStream()
    aborted.push(torch.zeros(5_000))
    aborted.abort()
    aborted.abort()
    assert aborted.partial() is None
    with pytest.raises(ValueError, match="has ended"):
        aborted.push(torch.zeros(1))
