import pytest

from afn_model.curate.stage import Context, Dropped, Kept
from afn_model.curate.stages.near_texts import NearTexts

pytest.importorskip("datasketch")

TALK = (
    "we walk along the river and count the boats that pass under the bridge before the rain begins to fall on us " * 2
)


def rows(*texts):
    uses = {"train": True, "annotations": True, "audio": True}
    told = {"uses": uses, "rate": 16_000, "seconds": 1.0}
    return [told | {"id": f"{place}", "transcript": text} for place, text in enumerate(texts)]


def test_the_same_text_stays_once(tmp_path):
    words = TALK.split()
    again = [{"text": " ".join(words[:20]).upper()}, {"text": " ".join(words[20:-1]) + ", sea!"}]
    other = " ".join(words[::-1])
    found = NearTexts().run(rows(TALK, again, other, "too short", "too short", None), Context(tmp_path))
    assert [isinstance(one, Dropped) for one in found] == [False, True, False, False, False, False]
    assert found[1].reason == "near duplicate text"
    assert found[1].detail.endswith("like that of 0")
    assert found[0] == Kept({"text_cluster": "0"})
    given = rows(TALK, again)
    given[1]["uses"] = given[1]["uses"] | {"audio": True}
    given[1]["rate"] = 48_000  # is preferred
    assert isinstance(NearTexts().run(given, Context(tmp_path))[0], Dropped)


def test_it_reads_the_fields_that_it_is_told():
    assert NearTexts(texts=("captions",)).reads == ("uses", "rate", "seconds", "captions")
    with pytest.raises(ValueError, match="words"):
        NearTexts(words=4)
