"""Quotas: never exceeded, the same whatever the order, and hardly moved by recordings that are added."""

import random

import pytest

from afn_model.curate import identity
from afn_model.curate.stage import Context, Dropped, Kept
from afn_model.curate.stages.quotas import Quotas, hours_of


def rows(count, first=0):
    return [
        {
            "id": identity.of(n),
            "seconds": 60.0 + 37 * (n % 11),
            "language": ("en", "de", "fr")[n % 3],
            "channel": f"c{n % 8}" if n % 5 else "",
            "about": {"domain": "news" if n % 2 else "music"},
        }
        for n in range(first, first + count)
    ]


def kept(given, seed=0, **options):
    found = Quotas(**options).run(given, Context(None, seed=seed))  # type: ignore[arg-type]
    return [row for row, one in zip(given, found, strict=True) if isinstance(one, Kept)]


def ids(given):
    return {row["id"] for row in given}


def test_quotas_are_used_and_not_exceeded():
    given = rows(400)
    found = kept(given, limits={"language": {"en": 2, "*": 1.5}, "about.domain": {"music": 2}}, hours=3.5)
    hours = {name: hours_of([row for row in found if row["language"] == name]) for name in ("en", "de", "fr")}
    assert hours["en"] <= 2
    assert max(hours["de"], hours["fr"]) <= 1.5
    assert 3.3 < hours_of(found) <= 3.5
    # A quota that holds all changes nothing.
    assert len(kept(given, limits={"language": {"en": 1000}}, hours=1000)) == 400


def test_no_channel_has_more_than_its_share():
    given = rows(400)
    found = kept(given, channel_share=0.05, hours=15)
    total = hours_of(found)
    for channel in {row["channel"] for row in found if row["channel"]}:
        assert hours_of([row for row in found if row["channel"] == channel]) <= 0.05 * total * (1 + 1e-6)
    assert total > 3
    alone = [row for row in given if not row["channel"]]
    assert len([row for row in kept(given, channel_share=0.05) if not row["channel"]]) == len(alone)
    with pytest.raises(ValueError, match="of what 1 channels have"):
        kept([{**row, "channel": "one"} for row in given], channel_share=0.5)


def test_order_does_not_matter_and_more_rows_shuffle_nothing():
    given, options = rows(300), {"limits": {"language": {"*": 3}}, "hours": 8}
    before = kept(given, **options)
    mixed = list(given)
    random.Random(0).shuffle(mixed)
    assert ids(kept(mixed, **options)) == ids(before)
    assert ids(kept(given, seed=1, **options)) != ids(before)
    limits = {"limits": options["limits"]}
    before, after = kept(given, **limits), kept([*given, *rows(60, 300)], **limits)
    # What was left out stays out; of what was kept only the end of the order makes room.
    assert ids(after) & ids(given) <= ids(before)
    assert 0 < len(ids(before) - ids(after)) < 0.35 * len(before)


def test_reasons_and_parameters():
    found = Quotas(hours=0.02).run(rows(3), Context(None))  # type: ignore[arg-type]
    assert any(one == Dropped("quota of hours") for one in found)
    assert Quotas(limits={"about.domain": {"*": 1}}).reads == ("seconds", "channel", "about")
    for wrong in ({"limits": 3}, {"limits": {"language": {"en": 0}}}, {"hours": -1}, {"channel_share": 0}):
        with pytest.raises(ValueError, match=r"limits|hours|channel_share"):
            Quotas(**wrong)
