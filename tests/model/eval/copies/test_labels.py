"""Copies of labels, entailment and CompA-R hold what is odd about the real files."""

import pytest

from afn_model.eval.copies.labels import compa_r, entailment, gtzan, medley_solos_db, nonspeech7k
from afn_model.eval.copies.sounds import Sounds


@pytest.fixture(scope="module")
def sounds():
    return Sounds()


def test_tables_have_lists_as_text_and_other_spellings(tmp_path, sounds):
    entailment(tmp_path, sounds)
    clotho, audiocaps = (
        (tmp_path / name).read_text() for name in ("clotho_entailment_evaluation.csv", "audiocaps_entailment_test.csv")
    )
    assert clotho.count("it's near") == 5
    assert '"[' in clotho
    assert '""hall""' in clotho
    assert audiocaps.count("Audiocaps,Yaaaaaaaaa_1,") == 2
    assert "[" not in audiocaps
    nonspeech7k(tmp_path, sounds)
    table = (tmp_path / "metadata of test set.csv").read_bytes()
    assert table.startswith(b"\xef\xbb\xbfFilename,")
    assert b",yawm,0," in table
    assert table.count(b"\r\n") == 6


def test_lists_and_recordings_of_labels(tmp_path, sounds):
    gtzan(tmp_path, sounds)
    lines = (tmp_path / "test_filtered.txt").read_text().splitlines()
    assert lines[3:] == ["disco/disco.00003.wav", "hiphop.00004", ""]
    medley_solos_db(tmp_path, sounds)
    assert len(list((tmp_path / "audio").iterdir())) == 5
    compa_r(tmp_path, sounds)
    assert {path.stem for path in (tmp_path / "compa_r_test_audios").iterdir()} == {f"video{n}_10" for n in range(3)}
