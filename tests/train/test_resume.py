"""Runs in processes of their own that are killed: a short form of ``bench.resume``."""

import pytest

from bench.resume import STEPS, killed, other_ranks, prepare, rank_killed, undisturbed


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("resume")
    prepare(folder, width=128)
    return folder


@pytest.fixture(scope="module")
def reference(folder):
    return undisturbed(folder)


def test_sigkill_changes_no_bit(folder, reference):
    rows = killed(folder, reference, kills=2)
    assert [row["moment"] for row in rows] == ["between", "while a checkpoint is written"]


def test_one_rank_then_two_then_four(folder, reference):
    assert other_ranks(folder, reference)["worst_relative_error_of_loss"] < 1e-5


def test_one_of_two_ranks_is_killed(folder):
    found = rank_killed(folder)
    assert found["seconds_until_all_stopped"] < 30
    assert found["went_on_from_a_checkpoint"]
    assert found["steps"] == STEPS
