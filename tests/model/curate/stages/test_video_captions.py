"""Captions of what is seen: only where pictures are."""

import numpy as np
import pytest

from afn_model.curate.stages.video_captions import VideoCaptions
from tests.model.curate.stages.heard import context, row


def frames(row, start, end, out):
    (out / "frames").mkdir(exist_ok=True)
    np.full(8, int(start), np.uint8).tofile(out / "frames" / f"{start}.jpg")
    return [f"frames/{start}.jpg"] if start < 20 else []


def sees(requests):
    return [f"Picture {open(one.messages[0]['content'][0]['image']['path'], 'rb').read(1)[0]}." for one in requests]


def test_segments_with_pictures(tmp_path):
    one = row(tmp_path)
    (kept,) = VideoCaptions(frames=f"{__name__}:frames").run(
        [one], context(tmp_path, ("watcher",), call=f"{__name__}:sees")
    )
    assert [(entry["segment"], entry["text"]) for entry in kept.fields["seen"]] == [
        (one["segments"][0]["id"], "Picture 0."),
        (one["segments"][1]["id"], "Picture 10."),
    ]
    assert kept.tally == {"segments without pictures": 1, "video captions": 2}


def test_without_pictures_there_is_no_stage():
    with pytest.raises(ValueError, match="frames '' is no module:function"):
        VideoCaptions()
