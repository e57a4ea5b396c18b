"""The cache of replies: records that stay, other divisions into shards, files that are none."""

import pytest

from afn_model.curate.reply_cache import ReplyCache


def test_records_stay(tmp_path):
    cache = ReplyCache(tmp_path / "a" / "00000-of-00002.sqlite")
    assert cache.get("1") is None
    for attempts in (1, 2):
        cache.put("1", "s", {"replies": ["é\ud800"], "error": None, "attempts": attempts})
    cache.close()
    found = ReplyCache(tmp_path / "a" / "00000-of-00002.sqlite").get("1")
    assert found is not None
    assert found["attempts"] == 2
    assert found["replies"][0].startswith("é")
    assert ReplyCache(tmp_path / "a" / "00003-of-00004.sqlite").get("1") == found
    assert ReplyCache(tmp_path / "b" / "00000-of-00002.sqlite").get("1") is None


def test_another_file_is_named(tmp_path):
    (tmp_path / "x.sqlite").write_bytes(b"not a database, but long enough to be one" * 30)
    with pytest.raises(ValueError, match="move the file away"):
        ReplyCache(tmp_path / "x.sqlite")
