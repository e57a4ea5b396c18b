"""Quotas of clips: never exceeded, a clip of as many recordings as there is room for, and no reshuffling."""

import random

import pytest

from afn_model.curate import identity
from afn_model.curate.stage import Context
from afn_model.curate.stages.clip_quotas import ClipQuotas


def rows(count, first=0):
    return [
        {
            "id": identity.of(n),
            "channel": "" if n % 7 == 0 else f"c{n % 3}",
            "clips": [{"id": identity.of(n, at), "score": (n + 3 * at) % 5} for at in range(n % 6)],
        }
        for n in range(first, first + count)
    ]


def mined(given, most, seed=0):
    found = ClipQuotas(clips=most).run(given, Context(None, seed=seed))  # type: ignore[arg-type]
    return {row["id"]: one.fields["mined"] for row, one in zip(given, found, strict=True)}


def ids(found):
    return {clip["id"] for clips in found.values() for clip in clips}


def test_a_channel_has_no_more_and_its_recordings_keep_their_best():
    given = rows(90)
    found = mined(given, 40)
    for channel in ("c0", "c1", "c2"):
        own = [row for row in given if row["channel"] == channel]
        assert sum(len(found[row["id"]]) for row in own) == min(40, sum(len(row["clips"]) for row in own))
        for row in own:  # there is room for a clip of each
            assert bool(found[row["id"]]) == bool(row["clips"])
            top = max((clip["score"] for clip in row["clips"]), default=None)
            assert not row["clips"] or top in [clip["score"] for clip in found[row["id"]]]
    alone = [row for row in given if not row["channel"]]
    assert all(found[row["id"]] == row["clips"] for row in alone)  # each is a channel of its own
    assert mined(given, 1000) == {row["id"]: row["clips"] for row in given}
    assert [len(clips) for clips in mined(rows(1, 4), 1).values()] == [1]


def test_order_does_not_matter_and_a_recording_more_shuffles_nothing():
    given = rows(90)
    before = mined(given, 40)
    mixed = list(given)
    random.Random(0).shuffle(mixed)
    assert mined(mixed, 40) == before
    assert ids(mined(given, 40, seed=1)) != ids(before)
    for number in range(90, 102):
        (added,) = rows(1, number)
        after = mined([*given, added], 40)
        old = ids(after) - {clip["id"] for clip in added["clips"]}
        assert old <= ids(before)  # what was left out stays out
        assert len(ids(before)) - len(old) <= len(after[added["id"]])  # and what goes makes room


def test_what_is_gone_is_counted():
    (found,) = ClipQuotas(clips=2).run(rows(1, 5), Context(None))  # type: ignore[arg-type]
    assert found.tally == {"clips": 2, "clips beyond the quota of the channel": 3}
    with pytest.raises(ValueError, match="clips"):
        ClipQuotas(clips=0)
