"""Rotary positions: integers, or the clock of the paper's reading."""

import pytest
import torch

from afn_model.config import RoteConfig
from afn_model.network.positions import rotary_positions

A = 9  # the placeholder


def positions(sequences: list[list[int]], clips: list[int], **clock) -> list[float]:
    ids = torch.tensor([token for sequence in sequences for token in sequence])
    cu = torch.tensor([0] + [len(sequence) for sequence in sequences]).cumsum(0).to(torch.int32)
    found = rotary_positions(ids, cu, A, clips, RoteConfig(**clock))
    assert found.dtype == torch.float32
    assert found.shape == ids.shape
    return found.tolist()


SEQUENCES = [[1, 2, A, A, A, 3, A, A, 4], [5], [A, 6, A, A, 7]]
CLIPS = [3, 2, 1, 2]
INTEGERS = [float(i) for sequence in SEQUENCES for i in range(len(sequence))]


@pytest.mark.parametrize("reading", ["checkpoint", "none", "paper"])
def test_without_gaps_the_clock_counts_tokens(reading):
    assert positions(SEQUENCES, CLIPS, reading=reading) == INTEGERS


def test_text_step_matters_to_the_papers_reading_alone():
    assert positions(SEQUENCES, CLIPS, reading="checkpoint", text_step=0.25, clock="restart") == INTEGERS
    found = positions(SEQUENCES, CLIPS, reading="paper", text_step=0.25)
    assert found[:9] == [0.0, 0.25, 0.5, 1.5, 2.5, 3.5, 3.75, 4.75, 5.75]
    assert found[9] == 0.0
    assert found[10:] == [0.0, 1.0, 1.25, 2.25, 3.25]


def test_text_that_takes_no_time():
    found = positions([[1, 2, A, A, 3, 4, A, 5]], [2, 1], reading="paper", text_step=0.0)
    assert found == [0.0, 0.0, 0.0, 1.0, 2.0, 2.0, 2.0, 3.0]


def test_restart_starts_every_clip_where_the_first_did():
    found = positions(SEQUENCES, CLIPS, reading="paper", clock="restart")
    assert found[:9] == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 2.0, 3.0, 4.0]
    assert found[9] == 0.0
    assert found[10:] == [0.0, 1.0, 0.0, 1.0, 2.0]


def test_restart_with_a_text_step():
    found = positions([[1, A, A, 2, 3, A, A, 4, A, 5]], [2, 2, 1], reading="paper", clock="restart", text_step=0.5)
    assert found == [0.0, 0.5, 1.5, 2.5, 3.0, 0.5, 1.5, 2.5, 0.5, 1.5]


def test_clips_that_touch_are_told_apart_by_their_lengths():
    for clips, expected in (
        ([2, 2], [0.0, 1.0, 0.0, 1.0]),
        ([1, 3], [0.0, 0.0, 1.0, 2.0]),
        ([4], [0.0, 1.0, 2.0, 3.0]),
    ):
        assert positions([[A, A, A, A]], clips, reading="paper", clock="restart") == expected


def test_text_alone():
    for clock in ("continue", "restart"):
        assert positions([[1, 2, 3], [4, 5]], [], reading="paper", clock=clock) == [0.0, 1.0, 2.0, 0.0, 1.0]


def test_steps_of_a_long_clip_stay_exact():
    # 30 minutes of audio after a text whose step is no power of two.
    found = positions([[1] * 3 + [A] * 45_000], [45_000], reading="paper", text_step=0.1)
    assert found[-1] == pytest.approx(0.3 + 44_999, abs=2e-3)
    assert torch.tensor(found[3:]).diff().sub(1.0).abs().max() <= 4e-3
