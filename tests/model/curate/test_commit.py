"""Outcomes on disk: torn checkpoints, two outcomes of one row, what counts say."""

import pytest

from afn_model.curate.commit import ShardOutcomes, counts, line_of
from afn_model.curate.stage import Dropped, Failed, Kept


def test_a_torn_checkpoint_loses_its_line_alone(tmp_path):
    store = ShardOutcomes(tmp_path, "a")
    lines = [line_of(row_id, "o", Kept({"x": "é\udcff"})) for row_id in ("1", "2", "3")]
    store.append(lines[:2])
    store.part.write_bytes(store.part.read_bytes()[:-9])
    assert list(store.known()) == ["1"]
    store.append(lines[2:])
    assert store.known() == {"1": lines[0], "3": lines[2]}
    store.append([line_of("1", "new", Dropped("x"))])
    assert store.known()["1"]["of"] == "new", "the later one counts"


def test_a_commit_is_sorted_and_whole(tmp_path):
    store = ShardOutcomes(tmp_path / "deep", "a")
    assert store.claims() is None
    assert store.known() == {}
    store.append([line_of("9", "o", Kept({}))])
    lines = [line_of("2", "o", Kept({"x": 1}, {"n": 2})), line_of("1", "o", Failed("e", True))]
    told = store.commit(lines, inputs={}, stage="s")
    assert list(store.lines()) == lines[::-1]
    assert store.manifest() == told
    assert not store.part.exists()
    assert (told["rows"], told["kept"], told["failed"], told["retryable"], told["tally"]) == (2, 1, 1, 1, {"n": 2})
    with pytest.raises(ValueError, match="two outcomes of one row, 2"):
        store.commit([lines[0], lines[0]], inputs={})
    assert store.manifest() == told


def test_a_row_without_an_outcome_or_with_two_is_not_counted():
    for line in ({"id": "1", "of": "o"}, {"id": "1", "of": "o", "fields": {}, "failed": {"error": ""}}):
        with pytest.raises(ValueError, match="1 rows have"):
            counts([line])
