"""CIDEr-D of answers: what is in the mean, what is told about it, and whose words and scores they are."""

import sys
from types import ModuleType, SimpleNamespace

import pytest

from afn_model.eval.items import AnsweredItem, Item, ItemClip
from afn_model.eval.rules.captions import cider, ptb
from afn_model.eval.score import Tools, interval
from tests.model.eval.rules.cider_golden import golden
from tests.model.eval.rules.test_cider import BUDGET

SETS = golden()["sets"]


def answers(sets):
    found = []
    for n, one in enumerate(sets):
        text, *references = one["captions"]
        group = {"half": str(n % 2)}
        found.append(
            AnsweredItem(Item(str(n), clips=(ItemClip(f"{n}.wav"),), references=tuple(references), groups=group), text)
        )
    return found


@pytest.fixture
def no_library(monkeypatch):
    for name in ("pycocoevalcap", "pycocoevalcap.tokenizer"):
        monkeypatch.setitem(sys.modules, name, None)


def test_the_mean_is_the_librarys_without_it_too(no_library):
    found = cider(answers(SETS), Tools())
    scores = [one["score"] for one in SETS]
    assert found.value == pytest.approx(sum(scores) / len(scores), rel=BUDGET)
    assert [part[0] for part in found.parts] == pytest.approx(scores, abs=BUDGET)
    assert found.groups["half: 1"] == (pytest.approx(sum(scores[1::2]) / 22, rel=BUDGET), 22)
    assert found.signature == "CIDEr-D, 0 to 10|tok:own-ptb-1|n:4|sigma:6|df:44 recordings"
    assert "pycocoevalcap is not installed" in found.notes[0]
    low, high = interval(answers(SETS), found)
    assert low < found.value < high


def test_no_output_has_nothing_and_no_reference_is_left_out(no_library):
    given = answers(SETS[:4])
    given[1] = AnsweredItem(given[1].item, None, "unreadable")
    given[2] = AnsweredItem(Item("x"), "a dog")
    found = cider(given, Tools())
    assert found.parts[1:3] == [(0.0, 1.0), None]
    assert (found.n, found.unparsed) == (3, 1)
    assert found.value == pytest.approx((found.parts[0][0] + found.parts[3][0]) / 3)
    assert found.extracted[:3] == [f"caption: {SETS[0]['captions'][0]}", "none", "caption: a dog"]
    alone = cider(given[:1], Tools())
    assert alone.value == 0
    assert "one recording alone" in alone.notes[-1]


def test_words_by_the_library_where_it_is(monkeypatch):
    pytest.importorskip("pycocoevalcap")
    theirs = cider(answers(SETS), Tools())
    assert [part[0] for part in theirs.parts] == pytest.approx([one["score"] for one in SETS], abs=BUDGET)
    assert theirs.signature.split("|")[1] == "tok:ptb-corenlp-3.4.1"
    assert theirs.notes == []
    # Characters that end a line for Java, and those that are no ASCII.
    monkeypatch.setenv("LC_ALL", "C")
    assert ptb(["a\u2028café\r\x0b b", "", "c"]) == [["a", "café", "b"], [], ["c"]]
    monkeypatch.setenv("PATH", "")
    assert cider(answers(SETS), Tools()).signature.split("|")[1] == "tok:own-ptb-1"


def test_a_tokeniser_that_fails_is_told(monkeypatch, tmp_path):
    """A program in Java's place that says one line for all, and one that fails."""
    for name in ("pycocoevalcap", "pycocoevalcap.tokenizer"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    there = SimpleNamespace(__file__=str(tmp_path / "ptbtokenizer.py"))
    there.PUNCTUATIONS = ["."]  # codespell:ignore
    monkeypatch.setattr(sys.modules["pycocoevalcap.tokenizer"], "ptbtokenizer", there, raising=False)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    java = tmp_path / "java"
    faults = [("echo one .", "1 lines for 12 captions"), ("cat; echo no room >&2; exit 1", "no room")]
    for script, problem in faults:
        java.write_text(f"#!/bin/sh\n{script}\n")
        java.chmod(0o755)
        found = cider(answers(SETS[:2]), Tools())
        assert problem in found.notes[0]
        assert "|tok:own-ptb-1|" in found.signature
    java.write_text("#!/bin/sh\ncat\n")
    assert ptb(["a b .", "c"]) == [["a", "b"], ["c"]]
