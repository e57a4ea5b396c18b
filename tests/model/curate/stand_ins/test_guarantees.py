"""What is checked of a finished run."""

from pathlib import Path

import pytest

from afn_model.curate.stand_ins.guarantees import AXES, CheckedPromise, FinishedRun, edits, products, table


def _record(axis: str, task: str = "t", **more):
    said = [{"role": "user", "content": "<sound>\nWhat?"}, {"role": "assistant", "content": "That."}]
    return {
        "axis": axis,
        "task": task,
        "audios": [{"path": "a.flac", "start": 0.0, "end": 1.0}],
        "messages": said,
    } | more


def _finished(records):
    run = FinishedRun(Path("none"), Path("none"))
    run.records = records
    return run


WHOLE = [
    *(_record(axis) for axis in AXES),
    _record("safety", "refusal", truth={"category": "violence"}),
    _record("safety", "benign_twin", truth={"category": "violence"}),
]


def test_records_of_every_axis_and_each_refusal_with_its_twin():
    found = products(_finished(WHOLE))
    assert (found.holds, found.checked) == (
        True,
        "long 1, skills 1, talkers 1, multi_audio 1, multi_turn 1, safety 3, cot 1; 0 of 9 refused as records; "
        "1 refusals and 1 benign twins",
    )


@pytest.mark.parametrize(
    "records",
    [
        WHOLE[1:],
        WHOLE[:-1],
        [*WHOLE[:-1], WHOLE[-1] | {"truth": {"category": "weapons"}}],
        [*WHOLE, _record("long", messages=[])],
        WHOLE[:-2],
    ],
    ids=["no long", "no twin", "twin of another", "no messages", "no refusals"],
)
def test_what_is_missing_among_records(records):
    assert products(_finished(records)).holds is False


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
