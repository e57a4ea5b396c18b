"""The bank of words: who speaks, and that every process hears the same."""

import numpy as np
import pytest

from afn_model.world.words import (
    MORE_WORDS,
    PITCHES,
    RATES,
    SPLITS,
    VARIANTS,
    WORDS,
    build_bank,
    load_bank,
    speakers,
)

pytest.importorskip("espeakng_loader")


def test_no_speaker_of_training_is_held_out():
    assert SPLITS == ("train", "heldout")
    for table in (VARIANTS, RATES, PITCHES):
        assert not set(table["train"]) & set(table["heldout"])
    for language in MORE_WORDS:
        assert not set(speakers("train", language)) & set(speakers("heldout", language))


def test_a_bank_is_the_same_in_every_process_and_more_words_leave_the_first_as_they_are():
    few, all_words = build_bank("heldout", words=WORDS), load_bank("heldout")
    assert set(few) < set(all_words)
    for key, said in few.items():
        assert all(np.array_equal(a, b) for a, b in zip(said, all_words[key], strict=True))
    assert all(np.abs(pcm).max() == round(0.9 * 32767) for said in all_words.values() for pcm in said)
    assert load_bank("heldout") is all_words
