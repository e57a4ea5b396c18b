"""A sample of the damaged recordings; python -m bench.fuzz_audio damages 500."""

import pytest

from bench import fuzz_audio

FILES = 63


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_damaged_files_never_crash_hang_or_give_silence():
    record = fuzz_audio.measure(1, "cpu", files=FILES)
    assert record["files"] == FILES
    assert len(record["outcomes"]) == 9
    outcomes = [outcome for counts in record["outcomes"].values() for outcome in counts.items()]
    assert sum(count for name, count in outcomes if name == "refused") > FILES // 5
    assert sum(count for name, count in outcomes if name != "refused") > FILES // 5


def test_what_must_not_be_is_noticed(monkeypatch):
    import torch

    from afn_model.audio import decode

    for pcm, problem in (
        (torch.zeros(9_000), "silence"),
        (torch.full((9_000,), torch.nan), "finite"),
        (torch.ones(9_000), "whole"),
    ):
        monkeypatch.setattr(decode, "load_audio", lambda data, pcm=pcm: pcm)
        with pytest.raises(AssertionError, match=problem):
            fuzz_audio.examine("truncated", b"", {})


def test_damage_is_a_function_of_the_seed():
    import numpy as np

    data = bytes(range(256)) * 10
    first, again, other = (fuzz_audio.damaged(data, np.random.default_rng((0, n))) for n in (1, 1, 2))
    assert first == again != other
