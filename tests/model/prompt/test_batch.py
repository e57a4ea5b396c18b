"""What a packed batch says of itself."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from afn_model.prompt.batch import Batch, join

NOTHING = torch.empty(0, dtype=torch.int64)


def test_targets_are_labels_shifted_within_each_conversation():
    labels = torch.tensor([-100, 5, 6, 7, -100, 8])
    batch = Batch(torch.arange(6), torch.tensor([0, 3, 3, 6], dtype=torch.int32), None, NOTHING, NOTHING, labels)
    assert batch.targets.tolist() == [5, 6, -100, -100, 8, -100]
    batch.labels[4] = 9
    assert batch.targets.tolist() == [5, 6, -100, 9, 8, -100]
    batch.labels = -batch.labels
    assert batch.targets.tolist() == [-5, -6, -100, -9, -8, -100]
    assert batch.to("cpu").targets.tolist() == batch.targets.tolist()


def test_a_batch_without_labels_has_no_targets():
    batch = Batch(torch.arange(2), torch.tensor([0, 2], dtype=torch.int32), None, NOTHING, NOTHING)
    with pytest.raises(ValueError, match="no labels"):
        _ = batch.targets


def test_windows_count_their_frames_and_tokens():
    samples = torch.tensor([480_000, 1, 321, 47_999])
    batch = Batch(torch.arange(2), torch.tensor([0, 2], dtype=torch.int32), None, samples, torch.tensor([4]))
    assert batch.mel_lengths.tolist() == [3000, 1, 3, 300]
    assert batch.window_tokens.tolist() == [750, 0, 1, 75]


@pytest.mark.parametrize(
    ("lengths", "expected"), [([0, 2, 1], [1, -100, -100]), ([2, 0, 1, 0], [1, -100, -100]), ([0], [])]
)
def test_targets_of_empty_conversations(lengths, expected):
    total = sum(lengths)
    ends = torch.tensor([0, *lengths]).cumsum(0).int()
    batch = Batch(torch.arange(total), ends, None, NOTHING, NOTHING, torch.arange(total))
    assert batch.targets.tolist() == expected
    assert batch.supervised == len([target for target in expected if target != -100])


@given(st.lists(st.lists(st.sampled_from([-100, 0, 7]), max_size=4), max_size=6))
def test_supervised_counts_the_targets(conversations):
    labels = torch.tensor([label for one in conversations for label in one], dtype=torch.int64)
    ends = torch.tensor([0, *map(len, conversations)]).cumsum(0).int()
    batch = Batch(torch.zeros_like(labels), ends, None, NOTHING, NOTHING, labels)
    assert batch.supervised == int((batch.targets != -100).sum())
    assert Batch(batch.input_ids, ends, None, NOTHING, NOTHING).supervised == 0


def test_samples_of_different_scales_are_not_joined():
    def windows(dtype: torch.dtype) -> Batch:
        pcm, ends = torch.ones(1, 321, dtype=dtype), torch.tensor([0, 2], dtype=torch.int32)
        return Batch(torch.arange(2), ends, pcm, torch.tensor([321]), torch.tensor([1]))

    with pytest.raises(ValueError, match=r"torch\.int16 and torch\.float32 samples cannot be joined"):
        join(windows(torch.int16), windows(torch.float32))
    assert join(windows(torch.int16), windows(torch.int16)).pcm.dtype == torch.int16
