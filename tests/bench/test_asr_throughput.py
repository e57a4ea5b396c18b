"""The throughput benchmark of ASR: both trainers compute the same, on every recording once; what is written of it."""

import math
from dataclasses import replace

import pytest

from bench import asr_throughput
from bench.asr_throughput import PairBase, PairShape, TrainedTurn

pytest.importorskip("transformers", reason="transformers is a test dependency")
TINY = PairShape(width=32, layers=1, heads=2, vocabulary=400, spread=0.3)


def test_losses_of_both_trainers_are_the_same_where_nothing_is_padded(tmp_path):
    """The first by weights and inputs, the later ones by gradients and the optimiser."""
    mine, theirs = asr_throughput.losses_on_equal_lengths(tmp_path, TINY, count=2, steps=3)
    assert len(mine) == len(theirs) == 3
    assert mine == pytest.approx(theirs, rel=1e-4)
    assert mine[2] < mine[1] < mine[0]
    assert abs(mine[0] - math.log(TINY.vocabulary)) > 0.5  # a guess would be the same in both


def test_ragged_recordings_are_packed_once_each_in_as_many_steps(tmp_path):
    base = PairBase(tmp_path, [0.5, 1.5, 1.0, 0.7, 0.9, 1.2], TINY)
    assert base.positions == 100
    turn = asr_throughput.ours(base, batch=2, epochs=1)
    assert len(turn.losses) == 3
    assert turn.tokens == sum(base.tokens)
    assert turn.seconds > 0 < turn.cpu


def test_a_run_that_did_not_train_has_no_time():
    for losses, tokens in (([2.0, math.nan], 5), ([2.0, 2.0], 5), ([2.0, 1.0], 4)):
        with pytest.raises(RuntimeError, match="ours"):
            asr_throughput.learnt("ours", TrainedTurn(1.0, 1.0, losses, tokens, None), 5)


@pytest.mark.slow
def test_a_comparison_end_to_end(monkeypatch):
    small = {"RECORDINGS": 24, "BATCH": 4, "LONGEST": 2.5, "SHORTEST": 0.5, "MEDIAN": 1.0, "RATE": 5e-3}
    for name, value in small.items():
        monkeypatch.setattr(asr_throughput, name, value)
    record = asr_throughput.measure(1, "cpu", replace(TINY, spread=0.02))
    mine, theirs = record["ours"], record["transformers"]
    assert mine["steps"] == theirs["steps"] == 6
    assert record["ratio"] == pytest.approx(theirs["seconds"] / mine["seconds"], abs=0.01)
    assert record["ratio_of_cpu"] == pytest.approx(theirs["cpu_seconds"] / mine["cpu_seconds"], abs=0.01)
    assert mine["audio_s_per_s"] == pytest.approx(record["audio_seconds"] / mine["seconds"], rel=0.02)
    assert mine["tokens_per_s"] == pytest.approx(record["tokens"] / mine["seconds"], rel=0.02)
    assert 0 < record["padded"] < 1
    text = asr_throughput.table(record)
    assert f"**{record['ratio']:.2f} times**" in text
    assert text.count("| ours |") == text.count("| transformers |") == 1
