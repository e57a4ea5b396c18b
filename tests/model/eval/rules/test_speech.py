"""Word and character error rates."""

import random
from importlib.metadata import version

import pytest

from afn_model.eval.items import AnsweredItem, Item, ItemClip
from afn_model.eval.loaders.files import UNSCORED
from afn_model.eval.rules.speech import cer, transcript_in, wer
from afn_model.eval.score import Tools, interval

jiwer = pytest.importorskip("jiwer", reason="jiwer (the test extra) is not installed")
kaldialign = pytest.importorskip("kaldialign", reason="kaldialign (the eval extra) is not installed")
pytest.importorskip("whisper_normalizer", reason="whisper_normalizer (the eval extra) is not installed")
TOOLS = Tools()


def pairs(*texts: tuple[str, str | None]) -> list[AnsweredItem]:
    items = [Item(str(n), clips=(ItemClip(f"{n}.wav"),), references=(true,)) for n, (true, _) in enumerate(texts)]
    return [AnsweredItem(item, output) for item, (_, output) in zip(items, texts, strict=True)]


def test_errors_are_summed_over_the_corpus():
    # one substitution of 4 words, one deletion of 1, two insertions into 1: 4 errors in 6 words
    answered = pairs(("a b c d", "a b x d"), ("e", ""), ("f", "f g h"))
    score = wer(answered, TOOLS, normaliser="none")
    assert score.parts == [(1.0, 4.0), (1.0, 1.0), (2.0, 1.0)]
    assert score.value == pytest.approx(100 * 4 / 6)
    assert score.notes[0] == "2 insertions, 1 deletions and 1 substitutions in 6 words"
    assert score.signature == f"WER, none, kaldialign {version('kaldialign')}"
    low, high = interval(answered, score)
    assert low < score.value < high


def test_rates_are_those_of_the_libraries():
    rng = random.Random(0)
    words = ["white", "paper", "whitepaper", "a", "b", "c"]
    true, output = ([" ".join(rng.choices(words, k=rng.randint(1, 9))) for _ in range(60)] for _ in range(2))
    answered = pairs(*zip(true, output, strict=True))
    assert wer(answered, TOOLS, normaliser="none").value == pytest.approx(100 * jiwer.wer(true, output))
    characters = cer(answered, TOOLS, normaliser="none", language="en").value
    assert characters == pytest.approx(100 * jiwer.cer(true, output))
    split = [[text.split() for text in texts] for texts in (true, output)]
    found = []
    for sclite in (False, True):
        expected = kaldialign.batch_error_rate(*split, sclite_mode=sclite, merge_compounds=not sclite)["err_rate"]
        found.append(wer(answered, TOOLS, normaliser="none", sclite=sclite, merge_compounds=not sclite).value)
        assert found[-1] == pytest.approx(100 * expected)
    assert found[0] < wer(answered, TOOLS, normaliser="none").value < found[1]


def test_compounds_count_as_equal_where_the_leaderboard_merges_them():
    answered = pairs(("the white paper", "the whitepaper"))
    merged = wer(answered, TOOLS, normaliser="openasr@d1e99b2", merge_compounds=True)
    assert merged.value == 0
    assert merged.parts == [(0.0, 3.0)]
    assert wer(answered, TOOLS, normaliser="openasr@d1e99b2").parts == [(2.0, 3.0)]
    assert "openasr@d1e99b2, kaldialign" in merged.signature
    assert merged.signature.endswith("compounds merged")


def test_the_same_outputs_differ_by_normaliser():
    answered = pairs(("DR ALLAN ISN'T THERE UH HUH", "Doctor Allen is not there."), ("IT'S AN E-MAIL", "it's an email"))
    found = {
        name: wer(answered, TOOLS, normaliser=name, merge_compounds="openasr" in name).parts
        for name in ("whisper@0.1.15", "openasr@d1e99b2", "none")
    }
    # whisper: a name and "huh"; e mail -> email is a substitution and a deletion. none: nothing is alike.
    assert found["whisper@0.1.15"] == [(2.0, 6.0), (2.0, 5.0)]
    assert found["openasr@d1e99b2"] == [(0.0, 5.0), (0.0, 4.0)]
    assert found["none"] == [(6.0, 6.0), (3.0, 3.0)]


def test_what_is_left_out_and_what_is_not_are_counted():
    answered = pairs(("good day", None), ("um", "um"), ("gap", "gap"), ("three", "three"))
    answered[2] = AnsweredItem(Item("2", references=("gap",), extra={UNSCORED: "not in the split"}), "gap")
    answered.append(AnsweredItem(Item("hidden"), "four"))
    score = wer(answered, TOOLS)
    assert score.parts == [(2.0, 2.0), None, None, (0.0, 1.0), None]
    assert score.value == pytest.approx(100 * 2 / 3)
    assert score.n == 2
    assert score.notes[1:] == [
        "1 items have no output: all their words count as deletions",
        "1 items left out: not in the split",
        "1 items left out: whose reference is empty",
        "1 items left out: without a reference",
    ]
    assert score.extracted == ["no output", "whole", "whole: gap", "whole: 3", "whole: 4"]


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ('The spoken content of the audio is "Seven o\'clock."', ("Seven o'clock.", "spoken content")),
        ("The spoken content of the audio is 'stop'.", ("stop", "spoken content")),
        ("the original content of this audio is: \u201cstop\nnow\u201d", ("stop\nnow", "spoken content")),
        ('The spoken content of the audio is "cut off at the', ("cut off at the", "spoken content")),
        ("The spoken content of the audio is clear.", ("The spoken content of the audio is clear.", "whole")),
        ('He said "stop".', ('He said "stop".', "whole")),
    ],
)
def test_an_introduction_is_no_part_of_a_transcript(answer, expected):
    assert transcript_in(answer) == expected


def test_introductions_are_stripped_and_counted():
    answered = pairs(("stop", 'The spoken content of the audio is "Stop."'), ("go", "go"))
    score = wer(answered, TOOLS)
    assert score.value == 0
    assert score.extracted[0] == "spoken content: stop"
    assert score.notes[1] == "1 transcripts were read inside of 'The spoken content of the audio is \"...\"'"


def test_characters_of_a_language_without_spaces():
    answered = pairs(("他说：早上好。", "他 说 早上 坏"))
    score = cer(answered, TOOLS, language="zh")
    assert score.parts == [(1.0, 5.0)]
    assert score.signature.endswith("spaces left out")
    assert score.notes[0].endswith("in 5 characters")
    assert cer(pairs(("a b", "ab")), TOOLS, normaliser="none", language="en").parts == [(1.0, 3.0)]
    assert cer(pairs(("a b", "ab")), TOOLS, normaliser="none", language="ja").parts == [(0.0, 2.0)]
    # The vowels of Thai are marks: Whisper's rule loses them.
    thai = pairs(("ที่", "ทู่"))
    assert cer(thai, TOOLS, language="th").value == 0
    assert cer(thai, TOOLS, language="th", normaliser="whisper-marks@0.1.15").parts == [(1.0, 3.0)]


def test_a_corpus_of_nothing_has_no_rate():
    empty = wer(pairs(("um", "a")), TOOLS)
    assert empty.n == 0
    assert empty.value != empty.value
