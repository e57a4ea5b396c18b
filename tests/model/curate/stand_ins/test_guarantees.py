"""What is checked of a finished run."""

from afn_model.curate.stand_ins.guarantees import CheckedPromise, edits, table


def test_edits_are_words_that_are_wrong_left_out_or_put_in():
    true = ["the", "old", "harbour", "is", "quiet"]
    assert edits(true, true) == 0
    assert edits(true, ["the", "old", "harbour", "was", "quiet"]) == 1
    assert edits(true, ["old", "harbour", "is", "very", "quiet"]) == 2
    assert edits(true, []) == 5
    assert edits([], true) == 5


def test_a_table_says_what_holds():
    found = table(
        [
            CheckedPromise("one", "3 of 3", True),
            CheckedPromise("two", "1 of 3", False),
            CheckedPromise("three", "-", None),
        ]
    )
    assert found.splitlines()[2:] == [
        "| one | 3 of 3 | holds |",
        "| two | 1 of 3 | **does not hold** |",
        "| three | - | not checked |",
    ]
