"""Splits: a share of the values of a field, whose rows stay together."""

import pytest

from afn_model.curate.splits import check_heldout, split_of


def test_a_share_is_held_out_and_equal_values_stay_together():
    rows = [{"source_id": f"s{n}", "cluster": f"c{n // 2}" if n % 10 else ""} for n in range(1000)]
    share = sum(split_of(row, heldout=0.25) == "heldout" for row in rows) / len(rows)
    assert abs(share - 0.25) < 0.07  # five deviations
    held = [{one["source_id"] for one in rows if split_of(one, heldout=part) == "heldout"} for part in (0.0, 0.1, 0.25)]
    assert not held[0]
    assert held[1] < held[2]
    together = [(split_of(rows[n], "cluster", 0.5), split_of(rows[n + 1], "cluster", 0.5)) for n in (2, 4, 6, 12)]
    assert all(one == other for one, other in together)
    assert len(set(together)) == 2
    assert split_of(rows[0], "cluster", 0.5) == split_of(rows[0], "source_id", 0.5)  # no value of its own
    with pytest.raises(ValueError, match="heldout is from 0 up to below 1, got 1"):
        check_heldout(1)
