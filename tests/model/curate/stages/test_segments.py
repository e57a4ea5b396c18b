"""Segments: a grid, its last part, spans, ids, and cuts where it is quiet."""

from __future__ import annotations

import numpy as np
import pytest
import soundfile

from afn_model.curate.identity import segment_id
from afn_model.curate.stage import Context
from afn_model.curate.stages.segments import Segments

pytest.importorskip("blake3")
SPANS = [{"kind": "speech", "start": 3.0, "end": 21.5}, {"kind": "music", "start": 9.0, "end": 10.0}]


def divided(stage: Segments, seconds: float, out=None) -> list[dict]:
    row = {"id": "a", "file": "a.wav", "source_id": "s", "seconds": seconds, "spans": SPANS}
    (kept,) = stage.run([row], Context(out))  # pyright: ignore[reportArgumentType]
    assert kept.tally == {"segments": len(kept.fields["segments"])}  # pyright: ignore[reportAttributeAccessIssue]
    return kept.fields["segments"]  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize(
    ("seconds", "ends"),
    [(25.0, [10, 20, 25]), (21.999, [10, 21.999]), (22.0, [10, 20, 22]), (20.0, [10, 20]), (1.5, [1.5]), (0.0, [0])],
)
def test_the_last_one_has_two_seconds(seconds, ends):
    found = divided(Segments(), seconds)
    assert [one["end"] for one in found] == ends
    assert [one["start"] for one in found] == [0, *ends[:-1]]


def test_spans_are_cut_off_and_ids_are_of_content():
    first, second, third = divided(Segments(), 25.0)
    assert first["spans"] == [{**SPANS[0], "end": 10.0}, SPANS[1]]
    assert second["spans"] == [{**SPANS[0], "start": 10.0, "end": 20.0}]
    assert third["spans"] == [{**SPANS[0], "start": 20.0}]
    assert first["id"] == segment_id("s", 0, 10)
    assert len({first["id"], second["id"], third["id"]}) == 3


def test_cuts_where_it_is_quiet(tmp_path):
    pcm = 0.1 * np.random.default_rng(0).standard_normal(25 * 16_000)
    for at in (8.6, 17.5):
        pcm[int(at * 16_000) :][:1600] = 0
    soundfile.write(tmp_path / "a.wav", pcm, 16_000)
    found = divided(Segments(cut="quiet"), 25.0, tmp_path)
    assert [one["end"] for one in found] == pytest.approx([8.65, 17.55, 25.0])
    assert [one["start"] for one in found] == [0.0, *(one["end"] for one in found[:-1])]


def test_parameters():
    for wrong in ({"seconds": 0.1}, {"least": 11.0}, {"cut": "anywhere"}):
        with pytest.raises(ValueError):
            Segments(**wrong)
