"""Captions of sounds."""

import pytest

from tests.model.eval.loaders.written import loaded, put

CLOTHO = (
    "file_name,caption_1,caption_2,caption_3,caption_4,caption_5\r\n"
    '"a, b.wav",One.,"Two, too.","""Three""",Four,Five \r\n'
)
AUDIOCAPS = (
    "audiocap_id,youtube_id,start_time,caption\n7,-bcdefghij1,30,A dog\n8,Ybcdefghij2,0,Rain\n9,-bcdefghij1,30,A bark\n"
)


def test_clotho_has_five_captions_for_each_recording(tmp_path):
    here = put(tmp_path / "clotho-captions" / "evaluation" / "a, b.wav")
    (item,) = loaded("clotho-captions", tmp_path, captions=CLOTHO)
    assert item.references == ("One.", "Two, too.", '"Three"', "Four", "Five")
    assert (item.id, item.question, item.answer, item.clips[0].path) == ("a, b.wav", "", None, here)


def test_captions_and_entailment_share_the_folder_of_their_recordings(tmp_path):
    put(tmp_path / "clotho" / "evaluation" / "a, b.wav")
    (tmp_path / "clotho" / "clotho_captions_evaluation.csv").write_text(CLOTHO)
    assert len(loaded("clotho-captions", tmp_path)) == 1
    with pytest.raises(ValueError, match=r"clotho: no clotho_entailment_evaluation.csv in it"):
        loaded("clotho-entailment", tmp_path)


def test_audiocaps_gathers_the_captions_of_a_recording_from_rows_that_are_apart(tmp_path):
    here = put(tmp_path / "audiocaps-captions" / "test" / "Y-bcdefghij1.wav")
    numbered = put(tmp_path / "audiocaps-captions" / "8.wav")
    items = loaded("audiocaps-captions", tmp_path, captions=AUDIOCAPS)
    assert [(item.id, item.references) for item in items] == [
        ("-bcdefghij1_30", ("A dog", "A bark")),
        ("Ybcdefghij2_0", ("Rain",)),
    ]
    assert [item.clips[0].path for item in items] == [here, numbered]
    assert items[0].extra["audiocap_ids"] == ("7", "9")
    assert (items[0].extra["youtube_id"], items[0].extra["start_time"]) == ("-bcdefghij1", "30")


def test_a_table_of_another_form_or_encoding_is_named(tmp_path):
    with pytest.raises(ValueError, match="row 1: no field 'caption_5'"):
        loaded("clotho-captions", tmp_path, captions=CLOTHO.replace("caption_5", "caption"))
    with pytest.raises(ValueError, match=r"evaluation\.csv: 'utf-8' codec can't decode"):
        loaded("clotho-captions", tmp_path, captions=CLOTHO.replace("One", "Öne").encode("latin-1"))
