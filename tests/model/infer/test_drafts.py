"""Where an answer goes on in a text that exists already; that drafts change no token: test_engine.py."""

import pytest

from afn_model.infer.drafts import MOST, SUFFIX, AnswerDraft

TEXT = [10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 12, 13, 20, 21]


def grown(draft, tokens):
    """What is proposed after each token."""
    found = []
    for end in range(1, len(tokens) + 1):
        draft.grown(tokens[:end])
        found.append(draft.propose())
    return found


def test_an_answer_that_is_the_text():
    draft = AnswerDraft(TEXT)
    assert draft.propose() == TEXT[:MOST]
    assert grown(draft, TEXT) == [TEXT[end : end + MOST] for end in range(1, len(TEXT) + 1)]
    assert draft.propose() == []


def test_after_another_token_it_goes_on_behind_the_longest_equal_run():
    draft = AnswerDraft(TEXT, most=2)
    assert grown(draft, [10, 99, 13, 14])[1:] == [[], [14, 15], [15, 16]]
    # 12 13 stands twice: the run of what is before it decides, else the first one behind where the answer was.
    assert AnswerDraft(TEXT, 2).place([19, 12, 13]) == 12
    assert AnswerDraft(TEXT, 2).place([12, 13]) == 4
    later = AnswerDraft(TEXT, 2)
    later.at = 8
    assert later.place([12, 13]) == 12
    assert AnswerDraft(TEXT).place([77]) is None


def test_a_run_counts_up_to_its_limit():
    """Of two places behind equally long runs, as far as they are compared, the first one is taken."""
    run = list(range(100, 100 + SUFFIX))
    draft = AnswerDraft([1, *run, 2, *run, 3])
    assert draft.place([2, *run]) == 1 + SUFFIX


@pytest.mark.parametrize("most", [0, MOST + 1])
def test_as_many_as_are_verified_together(most):
    with pytest.raises(ValueError, match=f"1 to {MOST} tokens at a time, not {most}"):
        AnswerDraft(TEXT, most)
