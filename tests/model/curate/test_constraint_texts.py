"""Forms of answers: every way to ask for one can be read back and kept, alone and with each that it goes with."""

from itertools import combinations, product

import pytest

from afn_model.curate.constraint_texts import (
    ENDS,
    FORMS,
    KEYS,
    LEAST,
    MOST,
    STARTS,
    TIMES,
    allowed,
    content,
    demands,
    phrased,
    together,
    words_to_use,
)
from afn_model.curate.refusals import stands
from afn_model.curate.stand_ins.rules.safety import shaped, specs_in
from afn_model.scoring.constraints import CONSTRAINTS, obeys
from afn_model.scoring.rewards import check

CAPTIONS = ["A man speaks, then a bell is heard.", 'A woman laughs loudly. The words are "seven yes".']
# All that a form may be asked for with.
FIELDS = {
    "starts": [{"text": text} for text in STARTS],
    "ends": [{"text": text} for text in ENDS],
    "contains": [{"text": text} for text in ("bell", "woman")],
    "repeat": [{"text": "laughs", "times": times} for times in TIMES],
    "exact": [{"exact": count} for count in (LEAST, MOST)],
    "most": [{"max": count} for count in (LEAST, MOST)],
    "least": [{"min": count} for count in (LEAST, MOST)],
    "keys": [{"keys": list(keys)} for keys in KEYS],
}


def specs_of(form):
    return [{"name": FORMS[form].name, **fields} for fields in FIELDS.get(form, [{}])]


def test_every_constraint_has_a_form_with_several_phrasings():
    assert {one.name for one in FORMS.values()} == set(CONSTRAINTS)
    assert all(len(set(one.phrasings)) > 1 for one in FORMS.values())


@pytest.mark.parametrize("form", FORMS)
def test_each_phrasing_says_its_constraint_and_an_answer_of_the_captions_keeps_it(form):
    for spec in specs_of(form):
        check([{"kind": "constraint", **spec}])
        for phrasing in FORMS[form].phrasings:
            assert specs_in(phrased(phrasing, spec)) == [spec]
        answer = shaped(" ".join(CAPTIONS), [spec])
        assert obeys(answer, spec), answer
        assert stands(content(answer, [spec]), CAPTIONS, 10.0), answer


def test_an_answer_keeps_any_two_forms_that_go_together():
    pairs = [pair for pair in combinations(FORMS, 2) if together(*pair)]
    assert len(pairs) == 55 - 4 - 1 - 12  # of one constraint; capitals with none; JSON with what is no JSON
    for one, other in pairs:
        for specs in product(specs_of(one), specs_of(other)):
            answer = shaped(" ".join(CAPTIONS), specs)
            assert [obeys(answer, spec) for spec in specs] == [True, True], (answer, specs)
            assert stands(content(answer, specs), CAPTIONS, 10.0), answer


@pytest.mark.parametrize("pair", [("upper", "lower"), ("keys", "upper"), ("json", "starts"), ("most", "exact")])
def test_forms_that_do_not_go_together(pair):
    assert not together(*pair)
    assert not together(*pair[::-1])
    assert not together(pair[0], pair[0])


def test_demands_depend_on_the_subject_alone_and_have_every_form():
    seen, twos = set(), 0
    for number in range(200):
        found = demands(f"clip {number}", CAPTIONS, "en", 0.5)
        assert found == demands(f"clip {number}", CAPTIONS, "en", 0.5)
        seen |= {one.form for one in found}
        twos += len(found) == 2
        if len(found) == 2:
            assert together(found[0].form, found[1].form)
        assert [one.spec for one in sorted(found, key=lambda one: list(FORMS).index(one.form))] == specs_in(
            " ".join(one.text for one in found)
        )
        assert len({one.spec.get("text") for one in found if one.spec["name"] in ("contains", "repeat")}) == sum(
            one.spec["name"] in ("contains", "repeat") for one in found
        )
    assert seen == set(FORMS)
    assert 70 < twos < 130
    assert {len(demands(f"clip {n}", CAPTIONS, "en", 0.0)) for n in range(50)} == {1}


@pytest.mark.parametrize(
    ("language", "lacks"),
    [
        ("en", set()),
        ("en-GB", set()),
        ("de", {"starts", "ends"}),
        ("ar", {"starts", "ends", "upper", "lower"}),
        ("ja", set(FORMS) - {"json", "keys"}),
        ("zh_TW", set(FORMS) - {"json", "keys"}),
        ("", set(FORMS) - {"json", "keys"}),
        ("unsure", set(FORMS) - {"json", "keys"}),
    ],
)
def test_a_language_is_not_asked_for_what_its_writing_lacks(language, lacks):
    assert {form for form in FORMS if not allowed(form, language)} == lacks
    chosen = {one.form for number in range(100) for one in demands(str(number), CAPTIONS, language, 1.0)}
    assert not chosen & lacks


def test_captions_that_name_nothing_ask_for_no_word():
    texts = ["There it is, and then once more.", "An answer."]  # what other demands say is no word to ask for
    assert words_to_use(texts) == []
    forms = {one.form for number in range(100) for one in demands(str(number), texts, "en", 1.0)}
    assert forms == set(FORMS) - {"contains", "repeat"}
    one_word = {one.form for number in range(100) for one in demands(str(number), ["A bell."], "en", 1.0)}
    assert {"contains", "repeat"} <= one_word


@pytest.mark.parametrize(
    ("answer", "spec", "left"),
    [
        ("Answer: a bell.", {"name": "starts", "text": "Answer:"}, "a bell."),
        ("A bell. That is all.", {"name": "ends", "text": "That is all."}, "a bell."),
        ('```json\n{"a": "A bell", "b": ["Rain."], "c": 3}\n```', {"name": "json"}, "A bell. Rain."),
        ("A BELL", {"name": "upper"}, "A BELL"),
        ("A Bell, a bell; bells.", {"name": "repeat", "text": "bell", "times": 2}, "A Bell, a ; bells."),
        ("[1, true]", {"name": "json"}, ""),
    ],
)
def test_what_an_answer_says_without_its_form(answer, spec, left):
    assert obeys(answer, spec)
    assert content(answer, [spec]) == left
