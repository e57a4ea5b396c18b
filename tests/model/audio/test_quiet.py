"""Long recordings are cut in pauses, exactly: every sample is in one piece."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from afn_model.audio.frames import MIN_SAMPLES
from afn_model.audio.quiet import cut_points
from tests.tiny import noise

RATE = 16_000


def speech(pauses: list[tuple[float, float]], seconds: float, hum: float = 0.0) -> torch.Tensor:
    """Syllables at 4 Hz, whose dips are shorter than 100 ms, and pauses (from, to) of faint noise; plus an offset."""
    pcm = torch.from_numpy(noise(seconds)).float()
    t = torch.arange(len(pcm)) / RATE
    pcm *= 0.3 + 0.7 * (torch.pi * 4 * t).sin().square()
    for start, stop in pauses:
        pcm[round(start * RATE) : round(stop * RATE)] *= 0.01
    return pcm + hum


def pieces(pcm: torch.Tensor, cuts: list[int]) -> list[int]:
    return [stop - start for start, stop in itertools.pairwise([0, *cuts, len(pcm)])]


@pytest.mark.parametrize("hum", [0.0, 0.5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.int16])
def test_cuts_lie_in_pauses(dtype, hum):
    pauses = [(1.0, 1.5), (6.0, 6.3), (9.0, 9.2), (11.0, 11.15), (16.8, 17.2), (17.6, 17.8)]
    pcm = speech(pauses, 22.0, hum)
    pcm = pcm if dtype == torch.float32 else (pcm * 16_384).round().to(dtype)
    cuts = [cut / RATE for cut in cut_points(pcm, 7.0, 3.0)]
    # (6.0, 6.3) is the only pause of 4 .. 7 s. From there a piece ends by 13.3 at the latest, the next by 18.1.
    assert len(cuts) == 3
    assert 6.05 <= cuts[0] <= 6.25
    assert 11.05 <= cuts[1] <= 11.1
    assert 16.85 <= cuts[2] <= 17.15 or 17.65 <= cuts[2] <= 17.75


def test_what_is_short_enough_stays_whole_and_of_equal_places_the_latest_is_taken():
    silence = torch.zeros(RATE * 10)
    assert cut_points(silence, 10.0, 5.0) == []
    assert cut_points(silence, float("inf"), 5.0) == []
    assert cut_points(torch.zeros(0), 1.0, 0.5) == []
    cuts = cut_points(silence, 4.0, 2.0)
    assert cuts == [round(3.95 * RATE), round(7.9 * RATE)]
    # One sample more than fits: 50 ms and that one are left.
    assert pieces(silence, cut_points(silence, 10.0 - 1 / RATE, 0.1)) == [159_199, 801]


@settings(deadline=None, max_examples=40)
@given(
    samples=st.integers(0, 40_000),
    longest=st.floats(0.1, 2.0),
    share=st.floats(0.0, 1.0),
    seed=st.integers(0, 99),
)
def test_no_piece_is_too_long_or_shorter_than_a_token(samples, longest, share, seed):
    pcm = torch.randint(-3, 4, (samples,), generator=torch.Generator().manual_seed(seed), dtype=torch.int16)
    search = 0.1 + share * (longest - 0.1)
    cuts = cut_points(pcm, longest, min(search, longest))
    found = pieces(pcm, cuts)
    assert sum(found) == samples
    assert max(found) <= longest * RATE
    if cuts:
        assert min(found) >= 800 > MIN_SAMPLES
        for piece in found[:-1]:
            assert piece > (longest - search) * RATE


def test_what_cannot_be_cut():
    for longest, search in ((10.0, 0.05), (1.0, 2.0), (float("nan"), 1.0), (1.0, float("nan"))):
        with pytest.raises(ValueError, match=r"search_seconds must be from 0.1 to longest_seconds, got"):
            cut_points(torch.zeros(RATE), longest, search)
    with pytest.raises(ValueError, match=r"must be \[n\] samples, got \[2, 5\]"):
        cut_points(torch.zeros(2, 5), 1.0, 0.5)
