"""Clips: the best that may be taken together, by trying all; the ends, and recordings that have too little."""

import random

import pytest

from afn_model.curate import identity
from afn_model.curate.stage import Context, Failed
from afn_model.curate.stages.mine import Mine


def recording(lengths, scores, captions=None):
    """A row of segments of such lengths; None is no score. All have captions, or those of ``captions``."""
    ends = [sum(lengths[: at + 1]) for at in range(len(lengths))]
    segments = [
        {"id": f"s{at}", "start": end - length, "end": end}
        for at, (end, length) in enumerate(zip(ends, lengths, strict=True))
    ]
    wanted = range(len(lengths)) if captions is None else captions
    return {
        "segments": segments,
        "merged": [{"segment": f"s{at}", "text": "Bells."} for at in wanted],
        "scores": [{"segment": f"s{at}", "score": one} for at, one in enumerate(scores) if one is not None],
        "source_id": "source",
        "seconds": float(ends[-1]),
    }


def mined(given, **options):
    (found,) = Mine(**options).run([given], Context(None))  # type: ignore[arg-type]
    return found


def places(given, **options):
    return [(one["start"], one["end"]) for one in mined(given, **options).fields["clips"]]


def worth(row, start, end, price):
    known = {one["segment"]: one["score"] for one in row["scores"]}
    inside = [one for one in row["segments"] if start <= one["start"] and one["end"] <= end]
    return sum((one["end"] - one["start"]) * (known.get(one["id"], 0) - price) for one in inside)


def most(row, offers, price, limit):
    """What the best windows are worth together, by trying all."""

    def rest(first, taken, total):
        found = total
        for at in range(first, len(offers) if len(taken) < limit else 0):
            start, end = offers[at]
            common = [(min(end, b) - max(start, a), min(end - start, b - a)) for a, b in taken]
            if all(2 * shared <= shorter for shared, shorter in common):
                found = max(found, rest(at + 1, [*taken, offers[at]], total + worth(row, start, end, price)))
        return found

    return rest(0, [], 0)


def test_no_other_choice_is_worth_more():
    rng, several = random.Random(0), 0
    for _ in range(100):
        lengths = [10] * rng.randint(1, 5) + [rng.choice((2, 5, 9, 10, 12))]
        scores = [rng.choice((None, 0, *range(11))) for _ in lengths]
        captions = [at for at in range(len(lengths)) if rng.random() < 0.8] or [0]
        row, price, hourly = recording(lengths, scores, captions), rng.choice((0, 3, 6)), rng.choice((100, 360))
        clips = mined(row, price=price, hourly=hourly).fields["clips"]
        limit = max(1, int(hourly * row["seconds"] / 3600))
        edges = [one["start"] for one in row["segments"]] + [row["seconds"]]
        offers = [(a, b) for a in edges for b in edges if 10 <= b - a <= 30]
        offers = [(a, b) for a, b in offers if any(a <= edges[at] < b for at in captions)]
        taken = [(one["start"], one["end"]) for one in clips]
        assert 1 <= len(taken) <= limit
        assert set(taken) <= set(offers)
        assert taken == sorted(set(taken))
        for at, (start, end) in enumerate(taken):
            for a, b in taken[:at]:
                assert 2 * (min(end, b) - max(start, a)) <= min(end - start, b - a)
        total = sum(worth(row, *one, price) for one in taken)
        expected = most(row, [one for one in offers if worth(row, *one, price) > 0], price, limit)
        assert total == (expected or max(worth(row, *one, price) for one in offers))
        several += len(taken) > 1
    assert several > 20


def test_clips_at_both_ends_and_how_they_are_written():
    row = recording([10] * 5 + [4], [9, 0, 0, 0, 8, 8])
    found = mined(row, hourly=360)
    assert [(one["start"], one["end"]) for one in found.fields["clips"]] == [(0, 10), (40, 54)]
    first, last = found.fields["clips"]
    assert first["id"] == identity.segment_id("source", 0, 10)
    assert (last["segments"], last["score"]) == (["s4", "s5"], 8.0)
    assert found.tally == {"clips": 2, "seconds of clips": 24}
    assert places(row, hourly=1) == [(40, 54)]  # no more than one of less than an hour


@pytest.mark.parametrize(
    ("lengths", "scores", "captions", "expected"),
    [
        pytest.param([7.5], [2], None, [(0, 7.5)], id="short"),
        pytest.param([0.0], [None], None, [(0, 0)], id="nothing to hear"),
        pytest.param([11.5], [None], None, [(0, 11.5)], id="one segment without a score"),
        pytest.param([10, 10, 10], [0, 0, 0], None, [(0, 10)], id="zeros"),
        pytest.param([10, 10, 10], [None] * 3, [2], [(20, 30)], id="where the caption is"),
        pytest.param([10, 10, 10], [9, None, 9], None, [(0, 10), (20, 30)], id="none counts as zero"),
        pytest.param([10, 10, 10], [9, None, 9], [], [], id="no caption"),
    ],
)
def test_recordings_with_too_little(lengths, scores, captions, expected):
    assert places(recording(lengths, scores, captions), hourly=360, price=5.0) == expected


def test_segments_that_make_no_clip():
    assert mined(recording([40], [5])) == Failed("no run of segments is from 10 to 30 s long")
    apart = recording([10, 10, 10], [5, 5, 5])
    del apart["segments"][1]  # the others are not adjacent
    assert places(apart, hourly=360) == [(0, 10), (20, 30)]
    for wrong in ({"least": 0}, {"least": 20, "most": 10}, {"hourly": 0}, {"hourly": 1000}, {"price": "x"}):
        with pytest.raises(ValueError, match=r"least|hourly|price"):
            Mine(**wrong)
